"""Timing bursts of work on the lanes of a backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from hw.backends import Backend

MAX_CALLS = 400
"""Calls in one burst: fewer than a device's launch queue holds."""

SAMPLES = 3

Call = Callable[[], object]
"""One operation, to be launched on a lane."""


def times_s(
    backend: Backend,
    bursts: Sequence[tuple[str, Call, int]],
    meanwhile: Callable[[], object] = lambda: None,
) -> list[tuple[float, float]]:
    """Start and end in seconds of each burst; bursts on different lanes run at the same time.

    Args:
        bursts: lane, operation, and how often it is repeated.
        meanwhile: called while the lanes work.
    """

    def repeated(call: Call, calls: int) -> Call:
        def work() -> None:
            for _ in range(calls):
                call()

        return work

    backend.begin()
    handles = [backend.launch(lane, repeated(call, calls)) for lane, call, calls in bursts]
    meanwhile()
    backend.finish()
    return backend.times_s(handles)


def lengths_s(backend: Backend, lane: str, call: Call, calls: int, samples: int) -> list[float]:
    """Seconds of each of `samples` bursts of `calls` calls, back to back."""
    times = times_s(backend, [(lane, call, calls)] * samples)
    return [end_s - start_s for start_s, end_s in times]


def length_s(backend: Backend, lane: str, call: Call, calls: int) -> float:
    """Seconds of one burst on an idle device."""
    return lengths_s(backend, lane, call, calls, 1)[0]


def call_s(backend: Backend, lane: str, call: Call) -> float:
    """Seconds of one call in a burst of about 10 ms, after a warm-up."""
    for _ in range(2):
        once_s = length_s(backend, lane, call, 1)
    calls = calls_in(0.01, once_s)
    return median(length_s(backend, lane, call, calls) for _ in range(SAMPLES)) / calls


def calls_in(seconds: float, one_call_s: float) -> int:
    """How many calls last `seconds`, at most `MAX_CALLS`."""
    return max(1, min(MAX_CALLS, round(seconds / max(one_call_s, 1e-7))))
