"""What a service needs to know of a planned restore; `planner` makes the plans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class SoloRestore:
    """A restore with an instance to itself, as its plan says.

    Args:
        ttft_s: from admission to the first token.
        busy_s: seconds of work of each lane.
        link_end_s: end of the last copy; 0 without copies.
        loaded_bytes: copied to one GPU.
        computed_tokens: of the whole prompt.
    """

    ttft_s: float
    busy_s: tuple[tuple[str, float], ...]
    link_end_s: float
    loaded_bytes: int
    computed_tokens: int


class RestorePlans(Protocol):
    """Plans of single restores by one policy, each made once."""

    def solo(self, prompt: int, cached: int, tier: str) -> SoloRestore:
        """The restore of a prompt whose first `cached` tokens are in a tier."""
        ...
