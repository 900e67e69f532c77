"""The row schedule as a pipeline of two lanes, whose optimum needs no solver.

A decode step without resident cache is a chain of cells (one layer in one step). Cell i loads X of
l tokens, X(l), then K and V of the others, V(l); the compute lane does its projections, recomputes
R(l), dequantises D(l) where the cache is quantised, and attends. All four are convex and piecewise
straight in l (`PiecewiseLinearCosts`).

Every schedule's makespan is at least the length of any chain of tasks that wait for each other,
and so at least any weighted mean of such lengths. A mean of chains is described by how much of the
weight has crossed from the link to the compute lane: f before cell i, w once its recompute may wait
for its X, g once its attention may wait for its K and V, with 0 <= f <= w <= g <= 1 and g the f of
the next cell. In the mean, cell i takes

    (1 - f) X(l) + (1 - w) V(l) + w R(l) + g D(l) + constants,

a convex function of this cell's l alone. Its minimum over l is found cell by cell, and the
sum is a lower bound for every split (weak duality of the LP in `planner/lp/schedule.py`,
whose duals are such weights). The crossing is chosen so that each cell's minimum is at a given
split, and the split so that the chains are equally long in the mean. If the two values agree, both
are optimal. If not, the LP is solved.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from planner.lp.costs import Line, PiecewiseLinearCosts

Floats = npt.NDArray[np.float64]
Costs = tuple[float, float, float, float]
"""Of X, K and V, recomputing and dequantising."""


class Shape:
    """Costs of a cell with a given context, as functions of its recomputed tokens.

    Args:
        context: past tokens that the cell's attention needs.
        layer: one of the layers with these costs.

    Attributes:
        counts: [K], token counts at which a cost changes slope, from 0 to all tokens.
        x_s, kv_s, recompute_s, dequantise_s: [K], seconds at these counts; linear in between.
        table: [4, K], all four.
    """

    def __init__(self, lines: PiecewiseLinearCosts, context: int, layer: int = 0) -> None:
        bends = {0.0, float(context)}
        for op in ("load_x", "recompute"):
            bends.update(_bends(lines.of(op, layer)))
        for op in ("load_kv", "dequantise"):
            bends.update(context - at for at in _bends(lines.of(op, layer)))
        counts = sorted(at for at in bends if 0 <= at <= context)
        self.context = context
        self.counts = counts
        self.x_s = [lines.at("load_x", at, layer) for at in counts]
        self.kv_s = [lines.at("load_kv", context - at, layer) for at in counts]
        self.recompute_s = [lines.at("recompute", at, layer) for at in counts]
        self.dequantise_s = [lines.at("dequantise", context - at, layer) for at in counts]
        rows = (self.x_s, self.kv_s, self.recompute_s, self.dequantise_s)
        self.table: Floats = np.array(rows)
        self._columns: list[Costs] = list(zip(*rows, strict=True))
        self._costs: dict[float, Costs] = {}
        self._slopes: dict[float, list[Costs]] = {}

    def at(self, count: float) -> Costs:
        """The four costs at any count, in the order of `table`."""
        if count not in self._costs:
            counts = self.counts
            at = min(max(bisect_left(counts, count), 1), len(counts) - 1)
            share = (count - counts[at - 1]) / (counts[at] - counts[at - 1])
            low, high = self._columns[at - 1], self._columns[at]
            x, kv, recompute, dequantise = (
                a + share * (b - a) for a, b in zip(low, high, strict=True)
            )
            self._costs[count] = x, kv, recompute, dequantise
        return self._costs[count]

    def slopes(self, count: float) -> list[Costs]:
        """Seconds per further token, left and right of `count`; one-sided at the ends."""
        if count not in self._slopes:
            counts = self.counts
            at = bisect_left(counts, count)
            on_bend = at < len(counts) and abs(counts[at] - count) < 1e-9 * (1 + count)
            sides = (at - 1, at) if on_bend else (at - 1,)
            inside = [side for side in sides if 0 <= side < len(counts) - 1]
            self._slopes[count] = [self._slope(side) for side in inside]
        return self._slopes[count]

    def _slope(self, at: int) -> Costs:
        width = self.counts[at + 1] - self.counts[at]
        low, high = self._columns[at], self._columns[at + 1]
        x, kv, recompute, dequantise = ((b - a) / width for a, b in zip(low, high, strict=True))
        return x, kv, recompute, dequantise

    def where(self, values: Sequence[float], level: float) -> float:
        """Smallest count at which non-decreasing `values` reach a level, clipped to the range."""
        if values[0] >= level:
            return 0.0
        for at in range(1, len(values)):
            if values[at] >= level:
                low, high = self.counts[at - 1], self.counts[at]
                share = (level - values[at - 1]) / (values[at] - values[at - 1])
                return low + share * (high - low)
        return float(self.context)


class WholeShape(Shape):
    """Exact costs of a cell at whole token counts, including non-convex parts and the step at 0."""

    def __init__(self, lines: PiecewiseLinearCosts, context: int, layer: int = 0) -> None:
        super().__init__(lines, context, layer)
        self._lines = lines
        self._layer = layer

    def at(self, count: float) -> Costs:
        lines, layer, made = self._lines, self._layer, int(count)
        loaded = self.context - made
        return (
            lines.seconds("load_x", made, layer),
            lines.seconds("load_kv", loaded, layer),
            lines.seconds("recompute", made, layer),
            lines.seconds("dequantise", loaded, layer),
        )


@dataclass(frozen=True, slots=True)
class Cell:
    """One layer in one step.

    Args:
        before_s: compute ahead of the recompute: projections, and the embedding before them.
        after_s: attention and MLP, with the head behind the last layer of a step, and the pause up
            to the next cell's projections.
        launched_s: earliest start of that, as the host launches it.
        ends_s: earliest end of the cell, as the host launches it.
    """

    shape: Shape
    before_s: float
    after_s: float
    launched_s: float = 0.0
    ends_s: float = 0.0


@dataclass(frozen=True)
class Bound:
    """Lower bound on the makespan of any split, and the mean of chains that proves it.

    Args:
        crossed: [cells, 3], f, w and g of every cell.
        first: the first cell of every chain.
    """

    seconds: float
    crossed: list[tuple[float, float, float]]
    first: int = 0


class Pipeline:
    """Cells one after another.

    Args:
        gap_s: pause of a lane between two tasks.
        handover_s: from the end of loading K and V to the attention that waited for it.
        quantised: whether loaded K and V are dequantised before that.
    """

    def __init__(
        self, cells: Sequence[Cell], gap_s: float, handover_s: float, quantised: bool
    ) -> None:
        self.cells = cells
        self.link_gap_s = gap_s
        self.recomputed_gap_s = 0.0 if quantised else gap_s
        self.loaded_gap_s = 0.0 if quantised else handover_s
        self.dequantised_gap_s = gap_s if quantised else 0.0

    def best(self) -> tuple[list[float], Bound]:
        """The best of several splits, each optimal in one regime, and the best bound."""
        tight = self.tight()
        nothing = [0.0] * len(self.cells)
        split = min(nothing, tight, self.balanced(tight), key=self.makespan_s)
        return split, self.bound(split)

    def makespan_s(self, split: Sequence[float]) -> float:
        """End of the last task, with two staging slots and a host that is never late."""
        link_s = compute_s = 0.0
        x_free, kv_free = [0.0, 0.0], [0.0, 0.0]
        for at, (cell, count) in enumerate(zip(self.cells, split, strict=True)):
            slot = at % 2
            x_s, kv_s, recompute_s, dequantise_s = cell.shape.at(count)
            x_end_s = max(link_s, x_free[slot]) + x_s
            kv_end_s = max(x_end_s, kv_free[slot]) + kv_s
            begun_s = max(compute_s, cell.launched_s) + cell.before_s
            made_s = (max(begun_s, x_end_s) if count > 0 else begun_s) + recompute_s
            ready_s = made_s + self.recomputed_gap_s
            if count < cell.shape.context:
                ready_s = max(ready_s, kv_end_s + self.loaded_gap_s)
            ready_s += dequantise_s + self.dequantised_gap_s
            compute_s = max(ready_s + cell.after_s, cell.ends_s)
            x_free[slot], kv_free[slot] = made_s, ready_s
            link_s = kv_end_s + self.link_gap_s
        return compute_s

    def balanced(self, then: Sequence[float]) -> list[float]:
        """Split: K and V arrive when the recompute ends, or earlier if waiting saves nothing.

        If the next cell would then wait for its X, the recompute ends later by that time.
        Optimal if compute is the longer lane, or if the first cell makes up for the start.

        Args:
            then: tokens that later cells recompute.
        """
        split = []
        link_s = lag_s = 0.0
        for at, cell in enumerate(self.cells):
            shape = cell.shape
            busy_s = max(lag_s, cell.launched_s - link_s) + cell.before_s
            rest_s = self.recomputed_gap_s + self.dequantised_gap_s + cell.after_s
            later_s = self.recomputed_gap_s - self.loaded_gap_s
            if at + 1 < len(self.cells):
                after = self.cells[at + 1]
                x_s = after.shape.at(then[at + 1])[0]
                later_s = min(later_s, rest_s + after.before_s - self.link_gap_s - x_s)
            costs = list(zip(shape.x_s, shape.kv_s, shape.recompute_s, strict=True))
            count = min(
                shape.where([busy_s + made - x - kv for x, kv, made in costs], -later_s),
                shape.where([made - kv for _, kv, made in costs], -later_s),
            )
            x_s, kv_s, recompute_s, dequantise_s = shape.at(count)
            made_s = max(busy_s, x_s) + recompute_s
            ready_s = max(made_s + self.recomputed_gap_s, x_s + kv_s + self.loaded_gap_s)
            ready_s += dequantise_s + self.dequantised_gap_s
            copied_s = x_s + kv_s + self.link_gap_s
            lag_s = ready_s + cell.after_s - copied_s
            link_s += copied_s
            split.append(count)
        return split

    def tight(self) -> list[float]:
        """Split, from the last cell backwards, in which every recompute starts when its X arrives.

        Optimal if neither lane waits, or if the link is the longer lane.
        """
        split: list[float] = []
        wait_s = 0.0
        for cell in reversed(self.cells):
            shape = cell.shape
            rest_s = self.recomputed_gap_s - self.loaded_gap_s
            if split:
                rest_s = self.recomputed_gap_s + self.dequantised_gap_s + cell.after_s
            ahead_s = [
                recompute + (dequantise if split else 0.0) - kv
                for recompute, dequantise, kv in zip(
                    shape.recompute_s, shape.dequantise_s, shape.kv_s, strict=True
                )
            ]
            count = shape.where(ahead_s, wait_s - rest_s)
            wait_s = shape.at(count)[0] + self.link_gap_s - cell.before_s
            split.append(count)
        return split[::-1]

    def bound(self, split: Sequence[float]) -> Bound:
        """The largest of several bounds, taken from the chains of a split."""
        ways = [self._crossing(split, 0.0, at_first) for at_first in (0.0, 1.0)]
        ways.append([(1.0, 1.0, 1.0)] * len(self.cells))
        resolved = ways[0][-1][1]
        ways.append(self._crossing(split, 0.0, resolved))
        late = any(cell.launched_s for cell in self.cells)
        if late:
            begun = self._begun(split[0])
            ways += [self._crossing(split, begun, at_first) for at_first in (resolved, 1.0)]
        bounds = [*map(self._mean, ways), *([self._late_host()] if late else [])]
        return max(bounds, key=lambda bound: bound.seconds)

    def _begun(self, count: float) -> float:
        """Weight of the chains that start when the host launches the first projections.

        With this weight the first cell's recompute waits for the projections and not for its X.
        """
        x, kv, recompute, _ = self.cells[0].shape.slopes(count)[-1]
        return min(max(-(x + kv) / max(recompute - x - kv, 1e-300), 0.0), 1.0)

    def _late_host(self) -> Bound:
        """Bound for a compute lane that never waits after a cell that the host launched late."""
        rest_s, most_s, start = 0.0, 0.0, 0
        for at in range(len(self.cells) - 1, -1, -1):
            cell = self.cells[at]
            _, _, recompute, dequantise = cell.shape.table
            late_s = cell.ends_s + rest_s
            rest_s += cell.before_s + float((recompute + dequantise).min()) + cell.after_s
            rest_s += self.recomputed_gap_s + self.dequantised_gap_s
            late_s = max(late_s, cell.launched_s + rest_s)
            if late_s > most_s:
                most_s, start = late_s, at
        return Bound(most_s, [(1.0, 1.0, 1.0)] * len(self.cells), start)

    def _crossing(
        self, split: Sequence[float], begun: float, at_first: float
    ) -> list[tuple[float, float, float]]:
        """Weights for which the minimum of every cell is at the split, as far as possible.

        Args:
            begun: weight of chains that start on the compute lane.
            at_first: minimum weight that has crossed when K and V of the first cell have arrived.
        """
        crossed = []
        before = begun
        last = len(self.cells) - 1
        for number, (cell, count) in enumerate(zip(self.cells, split, strict=True)):
            after = 1.0 if number == last else at_first if number == 0 else 0.0
            least, most = 0.0, 1.0
            sides = cell.shape.slopes(count)
            for side, slopes in enumerate(sides):
                level = _level(slopes, before, after)
                if side == len(sides) - 1 and count < cell.shape.context:
                    least = max(least, level)
                if side == 0 and count > 0:
                    most = min(most, level)
            at_recompute = min(max(before, least), max(before, most), 1.0)
            crossed.append((before, at_recompute, max(at_recompute, after)))
            before = crossed[-1][2]
        return crossed

    def _mean(self, crossed: list[tuple[float, float, float]]) -> Bound:
        """Minimum over all splits of the mean chain length."""
        weights = np.array(crossed)
        factors = np.column_stack((1 - weights[:, 0], 1 - weights[:, 1], weights[:, 1:]))
        total_s = crossed[0][0] * self.cells[0].launched_s
        start = 0
        while start < len(self.cells):
            shape, stop = self.cells[start].shape, start + 1
            while stop < len(self.cells) and self.cells[stop].shape is shape:
                stop += 1
            total_s += float((factors[start:stop] @ shape.table).min(axis=1).sum())
            start = stop
        for cell, (before, at_recompute, after) in zip(self.cells, crossed, strict=True):
            total_s += before * cell.before_s + after * cell.after_s
            total_s += at_recompute * self.recomputed_gap_s + after * self.dequantised_gap_s
            total_s += (after - at_recompute) * self.loaded_gap_s
        on_link = sum(1 - after for *_, after in crossed[:-1])
        return Bound(total_s + on_link * self.link_gap_s, crossed)


def _level(slopes: Costs, before: float, after: float) -> float:
    """The w at which one more token changes no cost, with f = before and g = max(w, after).

    Dequantising has weight g, which stays constant until w reaches it.
    """
    x, kv, recompute, dequantise = slopes
    level = -(kv + (1 - before) * x + after * dequantise) / max(recompute - kv, 1e-300)
    if level > after:
        level = -(kv + (1 - before) * x) / max(recompute + dequantise - kv, 1e-300)
    return level


def _bends(lines: Sequence[Line]) -> list[float]:
    """Counts at which the upper envelope of lines changes slope."""
    return [
        (base - other_base) / (other - slope)
        for (base, slope), (other_base, other) in pairwise(lines)
    ]
