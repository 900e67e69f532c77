"""A static split that is planned again while it runs, when the machine is not as assumed.

The plan knows only what its own finished tasks took. Steps come from the front and loads from the
back whatever the split, so that moving it changes nothing that has been done: what a run with
changes of plan does is the graph of its last split, in which nothing starts before it was planned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from planner.restore.planning import RestorePlanner
from planner.restore.split import RestoreSplit
from sim.availability import ALWAYS, Availability, Step
from sim.engine import simulate
from sim.graph import COMPUTE
from sim.restore_cost import RestoreCosts
from sim.timeline import Span, Timeline

TOLERANCE_FRAC = 0.1
"""A lane that is this much faster or slower than assumed makes the plan stale."""

MOST_POINTS = 64
"""Meeting points that a new plan looks at, so that it is made in a fraction of a second."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change of plan.

    Args:
        at_s: when a task ended whose lane was not as fast as assumed.
        lane: that lane.
        rate_frac: its measured rate over that of the profile, assumed from now on.
        computed_tokens: where compute and loads are to meet by the new plan.
    """

    at_s: float
    lane: str
    rate_frac: float
    computed_tokens: int


@dataclass(frozen=True)
class Adaptation:
    """What a trace that nobody foresaw does to each way of restoring, in seconds to first token.

    Args:
        stale_s: the split planned for the whole machine, kept.
        replanned_s: the same, planned again at each change.
        two_ended_s: claims, which need no plan.
        foreseen_s: the best split for somebody who knew the trace.
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
    """When the first task after a time ended that was off what is assumed, its lane and rate."""
    costs = RestoreCosts(planner.hardware, planner.model, planner.request)
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
    """What has been until now, and from now on what is assumed."""
    past = tuple(step for step in trace.steps if step.start_s < now_s)
    return replace(trace, steps=(*past, Step(now_s, tuple(assumed.items()))))


def _reachable(planner: RestorePlanner, timeline: Timeline, tokens: int, now_s: float) -> list[int]:
    """Meeting points that undo nothing done or begun: whole steps, chunks of loads, the old one."""
    begun = _begun(timeline, now_s)
    cached, request = planner.request.cached_tokens, planner.request
    computed = max((s.task.token_stop for s in begun if s.task.lane == COMPUTE), default=0)
    loaded = min((s.task.token_start for s in begun if s.task.lane != COMPUTE), default=cached)
    if computed % request.step_tokens:  # the last step was cut where the loads were to begin
        return [tokens]
    unit = min(request.io_chunk_tokens, request.step_tokens)
    coarse = unit * max(1, (loaded - computed) // unit // MOST_POINTS)
    counts = {*range(computed, loaded + 1, coarse), tokens}
    return sorted(count for count in counts if computed <= count <= loaded)
