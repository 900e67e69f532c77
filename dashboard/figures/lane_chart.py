"""Bars in rows over time, as the data that `dashboard/lane_view` draws on a canvas."""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import repeat
from typing import Any

from dashboard.figures.style import OP_COLOUR, OTHER_OP_COLOUR, text_colour

NONE = -1
NUMBERS = ("start", "length", "size", "wait", "pause")
POSITIONS = ("row", "kind", "name", "place", "flags", "cause", "estimate", "partner")
"""Columns of the bars: milliseconds and sizes; positions among rows, kinds, texts and bars."""

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
class Bars:
    """Tasks or events of one row in the order of their starts; every list has an item for each bar.

    Args:
        kind: what decides its colour.
        name: its title; `place` and `estimate` are lines below it.
        cause: what the lane waited for before it, for `wait_ms`; then it paused for `pause_ms`.
    """

    start_ms: Sequence[float]
    length_ms: Sequence[float]
    kind: Sequence[str]
    name: Sequence[str]
    place: Sequence[str]
    size: Sequence[float]
    flags: Sequence[int] = ()
    cause: Sequence[str] = ()
    wait_ms: Sequence[float] = ()
    pause_ms: Sequence[float] = ()
    estimate: Sequence[str] = ()


class Numbering(dict[str, int]):
    """Texts with their positions; a new text that is looked up comes last."""

    def __missing__(self, text: str) -> int:
        self[text] = at = len(self)
        return at


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
    kinds: Numbering = field(default_factory=Numbering)
    words: Numbering = field(default_factory=lambda: Numbering({"": 0}))
    numbers: dict[str, array[float]] = field(
        default_factory=lambda: {name: array("d") for name in NUMBERS}
    )
    positions: dict[str, array[int]] = field(
        default_factory=lambda: {name: array("i") for name in POSITIONS}
    )

    def __len__(self) -> int:
        """The number of bars."""
        return len(self.numbers["start"])

    def add_row(self, row: Row) -> None:
        """Add a row; the bars that follow belong to it, in the order of their starts."""
        self.rows.append(row)

    def add(self, bars: Bars) -> range:
        """Add bars to the last row; returns their positions among all bars."""
        first, count = len(self), len(bars.start_ms)
        for name, values in (
            ("start", bars.start_ms),
            ("length", bars.length_ms),
            ("size", bars.size),
            ("wait", bars.wait_ms),
            ("pause", bars.pause_ms),
        ):
            self.numbers[name].extend(values or repeat(0.0, count))
        for column, texts in (
            ("name", bars.name),
            ("place", bars.place),
            ("cause", bars.cause),
            ("estimate", bars.estimate),
        ):
            self.positions[column].extend(map(self.words.__getitem__, texts or repeat("", count)))
        self.positions["kind"].extend(map(self.kinds.__getitem__, bars.kind))
        self.positions["row"].extend(repeat(len(self.rows) - 1, count))
        self.positions["flags"].extend(bars.flags or repeat(0, count))
        self.positions["partner"].extend(repeat(NONE, count))
        return range(first, first + count)

    def join(self, one: int, other: int) -> None:
        """Mark two bars as the same task in two runs."""
        partner = self.positions["partner"]
        partner[one], partner[other] = other, one

    def document(self) -> dict[str, Any]:
        """What the canvas reads besides the columns of the bars."""
        return {
            "axis": self.axis,
            "rows": [
                {"lane": one.lane, "source": one.source, "unit": one.unit, "done": one.done_ms}
                for one in self.rows
            ],
            "kinds": [self._kind(name) for name in self.kinds],
            "words": list(self.words),
            "ends": [{"source": source, "ms": end_ms} for source, end_ms in self.ends],
            "count": len(self),
            "numbers": NUMBERS,
            "positions": POSITIONS,
        }

    def _kind(self, name: str) -> dict[str, str]:
        colour = self.colours.get(name) or OP_COLOUR.get(name, OTHER_OP_COLOUR)
        return {"name": name, "colour": colour, "ink": text_colour(colour)}

    @cached_property
    def encoded(self) -> bytes:
        """The document as JSON after its length in 8 bytes, then the columns as arrays.

        Numbers have 8 bytes and positions 4, little-endian. Spaces after the JSON align the arrays.
        """
        text = json.dumps(self.document(), separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        columns: list[array[Any]] = [*self.numbers.values(), *self.positions.values()]
        arrays = [_little_endian(column) for column in columns]
        return b"".join([len(text).to_bytes(8, "little"), text, *arrays])


def _little_endian(column: array[Any]) -> bytes:
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    return column.tobytes()
