"""`--engine`: which simulator answers."""

from __future__ import annotations

from cli.output import note
from sim.engine import NO_NUMBA, check_engine, fast_engine_installed


def installed_engine(name: str) -> str:
    """The engine `name`, or SimPy with a note where numba is missing.

    Raises:
        UnknownName: no such engine.
    """
    check_engine(name)
    if name == "fast" and not fast_engine_installed():
        note(f"{NO_NUMBA} Simulating with SimPy.")
        return "simpy"
    return name
