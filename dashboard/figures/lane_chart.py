"""Bars in rows over time, as the data that `dashboard/lane_view` draws on a canvas."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dashboard.figures.style import OP_COLOUR, OTHER_OP_COLOUR, text_colour

NONE = -1
COLUMNS = (
    *("row", "start", "length", "kind", "name", "place", "size", "flags", "cause", "wait"),
    *("pause", "estimate", "partner"),
)
"""Of the bars: milliseconds, flags, and positions among rows, kinds, texts and bars."""

FADED, LATE, EARLY = 1, 2, 4
"""Flags of a bar: not on the critical path, took longer than predicted, or less."""

BYTES, FLOP = "B", "FLOP"
"""Units of the size of a bar."""


@dataclass(frozen=True, slots=True)
class Row:
    """One lane of one run.

    Args:
        source: name of the run; empty for the only one.
        unit: of the sizes of its bars, `BYTES`, `FLOP` or empty.
        done_ms: end of its last bar; the lane has no work after it.
    """

    lane: str
    source: str = ""
    unit: str = ""
    done_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Bar:
    """One task or event.

    Args:
        kind: what decides its colour.
        name: its title; `place` and `estimate` are lines below it.
        cause: what the lane waited for before it, for `wait_ms`; then it paused for `pause_ms`.
    """

    start_ms: float
    length_ms: float
    kind: str
    name: str
    place: str = ""
    size: float = 0.0
    flags: int = 0
    cause: str = ""
    wait_ms: float = 0.0
    pause_ms: float = 0.0
    estimate: str = ""


@dataclass
class LaneChart:
    """Rows of bars; texts are stored once and bars hold their positions.

    Args:
        axis: title of the time axis, in milliseconds.
        colours: of kinds that are no operations.
    """

    axis: str
    colours: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    ends: list[tuple[str, float]] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)
    words: dict[str, int] = field(default_factory=lambda: {"": 0})
    bars: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in COLUMNS})

    def __len__(self) -> int:
        """The number of bars."""
        return len(self.bars["row"])

    def add_row(self, row: Row) -> None:
        """Add a row; the bars that follow belong to it, in the order of their starts."""
        self.rows.append(row)

    def add(self, bar: Bar) -> int:
        """Add a bar to the last row; returns its position among all bars."""
        words, at = self.words, len(self)
        for name, value in (
            ("row", len(self.rows) - 1),
            ("start", round(bar.start_ms, 6)),
            ("length", round(bar.length_ms, 6)),
            ("kind", self.kinds.setdefault(bar.kind, len(self.kinds))),
            ("name", words.setdefault(bar.name, len(words))),
            ("place", words.setdefault(bar.place, len(words))),
            ("size", bar.size),
            ("flags", bar.flags),
            ("cause", words.setdefault(bar.cause, len(words))),
            ("wait", round(bar.wait_ms, 6)),
            ("pause", round(bar.pause_ms, 6)),
            ("estimate", words.setdefault(bar.estimate, len(words))),
            ("partner", NONE),
        ):
            self.bars[name].append(value)
        return at

    def join(self, one: int, other: int) -> None:
        """Mark two bars as the same task in two runs."""
        self.bars["partner"][one] = other
        self.bars["partner"][other] = one

    def document(self) -> dict[str, Any]:
        """What the canvas reads: columns of all bars."""
        return {
            "axis": self.axis,
            "rows": [
                {"lane": one.lane, "source": one.source, "unit": one.unit, "done": one.done_ms}
                for one in self.rows
            ],
            "kinds": [self._kind(name) for name in self.kinds],
            "words": list(self.words),
            "ends": [{"source": source, "ms": end_ms} for source, end_ms in self.ends],
            "bars": self.bars,
        }

    def _kind(self, name: str) -> dict[str, str]:
        colour = self.colours.get(name) or OP_COLOUR.get(name, OTHER_OP_COLOUR)
        return {"name": name, "colour": colour, "ink": text_colour(colour)}

    @cached_property
    def encoded(self) -> bytes:
        """The document as JSON."""
        return json.dumps(self.document(), separators=(",", ":")).encode()
