"""Timing bursts of work on the lanes of a backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median

from hw.backends import Backend

MAX_CALLS = 400
"""Calls in one burst: fewer than a device's launch queue holds."""

SAMPLES = 3

Call = Callable[[], object]
"""One operation, to be launched on a lane."""


def burst_times_s(
    backend: Backend,
    bursts: Mapping[str, tuple[Call, int]],
    meanwhile: Callable[[], object] = lambda: None,
) -> dict[str, tuple[float, float]]:
    """Start and end in seconds of each lane's burst; all lanes work at the same time.

    Args:
        bursts: by lane, an operation and how often it is repeated.
        meanwhile: called while the lanes work.
    """

    def repeated(call: Call, calls: int) -> Call:
        def work() -> None:
            for _ in range(calls):
                call()

        return work

    backend.begin()
    handles = [backend.launch(lane, repeated(*burst)) for lane, burst in bursts.items()]
    meanwhile()
    backend.finish()
    return dict(zip(bursts, backend.times_s(handles), strict=True))


def series_s(
    backend: Backend,
    lane: str,
    call: Call,
    calls: int,
    samples: int,
    meanwhile: Callable[[], object] = lambda: None,
) -> list[tuple[float, float]]:
    """Start and end in seconds of `samples` back-to-back samples of `calls` calls each."""

    def work() -> None:
        for _ in range(calls):
            call()

    backend.begin()
    handles = [backend.launch(lane, work) for _ in range(samples)]
    meanwhile()
    backend.finish()
    return backend.times_s(handles)


def call_s(backend: Backend, lane: str, call: Call) -> float:
    """Seconds of one call in a burst of about 10 ms, after a warm-up."""
    for _ in range(2):
        once_s = _length_s(burst_times_s(backend, {lane: (call, 1)})[lane])
    calls = max(1, min(MAX_CALLS, round(0.01 / max(once_s, 1e-7))))
    times = [_length_s(burst_times_s(backend, {lane: (call, calls)})[lane]) for _ in range(SAMPLES)]
    return median(times) / calls


def calls_in(seconds: float, one_call_s: float) -> int:
    """How many calls last `seconds`, at most `MAX_CALLS`."""
    return max(1, min(MAX_CALLS, round(seconds / max(one_call_s, 1e-7))))


def _length_s(times: tuple[float, float]) -> float:
    return times[1] - times[0]
