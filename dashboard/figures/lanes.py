"""One or two timelines of a graph, lane by lane, as bars on one axis of milliseconds.

`px.timeline` would turn the times into dates. A browser draws each bar as one element, so large
graphs merge neighbours that are too short to be seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from dashboard.figures.style import EARLY_COLOUR, LATE_COLOUR, TaskBoxes, style_rows
from sim.cost.estimate import Estimate
from sim.graph.claims import claimed
from sim.graph.tasks import LANE_OF_OP, Task
from sim.graph.timeline import Timeline
from sim.lanes import COMPUTE, LANES, TIER_LANES

SOURCES = ("predicted", "measured")
PAIR_PITCH = 2.4
"""Distance between lanes in rows: the two rows of one lane are 1 apart, lanes a little more."""

BAR_ROWS = 0.94
"""Height of a bar in rows."""

MAX_SINGLE_BARS = 2_000
"""Largest number of tasks that are drawn as one bar each, however short."""

SHORTEST_PART = 1 / 700
"""Shortest bar of merged neighbours as a part of the time shown: about 1.5 pixels."""

NOTABLE_ERROR_FRAC = 0.05
NOTABLE_PART = 1e-3
"""A task's time is notably off by over 5 % of itself and over a thousandth of what is shown."""

FADED = 0.18
LABELLED_PART = 0.02
"""Shortest bar with a label, as a part of the time shown."""


@dataclass(frozen=True, slots=True)
class View:
    """The part of a graph to show: one step or all, some layers or all.

    Args:
        step: decode step, by default all.
        layers: first and last layer, by default all tasks, also those outside the layers.
        device: GPU whose lanes are shown.
    """

    step: int | None = None
    layers: tuple[int, int] | None = None
    device: int = 0

    def positions(self, tasks: Sequence[Task]) -> list[int]:
        """Indices of the shown tasks, in graph order."""
        return [at for at, task in enumerate(tasks) if self._shows(task)]

    def _shows(self, task: Task) -> bool:
        if task.device != self.device or (self.step is not None and task.step != self.step):
            return False
        if self.layers is None:
            return True
        return task.layer <= self.layers[1] and self.layers[0] < task.layer + task.layers

    @property
    def whole(self) -> bool:
        return self.step is None and self.layers is None

    def __str__(self) -> str:
        if self.whole:
            return "the start of the run"
        step = None if self.step is None else f"step {self.step}"
        layers = None
        if self.layers is not None:
            first, last = self.layers
            layers = f"layer {first}" if first == last else f"layers {first} to {last}"
        return f"the first task of {', '.join(filter(None, (step, layers)))}"


WHOLE = View()


def paired_lanes(
    predicted: Timeline,
    measured: Timeline,
    view: View = WHOLE,
    estimates: Sequence[Estimate] | None = None,
    critical_only: bool = False,
    outline_errors: bool = True,
) -> go.Figure:
    """Both runs of one graph on one time axis, each lane predicted above measured.

    Args:
        view: the tasks to show. Time counts in each run from the start of the first of them, so
            that earlier tasks do not shift them.
        estimates: one for each task, for the hover.
        critical_only: fade what is not on the run's critical path.
        outline_errors: outline measured tasks whose time is notably off.
    """
    return _LaneFigure(
        (predicted, measured), view, estimates, critical_only, outline_errors
    ).figure()


def predicted_lanes(predicted: Timeline, estimates: Sequence[Estimate] | None = None) -> go.Figure:
    """A predicted run, lane by lane."""
    return _LaneFigure((predicted,), WHOLE, estimates, False, False).figure()


