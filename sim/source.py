"""Where a number comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sim.errors import BadInput
from sim.files import STRICT_KEYS

Source = Literal["measured", "fitted", "datasheet"]
SOURCES: tuple[Source, ...] = ("measured", "fitted", "datasheet")
"""Strongest first; a sum is as strong as its weakest term."""


def weakest(*sources: Source) -> Source:
    return max(sources, key=SOURCES.index)


@dataclass(frozen=True, slots=True)
class Figure:
    """One number with where it comes from; its name and unit are those of the field it is in."""

    __pydantic_config__ = STRICT_KEYS

    source: Source
    value: float
    note: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.value < float("inf"):
            raise BadInput(f"value(={self.value}) must be at least 0 and finite.")
