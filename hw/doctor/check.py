"""One line of the doctor's table, and the durations of its measurements."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["passed", "warned", "failed"]

MAX_TEXT = 500
"""Characters of an error text that are kept."""

UNFINISHED = "This check could not finish: trust no measurement that depends on it."


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check.

    Args:
        name: what was checked.
        status: `failed` if measurements on this machine are wrong, `warned` if they are noisier or
            slower than they could be.
        measured: the findings with units.
        advice: what to do; empty if passed.
    """

    name: str
    status: Status
    measured: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Durations:
    """How long each measurement lasts.

    Args:
        steady_s: repeated matmuls of the steadiness check.
        sustained_s: back-to-back matmuls of the burst check.
        idle_s: pause before that burst.
        overlap_s: work on each lane of the overlap check.
        copy_s: copies of one size in one direction.
        pinned_bytes: host memory that is page-locked.
        disk_bytes: size of the temporary file that is read.
    """

    steady_s: float = 10.0
    sustained_s: float = 2.0
    idle_s: float = 1.0
    overlap_s: float = 0.15
    copy_s: float = 0.1
    pinned_bytes: int = 2**30
    disk_bytes: int = 2**26


QUICK = Durations(
    steady_s=1.0,
    sustained_s=0.5,
    idle_s=0.2,
    overlap_s=0.05,
    copy_s=0.03,
    pinned_bytes=2**27,
    disk_bytes=2**24,
)
"""About a tenth of the usual durations."""


def judged(
    name: str, measured: str, advice: Sequence[str] = (), status: Status = "warned"
) -> Check:
    """A check that passed if there is no advice, and has `status` otherwise."""
    return Check(name, status if advice else "passed", measured, " ".join(advice))


def guarded(name: str, run: Callable[[], Check]) -> Check:
    """The result of `run`; if it raises, a failed check with the exception's type and text."""
    try:
        return run()
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(f"{type(error).__name__}: {error}".split())[:MAX_TEXT]
        where = f"{Path(last.filename).name}:{last.lineno}"
        return Check(name, "failed", f"{text} ({where})", UNFINISHED)
