"""One or two runs, lane by lane, as bars on one axis of milliseconds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from dashboard.figures.lane_chart import BYTES, EARLY, FADED, FLOP, LATE, Bars, LaneChart, Row
from sim.cost.estimate import Estimate
from sim.graph.claims import claimed
from sim.graph.tasks import LANE_OF_OP, Task
from sim.graph.timeline import Timeline
from sim.lanes import COMPUTE, LANES, TIER_LANES

SOURCES = PREDICTED, MEASURED = "predicted", "measured"
PAIR_PITCH = 2.4
"""Distance between lanes in rows: the two rows of one lane are 1 apart, lanes a little more."""

NOTABLE_ERROR_FRAC = 0.05
NOTABLE_PART = 1e-3
"""A task's time is notably off by over 5 % of itself and over a thousandth of what is shown."""

MS = 1e3


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


@dataclass(frozen=True)
class NamedRun:
    """A run with its name in the chart.

    Args:
        estimates: one for each task, for the explanation of a bar.
    """

    name: str
    timeline: Timeline
    estimates: Sequence[Estimate] | None = None


def lanes_of(
    runs: Sequence[NamedRun],
    view: View = WHOLE,
    critical_only: bool = False,
    outline_errors: bool = False,
) -> LaneChart:
    """Runs on one time axis, each lane of the first above that of the second.

    Args:
        view: the tasks to show. Time counts in each run from the start of the first of them, so
            that earlier tasks do not shift them.
        critical_only: fade what is not on the run's critical path.
        outline_errors: mark tasks of the second run whose time is notably off; both run one graph.
    """
    drawn: list[_Drawn] = []
    for run in runs:
        drawn.append(_Drawn(run, view, critical_only, drawn[-1].texts if drawn else None))
    chart = LaneChart(f"time since {view} (ms)")
    for op in LANE_OF_OP:
        if any(op in one.ops for one in drawn):
            chart.kinds[op] = len(chart.kinds)
    chart.ends = [(one.run.name, one.shown_s * MS) for one in drawn]
    off = _notable(drawn) if outline_errors else {}
    places: list[dict[str, int]] = [{} for _ in drawn]
    for lane in (*LANES, *TIER_LANES):
        for which, one in enumerate(drawn):
            if any(lane in other.lanes for other in drawn):
                one.add_lane(chart, lane, off if which else {}, places[which])
    for name, at in places[0].items():
        for other in places[1:]:
            if name in other:
                chart.join(at, other[name])
    return chart


def paired_lanes(
    predicted: Timeline,
    measured: Timeline,
    view: View = WHOLE,
    estimates: Sequence[Estimate] | None = None,
    critical_only: bool = False,
    outline_errors: bool = True,
) -> LaneChart:
    """Both runs of one graph on one time axis, each lane predicted above measured."""
    runs = [NamedRun(PREDICTED, predicted, estimates), NamedRun(MEASURED, measured, estimates)]
    return lanes_of(runs, view, critical_only, outline_errors)


def _notable(drawn: Sequence[_Drawn]) -> dict[int, int]:
    """The flag of every task of the second run that is notably longer or shorter."""
    guess, truth = (one.run.timeline.duration_s for one in drawn)
    shown_s = max(one.shown_s for one in drawn)
    found = {}
    for at in drawn[1].chosen:
        late_s = truth[at] - guess[at]
        if abs(late_s) > max(NOTABLE_ERROR_FRAC * truth[at], NOTABLE_PART * shown_s):
            found[at] = LATE if late_s > 0 else EARLY
    return found


class _Texts:
    """Texts about tasks, which runs of the same tasks share."""

    def __init__(self, tasks: Sequence[Task], estimates: Sequence[Estimate] | None) -> None:
        self.tasks, self.estimates = tasks, estimates
        self.place = list(map(_place, tasks))
        self.estimate = list(map(_estimate, estimates or ()))
        self._causes: dict[tuple[int, int], str] = {}

    def cause(self, cause: int, step: int) -> str:
        """What a task of a step waits for, such as `load_kv of layer 3`."""
        if cause < 0:
            return ""
        if (cause, step) not in self._causes:
            other = self.tasks[cause]
            where = f" of layer {other.layer}" if other.layer >= 0 else ""
            when = f" in step {other.step}" if other.step != step else ""
            self._causes[cause, step] = f"{other.op}{where}{when}"
        return self._causes[cause, step]


