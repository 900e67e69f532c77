"""What a second of the GPU or of the link costs the other requests of an instance.

A restore that computes delays the requests behind it for the GPU, and one that loads those behind
it for the link. The price of a second is the number of requests that it delays: those that wait
now, and those that come before the queue has drained, at the rate seen so far.
"""

from __future__ import annotations

from math import inf

MAX_USE = 0.95
"""Largest use of a resource that a price counts with."""

ALONE = 0.05
"""Requests that may be expected during a restore that counts as alone on its instance."""


class Contention:
    """Requests of an instance that compete for its GPU and its link."""

    def __init__(self) -> None:
        self._first_s = inf
        self._later = 0
        self._restores = 0
        self._prompts_s = 0.0
        self._loads_s = 0.0

    def arrived(self, arrival_s: float) -> None:
        """Count a request; those that come with the first one say nothing of a rate."""
        self._first_s = min(self._first_s, arrival_s)
        self._later += arrival_s > self._first_s

    def restored(self, load_s: float) -> None:
        """Count a restore that loads for so long."""
        self._restores += 1
        self._loads_s += load_s

    def computed(self, seconds: float) -> None:
        """Count a step that computed prompts."""
        self._prompts_s += seconds

    def _per_s(self, count: float, now_s: float) -> float:
        elapsed_s = now_s - self._first_s
        return count / elapsed_s if self._later and elapsed_s > 0 else 0.0

    def expected(self, now_s: float, seconds: float) -> float:
        """Requests that come within so many seconds."""
        return seconds * self._per_s(self._later, now_s)

    def alone(self, now_s: float, seconds: float) -> bool:
        """Whether hardly any request comes within so many seconds."""
        return self.expected(now_s, seconds) <= ALONE

    def gpu_price(self, now_s: float, behind: int, busy_s: float) -> float:
        """Requests that one more second of the GPU delays, if it is busy for `busy_s`."""
        use = min(MAX_USE, self._per_s(self._prompts_s, now_s))
        return behind + self.expected(now_s, busy_s) / (1 - use)

    def link_price(self, now_s: float, behind: int, busy_s: float) -> float:
        """Restores that one more second of the link delays, if it is busy for `busy_s`."""
        use = min(MAX_USE, self._per_s(self._loads_s, now_s))
        return behind + busy_s * self._per_s(self._restores, now_s) / (1 - use)