class _LaneFigure:
    def __init__(
        self,
        timelines: tuple[Timeline, ...],
        view: View,
        estimates: Sequence[Estimate] | None,
        critical_only: bool,
        outline_errors: bool,
    ) -> None:
        self.timelines = timelines
        self.sources = SOURCES[: len(timelines)]
        self.tasks = timelines[0].graph.tasks
        self.done = tuple(claimed(run.graph, run.start_s) for run in timelines)
        self.view = view
        self.estimates = estimates
        self.outline_errors = outline_errors
        self.chosen = view.positions(self.tasks)
        self.critical: tuple[Collection[int], ...] = ((), ())
        if critical_only:
            self.critical = tuple(frozenset(run.critical_path) for run in timelines)
        used = {self.tasks[at].lane for at in self.chosen}
        lanes = [lane for lane in (*LANES, *TIER_LANES) if lane in used]
        self.rows = {
            (lane, source): position * (PAIR_PITCH if len(timelines) > 1 else 1) + offset
            for position, lane in enumerate(lanes)
            for offset, source in enumerate(self.sources)
        }
        self.origins_s = [
            0.0 if view.whole else min((run.start_s[at] for at in self.chosen), default=0.0)
            for run in timelines
        ]
        self.shown_s = max(
            (
                run.end_s[at] - origin_s
                for run, origin_s in zip(timelines, self.origins_s, strict=True)
                for at in self.chosen
            ),
            default=0.0,
        )

    def figure(self) -> go.Figure:
        boxes: dict[str, TaskBoxes] = {}
        for which, source in enumerate(self.sources):
            queues: dict[str, list[int]] = {}
            for at in self.chosen:
                if self.tasks[at].claim and not self.done[which][at].n_tokens:
                    continue  # skipped: another did its tokens
                queues.setdefault(self.tasks[at].lane, []).append(at)
            for lane, queue in queues.items():
                for group in self._groups(which, queue):
                    op = self._main_op(which, group)
                    self._add(
                        boxes.setdefault(op, TaskBoxes()), which, self.rows[lane, source], group
                    )
        figure = go.Figure()
        for op in sorted(boxes, key=list(LANE_OF_OP).index):
            figure.add_trace(boxes[op].trace(op))
        labels = [
            f"{lane} {source}" if len(self.sources) > 1 else lane for lane, source in self.rows
        ]
        style_rows(figure, labels, list(self.rows.values()) or [0.0])
        figure.update_layout(uniformtext={"minsize": 9, "mode": "hide"})
        figure.update_xaxes(title=f"time since {self.view} (ms)")
        return figure

    def _groups(self, which: int, queue: Sequence[int]) -> list[list[int]]:
        """Tasks of one lane, in one group for each bar."""
        if len(self.chosen) <= MAX_SINGLE_BARS:
            return [[at] for at in queue]
        run, shortest_s = self.timelines[which], SHORTEST_PART * self.shown_s
        groups: list[list[int]] = []
        for at in queue:
            if groups and run.end_s[at] - run.start_s[groups[-1][0]] <= shortest_s:
                groups[-1].append(at)
            else:
                groups.append([at])
        return groups

    def _main_op(self, which: int, group: Sequence[int]) -> str:
        """The operation that takes most of a bar's time."""
        if len(group) == 1:
            return self.tasks[group[0]].op
        spent: dict[str, float] = {}
        for at in group:
            op = self.tasks[at].op
            spent[op] = spent.get(op, 0.0) + self.timelines[which].duration_s[at]
        return max(spent, key=spent.__getitem__)

    def _add(self, boxes: TaskBoxes, which: int, row: float, group: Sequence[int]) -> None:
        run, origin_s, critical = self.timelines[which], self.origins_s[which], self.critical[which]
        times_s = run.start_s[group[0]] - origin_s, run.end_s[group[-1]] - origin_s
        faded = critical and not any(at in critical for at in group)
        hover = self._task_hover if len(group) == 1 else self._group_hover
        opacity = FADED if faded else 1.0
        edge = self._edge(which, group)
        label = ""
        if times_s[1] - times_s[0] >= LABELLED_PART * self.shown_s:
            signs = {EARLY_COLOUR: " \N{BLACK DOWN-POINTING TRIANGLE}", None: ""}
            late = " \N{BLACK UP-POINTING TRIANGLE}"
            label = self._main_op(which, group) + signs.get(edge and edge[0], late)
        boxes.add(times_s, row, BAR_ROWS, hover(which, group), opacity, edge, label)

    def _edge(self, which: int, group: Sequence[int]) -> tuple[str, float] | None:
        """Colour and width (px) of the outline of a notable error, or None."""
        if not self.outline_errors or SOURCES[which] != "measured":
            return None
        guess_s, truth_s = (sum(run.duration_s[at] for at in group) for run in self.timelines)
        late_s = truth_s - guess_s
        if abs(late_s) <= max(NOTABLE_ERROR_FRAC * truth_s, NOTABLE_PART * self.shown_s):
            return None
        return (LATE_COLOUR if late_s > 0 else EARLY_COLOUR), 2.0

    def _task_hover(self, which: int, group: Sequence[int]) -> str:
        at = group[0]
        task = self.done[which][at]
        lines = [
            f"<b>{task.id}</b> ({SOURCES[which]})",
            ", ".join(_place(task)),
            _rate(task, self.timelines[which].duration_s[at]),
            self._times(group),
        ]
        if self.estimates is not None:
            estimate = self.estimates[at]
            beyond = "" if estimate.in_range else ", outside the calibrated range"
            lines.append(f"estimate from {estimate.source} figures{beyond}")
        return "<br>".join(lines)

    def _group_hover(self, which: int, group: Sequence[int]) -> str:
        counts = Counter(self.tasks[at].op for at in group)
        return "<br>".join(
            [
                f"<b>{len(group)} tasks</b> ({SOURCES[which]})",
                f"{self.tasks[group[0]].id} to {self.tasks[group[-1]].id}",
                ", ".join(f"{count} {op}" for op, count in counts.most_common()),
                self._times(group),
                *(["choose a step or layers to see each"] if len(self.sources) > 1 else []),
            ]
        )

    def _times(self, group: Sequence[int]) -> str:
        """Time of some tasks in each run, and the error of the prediction."""
        seconds = [sum(run.duration_s[at] for at in group) for run in self.timelines]
        text = ", ".join(
            f"{source} {spent_s * 1e3:,.3f} ms"
            for source, spent_s in zip(self.sources, seconds, strict=True)
        )
        if len(seconds) == 1 or seconds[1] <= 0:
            return text
        return f"{text}, {100 * (seconds[0] / seconds[1] - 1):+.1f} %"


def _place(task: Task) -> list[str]:
    """Layer, step, batch and tokens of a task."""
    return [
        *([f"layer {task.layer}"] if task.layer >= 0 else []),
        f"step {task.step}",
        *([f"batch {task.batch}"] if task.batch else []),
        *([f"tokens {task.token_start:,} to {task.token_stop:,}"] if task.n_tokens else []),
    ]


def _rate(task: Task, seconds: float) -> str:
    """Bytes or FLOP of a task, and its rate."""
    if task.lane == COMPUTE:
        size = f"{task.flops / 1e9:,.4g} GFLOP"
        rate = f"{task.flops / seconds / 1e12:,.3g} TFLOP/s" if seconds > 0 else "no time"
    else:
        size = f"{task.bytes / 1e6:,.4g} MB"
        rate = f"{task.bytes / seconds / 1e9:,.3g} GB/s" if seconds > 0 else "no time"
    return f"{size} at {rate}"
