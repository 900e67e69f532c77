"""Copies slowed down to the pace of an emulated link."""

from __future__ import annotations

import time
from collections.abc import Callable

from sim.machine.availability import ALWAYS, Availability


class Pace:
    """Byte rate of a lane over time.

    Args:
        now_s: returns the seconds since the time zero of `trace`.
        trace: share of the rate that is available over time.
    """

    def __init__(
        self,
        lane: str,
        bytes_per_s: float,
        now_s: Callable[[], float],
        trace: Availability = ALWAYS,
    ) -> None:
        self.lane = lane
        self.bytes_per_s = bytes_per_s
        self.now_s = now_s
        self.trace = trace

    def due_s(self, begun_s: float, n_bytes: int) -> float:
        """End of a transfer of `n_bytes` that starts at `begun_s`, in seconds."""
        if n_bytes == 0:
            return begun_s
        left_s, at_s = n_bytes / self.bytes_per_s, begun_s
        for change_s in self.trace.changes_s:
            if change_s <= begun_s:
                continue
            passed_s = self.trace.at(at_s, self.lane) * (change_s - at_s)
            if passed_s >= left_s:
                break
            left_s, at_s = left_s - passed_s, change_s
        return at_s + left_s / self.trace.at(at_s, self.lane)


class Transfer:
    """One transfer, which starts now; without a pace it runs at memory speed."""

    def __init__(self, pace: Pace | None) -> None:
        self._pace = pace
        self._begun_s = pace.now_s() if pace is not None else 0.0
        self._n_bytes = 0

    @property
    def paced(self) -> bool:
        return self._pace is not None

    def passed(self, n_bytes: int) -> None:
        """Count copied bytes, and sleep until the emulated link would have moved them."""
        if self._pace is None:
            return
        self._n_bytes += n_bytes
        ahead_s = self._pace.due_s(self._begun_s, self._n_bytes) - self._pace.now_s()
        if ahead_s > 0:
            time.sleep(ahead_s)
