"""Every failure a user can meet, as one family.

The command line prints the message without a traceback and exits with status 2; code that
uses kvoverlap as a library catches `KvOverlapError` or the branch it can act on::

    KvOverlapError
    ├── BadInput             a value breaks a rule the message states
    │   ├── UnknownName      no shipped model, hardware or policy has that name
    │   └── BadFile          a file is missing, corrupt, or holds an unknown or absent key
    ├── DoesNotFit           the plan needs more memory than the device or host has
    ├── NotMeasured          the hardware profile lacks a number that the plan needs
    ├── Mismatch             two things that must belong together do not
    ├── RaceFound            two tasks touch the same buffer in no fixed order
    ├── DeviceUnavailable    the device asked for is not on this machine
    ├── SweepStopped         workers of a sweep died; its finished points are kept
    ├── PlannerFailed        the solver ended without an optimal solution
    │   └── Infeasible       no values satisfy all rows of its program
    └── WrongNumbers         a run produced other tokens or tensors than the resident run
"""

from __future__ import annotations

from collections.abc import Iterable


class KvOverlapError(Exception):
    """Base of every expected failure."""


class BadInput(KvOverlapError):
    """A value breaks a rule; the message names argument, value, rule and next step."""


class UnknownName(BadInput):
    """A name is not among the ones that exist; the nearest one is suggested."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        known = sorted(known)
        import difflib  # only a wrong name needs it

        close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
        parts = [f"did you mean {close[0]!r}?"] if close else []
        if not close or len(known) <= 6:
            parts.append(f"known: {', '.join(known)}.")
        super().__init__(" ".join([f"{kind} {name!r} is unknown;", *parts, hint]).rstrip())


class BadFile(BadInput):
    """A file cannot be used; the message names the file, the key and the reason."""


class DoesNotFit(KvOverlapError):
    """Memory is too small; the message names the largest consumer and what to lower."""


class NotMeasured(KvOverlapError):
    """The hardware profile lacks a number that the plan needs."""


class Mismatch(KvOverlapError):
    """Two files or objects that must describe the same thing do not."""


class RaceFound(KvOverlapError):
    """Two tasks touch the same buffer in no fixed order; the message names the missing dep."""


class DeviceUnavailable(KvOverlapError):
    """The requested device is not present or cannot be used."""


class SweepStopped(KvOverlapError):
    """Workers of a sweep died; finished points are saved, and `--resume` continues."""


class PlannerFailed(KvOverlapError):
    """The LP solver stopped with a status other than optimal."""


class Infeasible(PlannerFailed):
    """A linear program has no solution."""


class WrongNumbers(KvOverlapError):
    """The executed plan computed something else than the fully resident decode."""