class _Drawn:
    """One run, its shown tasks by lane and the time that is its zero.

    Args:
        texts: of another run; used if it has the same tasks.
    """

    def __init__(
        self, run: NamedRun, view: View, critical_only: bool, texts: _Texts | None
    ) -> None:
        self.run, self.device = run, view.device
        timeline = run.timeline
        self.tasks = claimed(timeline.graph, timeline.start_s)
        if texts is None or texts.tasks is not self.tasks or texts.estimates is not run.estimates:
            texts = _Texts(self.tasks, run.estimates)
        self.texts = texts
        self.chosen = view.positions(timeline.graph.tasks)
        self.critical: Collection[int] = frozenset(timeline.critical_path) if critical_only else ()
        self.queues: dict[str, list[int]] = {}
        for at in self.chosen:
            if not self.tasks[at].claim or self.tasks[at].n_tokens:  # else another did its tokens
                self.queues.setdefault(self.tasks[at].lane, []).append(at)
        self.ops = {self.tasks[at].op for at in self.chosen}
        self.lanes = {self.tasks[at].lane for at in self.chosen}
        starts = (timeline.start_s[at] for at in self.chosen)
        self.origin_s = 0.0 if view.whole else min(starts, default=0.0)
        ends = (timeline.end_s[at] for at in self.chosen)
        self.shown_s = max(ends, default=self.origin_s) - self.origin_s

    def add_lane(
        self, chart: LaneChart, lane: str, off: dict[int, int], places: dict[str, int]
    ) -> None:
        """A row with the tasks of a lane.

        Args:
            off: flags of tasks whose time is notably off.
            places: filled with the position of the bar of every task by its id.
        """
        queue, timeline = self.queues.get(lane, []), self.run.timeline
        whole_queue = timeline.graph.lanes.get((self.device, lane), [])
        done_s = timeline.end_s[whole_queue[-1]] - self.origin_s if whole_queue else 0.0
        unit = FLOP if lane == COMPUTE else BYTES
        chart.add_row(Row(lane, self.run.name, unit, done_s * MS))
        names = [self.tasks[at].id for at in queue]
        places.update(zip(names, chart.add(self._bars(lane, queue, off)), strict=True))

    def _bars(self, lane: str, queue: Sequence[int], off: dict[int, int]) -> Bars:
        """The tasks of a lane at these positions of the graph."""
        timeline, texts = self.run.timeline, self.texts
        tasks = [self.tasks[at] for at in queue]
        found = {wait.at: wait for wait in timeline.waits(lane, self.device)}
        waits = [found[at] for at in queue]
        marked = off or self.critical
        return Bars(
            start_ms=[(timeline.start_s[at] - self.origin_s) * MS for at in queue],
            length_ms=[timeline.duration_s[at] * MS for at in queue],
            kind=[task.op for task in tasks],
            name=[task.id for task in tasks],
            place=[texts.place[at] for at in queue],
            size=[task.flops if lane == COMPUTE else task.bytes for task in tasks],
            flags=[self._faded(at) | off.get(at, 0) for at in queue] if marked else (),
            cause=[texts.cause(one.cause, self.tasks[one.at].step) for one in waits],
            wait_ms=[(wait.ready_s - wait.free_s) * MS for wait in waits],
            pause_ms=[(wait.start_s - wait.ready_s) * MS for wait in waits],
            estimate=[texts.estimate[at] for at in queue] if texts.estimate else (),
        )

    def _faded(self, at: int) -> int:
        return FADED if self.critical and at not in self.critical else 0


def _estimate(estimate: Estimate) -> str:
    beyond = "" if estimate.in_range else ", outside the calibrated range"
    return f"{estimate.source} figures{beyond}"


def _place(task: Task) -> str:
    """Layer, step, batch and tokens of a task."""
    text = f"layer {task.layer}, step {task.step}" if task.layer >= 0 else f"step {task.step}"
    if task.batch:
        text += f", batch {task.batch}"
    if count := task.n_tokens:
        tokens = "1 token" if count == 1 else f"{count:,} tokens"
        text += f", {tokens} from {task.token_start:,}"
    return text
