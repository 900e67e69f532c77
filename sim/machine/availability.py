"""Availability of a machine over time: a trace of fractions, lane by lane.

A trace is a CSV file with a column `start_s` and one for each lane that changes (`compute`, `h2d`,
`disk`, `net`), or a TOML file with one `[[at]]` table for each row. A fraction of 0.5 means half
of what the plan assumes, from that time on until the next row; a lane without a column is always
fully available.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from sim.errors import BadFile, BadInput
from sim.files import decode_csv, decode_toml, naming_file
from sim.lanes import LANES, TIER_LANES


@dataclass(frozen=True)
class Step:
    """From `start_s` on, each lane named in `fractions` has that part of its usual pace."""

    start_s: float
    fractions: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Availability:
    """Steps in the order of time; before the first, everything is available.

    Raises:
        BadInput: times that do not rise, an unknown lane, a fraction below 0, or a last step in
            which a lane has fraction 0, so that it never ends.
    """

    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        for one, other in pairwise(self.steps):
            if not one.start_s < other.start_s:
                raise BadInput(f"start_s(={other.start_s}) must be later than {one.start_s}.")
        for step in self.steps:
            if not 0 <= step.start_s < float("inf"):
                raise BadInput(f"start_s(={step.start_s}) must be at least 0 and finite.")
            for lane, fraction in step.fractions:
                if lane not in (*LANES, *TIER_LANES):
                    known = ", ".join((*LANES, *TIER_LANES))
                    raise BadInput(f"lane {lane!r} is unknown; known: {known}.")
                if not 0 <= fraction < float("inf"):
                    raise BadInput(f"{lane}(={fraction}) must be a fraction of at least 0.")
        for lane, fraction in self.steps[-1].fractions if self.steps else ():
            if not fraction > 0:
                raise BadInput(f"{lane} must be above 0 in the last row, or nothing ever ends.")

    @cached_property
    def changes_s(self) -> tuple[float, ...]:
        return tuple(step.start_s for step in self.steps)

    @cached_property
    def lanes(self) -> tuple[str, ...]:
        """Lanes that change."""
        return tuple(sorted({lane for step in self.steps for lane, _ in step.fractions}))

    def at(self, now_s: float, lane: str) -> float:
        """The fraction of `lane` at a time."""
        fraction = 1.0
        for step in self.steps:
            if step.start_s > now_s:
                break
            fraction = dict(step.fractions).get(lane, 1.0)
        return fraction

    def course(self, lane: str) -> tuple[float, ...]:
        """The fraction of `lane` before the first step, and from each step on."""
        return (1.0, *(dict(step.fractions).get(lane, 1.0) for step in self.steps))

    @classmethod
    def load(cls, path: Path | str) -> Availability:
        """Read a trace.

        Raises:
            BadFile: unreadable, or not such a trace.
        """
        with naming_file(str(path)):
            rows = _toml_rows(path) if str(path).endswith(".toml") else decode_csv(path)
            return cls(tuple(_step(row) for row in rows))


ALWAYS = Availability()
"""All of the machine, all the time."""


def _toml_rows(path: Path | str) -> list[Mapping[str, Any]]:
    content = decode_toml(path)
    rows = content.get("at")
    if not isinstance(rows, list) or not rows or set(content) != {"at"}:
        raise BadFile(f"{path} must hold [[at]] tables with start_s and fractions of lanes.")
    return rows


def _step(row: Mapping[str, Any]) -> Step:
    try:
        numbers = {str(key).strip(): float(value) for key, value in row.items()}
    except (TypeError, ValueError):
        raise BadInput(f"row {dict(row)} must hold numbers only.") from None
    if "start_s" not in numbers:
        raise BadInput(f"row {dict(row)} has no start_s.")
    start_s = numbers.pop("start_s")
    for lane, fraction in numbers.items():
        if fraction > 1:
            raise BadInput(f"{lane}(={fraction}) must be a fraction between 0 and 1.")
    return Step(start_s, tuple(numbers.items()))
