"""A new meeting point for a running restore whose lane is slower or faster than planned.

`Replanner` decides during a restore, from finished and running tasks and measured rates.
The functions below simulate the effect of such changes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from planner.restore.lower import two_ended_graph
from planner.restore.planner import RestorePlanner
from planner.restore.split import RestoreSplit
from sim.cost.model import CostModel
from sim.engine.api import simulate
from sim.graph.claims import RestoreProgress, part_of
from sim.graph.jobs import RestoreRequest
from sim.graph.tasks import Task
from sim.graph.timeline import Span, Timeline
from sim.lanes import COMPUTE
from sim.machine.availability import ALWAYS, Availability, Step
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec


class Replanner:
    """Watches the tasks of one restore; `changes` are the changes of plan it asked for.

    Rates are relative to the profile's rates, which are assumed at the start.
    """

    def __init__(
        self, model: ModelSpec, hardware: HardwareProfile, request: RestoreRequest
    ) -> None:
        self.request = request
        self.changes: list[Change] = []
        self._costs = CostModel(hardware, model, request)
        self._graph = two_ended_graph(model, request)
        tasks = [task for task in self._graph.tasks if task.claim]
        self._steps = [task for task in tasks if task.lane == COMPUTE]
        self._loads = [task for task in tasks if task.lane != COMPUTE]
        self._rates: dict[str, float] = {}

    def after(self, task: Task, seconds: float, progress: RestoreProgress) -> int | None:
        """The new meeting point in tokens if `task` shows that the plan is stale, else None.

        Args:
            task: a finished task with the tokens that it processed; ignored if they are too few
                to show a rate.
        """
        unit = min(self.request.io_chunk_tokens, self.request.step_tokens)
        if task.n_tokens < unit:
            return None
        rate_frac = self._costs.estimate(task).seconds / seconds
        if abs(rate_frac / self._rates.get(task.lane, 1.0) - 1.0) <= TOLERANCE_FRAC:
            return None
        self._rates[task.lane] = rate_frac
        computed, loaded = progress.computed_to, progress.loaded_from
        coarse = unit * max(1, (loaded - computed) // unit // MAX_POINTS)
        points = [*range(computed, loaded, coarse), loaded]
        best: int = min(points, key=lambda meeting: self._left_s(meeting, progress))
        self.changes.append(Change(progress.now_s, task.lane, rate_frac, best))
        return best

    def _left_s(self, meeting: int, progress: RestoreProgress) -> float:
        """Seconds until both ends reach a meeting point."""
        ready = {
            task.lane: max(0.0, since_s + self._seconds(task) - progress.now_s)
            for task, since_s in progress.running
        }
        computing_s = ready.get(COMPUTE, 0.0) + sum(
            self._seconds(
                part_of(self._graph, step, (step.token_start, min(step.token_stop, meeting)))
            )
            for step in self._steps
            if progress.computed_to <= step.token_start < meeting
        )
        left = [
            part_of(self._graph, load, (max(load.token_start, meeting), load.token_stop))
            for load in self._loads
            if meeting < load.token_stop <= progress.loaded_from
        ]
        lanes = {load.lane for load in self._loads}
        busy_s = {
            lane: ready.get(lane, 0.0)
            + sum(self._seconds(load) for load in left if load.lane == lane)
            for lane in lanes
        }
        slowest = max(busy_s, key=busy_s.__getitem__)
        last_s = sum(self._seconds(load) for load in left[-len(lanes) :] if load.lane != slowest)
        return max(computing_s, busy_s[slowest] + last_s)

    def _seconds(self, task: Task) -> float:
        seconds: float = self._costs.estimate(task).seconds / self._rates.get(task.lane, 1.0)
        return seconds


TOLERANCE_FRAC = 0.1
"""A lane that is this much faster or slower than assumed makes the plan stale."""

MAX_POINTS = 64
"""Meeting points that a new plan tries; more would take longer than a fraction of a second."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change of plan.

    Args:
        at_s: end of the task that showed the lane to be faster or slower than assumed.
        lane: that lane.
        rate_frac: its measured rate divided by the profile's rate; assumed from now on.
        computed_tokens: meeting point of the new plan.
    """

    at_s: float
    lane: str
    rate_frac: float
    computed_tokens: int


@dataclass(frozen=True)
class Adaptation:
    """Seconds to first token of each way of restoring, under a trace that is unknown in advance.

    Args:
        stale_s: the split planned for the whole machine, unchanged.
        replanned_s: the same, planned again at each change.
        two_ended_s: claims, which need no plan.
        foreseen_s: the best split with the trace known in advance.
    """

    stale_s: float
    replanned_s: float
    two_ended_s: float
    foreseen_s: float
    changes: tuple[Change, ...]


def adapt(planner: RestorePlanner) -> Adaptation:
    """Run the `lp` split of the whole machine under the planner's trace, with changes of plan."""
    unaware = RestorePlanner(
        planner.model, planner.hardware, planner.request, ALWAYS, planner.engine
    )
    split = unaware.choice("lp").split
    tokens = planner.request.cached_tokens if split is None else split.computed_tokens[0]
    stale = _run(planner, tokens, planner.availability, None, 0.0)
    timeline, changes = _replanned(planner, tokens, stale)
    return Adaptation(
        stale.makespan_s,
        timeline.makespan_s,
        planner.choice("two-ended").ttft_s,
        planner.choice("lp").ttft_s,
        changes,
    )


def _run(
    planner: RestorePlanner, tokens: int, trace: Availability, so_far: Timeline | None, now_s: float
) -> Timeline:
    """The run that goes on from `so_far` at `now_s` with this split."""
    graph = planner.graph(RestoreSplit.even(planner.model, tokens))
    begun = set() if so_far is None else {span.task.id for span in _begun(so_far, now_s)}
    release_s = {task.id: now_s for task in graph.tasks if task.id not in begun}
    return simulate(graph, planner.hardware, planner.engine, trace, release_s)


def _begun(timeline: Timeline, now_s: float) -> list[Span]:
    return [span for span in timeline.spans if span.start_s < now_s and span.duration_s > 0]


def _replanned(
    planner: RestorePlanner, tokens: int, timeline: Timeline
) -> tuple[Timeline, tuple[Change, ...]]:
    assumed: dict[str, float] = {}
    changes: list[Change] = []
    now_s = 0.0
    while (found := _surprise(planner, timeline, assumed, now_s)) is not None:
        now_s, lane, assumed[found[1]] = found
        believed = _believed(planner.availability, now_s, assumed)
        runs = {
            count: _run(planner, count, believed, timeline, now_s).makespan_s
            for count in _reachable(planner, timeline, tokens, now_s)
        }
        tokens = min(runs, key=runs.__getitem__)
        timeline = _run(planner, tokens, planner.availability, timeline, now_s)
        changes.append(Change(now_s, lane, assumed[lane], tokens))
    return timeline, tuple(changes)


def _surprise(
    planner: RestorePlanner, timeline: Timeline, assumed: dict[str, float], after_s: float
) -> tuple[float, str, float] | None:
    """(end, lane, rate) of the first task after a time whose rate differs from the assumed one."""
    costs = CostModel(planner.hardware, planner.model, planner.request)
    for span in sorted(timeline.spans, key=lambda span: span.end_s):
        lane = span.task.lane
        if span.end_s <= after_s or span.duration_s <= 0.0:
            continue
        if span.task.token_start >= planner.request.cached_tokens:
            return None  # the tokens that are not cached: nothing is left to plan
        rate_frac = costs.estimate(span.task).seconds / span.duration_s
        if abs(rate_frac / assumed.get(lane, 1.0) - 1.0) > TOLERANCE_FRAC:
            return span.end_s, lane, rate_frac
    return None


def _believed(trace: Availability, now_s: float, assumed: dict[str, float]) -> Availability:
    """The availability so far, then the assumed one."""
    past = tuple(step for step in trace.steps if step.start_s < now_s)
    return replace(trace, steps=(*past, Step(now_s, tuple(assumed.items()))))


def _reachable(planner: RestorePlanner, timeline: Timeline, tokens: int, now_s: float) -> list[int]:
    """Meeting points that discard no finished or running task."""
    begun = _begun(timeline, now_s)
    cached, request = planner.request.cached_tokens, planner.request
    computed = max((s.task.token_stop for s in begun if s.task.lane == COMPUTE), default=0)
    loaded = min((s.task.token_start for s in begun if s.task.lane != COMPUTE), default=cached)
    if computed % request.step_tokens:  # the last step was cut where the loads were to begin
        return [tokens]
    unit = min(request.io_chunk_tokens, request.step_tokens)
    coarse = unit * max(1, (loaded - computed) // unit // MAX_POINTS)
    counts = {*range(computed, loaded + 1, coarse), tokens}
    return sorted(count for count in counts if computed <= count <= loaded)
