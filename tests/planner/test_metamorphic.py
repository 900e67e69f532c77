"""What must hold when an input changes, whatever the makespan is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import bent_machines, dispatch, examples, models, slowed, splits, workloads
from hypothesis import given
from hypothesis import strategies as st

from planner.decode.lower import lower
from planner.decode.planner import DecodePlanner
from planner.decode.problem import DecodeProblem
from sim.cost.model import CostModel
from sim.engine.api import simulate
from sim.lanes import COMPUTE, D2H, H2D, LANES
from sim.machine.links import Uplink

JOBS = workloads(max_prompt=24)
PARTS = st.sampled_from(["h2d", "d2h", "link", "compute"])
PAUSES = st.sampled_from(
    [{}, {"gap_s": 1e-4, "task_s": 1e-4, "kernel_s": 5e-5, "handover_s": 2e-4}]
)
ROUNDING = 1 + 1e-9


@st.composite
def cases(draw):
    """A lowered job and a machine with host costs and pauses."""
    model, job = draw(models(5)), draw(JOBS)
    hardware = replace(draw(bent_machines()), dispatch=dispatch(**draw(PAUSES)))
    return lower("row", model, job, draw(splits(model, job))), hardware


@given(cases(), PARTS, st.floats(1.0, 10.0))
@examples(60)
def test_a_faster_part_never_makes_the_same_split_slower(case, part, factor):
    graph, hardware = case
    faster = simulate(graph, hardware.with_faster(part, factor))
    assert faster.makespan_s <= simulate(graph, hardware).makespan_s * ROUNDING


@given(cases(), st.sampled_from(["gap_s", "handover_s", "task_s", "kernel_s", "copy_s"]))
@examples(60)
def test_a_dearer_dispatch_never_makes_the_same_split_faster(case, name):
    graph, hardware = case
    dearer = replace(hardware.dispatch, **{name: getattr(hardware.dispatch, name) + 1e-4})
    slower = simulate(graph, replace(hardware, dispatch=dearer))
    assert slower.makespan_s >= simulate(graph, hardware).makespan_s / ROUNDING


@given(cases(), st.sampled_from([1.0, 0.5]))
@examples(60)
def test_no_lane_works_longer_than_the_makespan(case, rate):
    graph, hardware = case
    shared = replace(hardware, interference=(slowed(H2D, D2H, rate), slowed(COMPUTE, H2D, rate)))
    timeline = simulate(graph, shared)
    for lane in LANES:
        assert timeline.busy_s(lane) <= timeline.makespan_s * ROUNDING


@given(cases())
@examples(60)
def test_without_pauses_some_lane_always_works(case):
    graph, hardware = case
    timeline = simulate(graph, replace(hardware, dispatch=dispatch()))
    assert timeline.makespan_s <= sum(timeline.duration_s) * ROUNDING
    assert timeline.breakdown.idle_s == pytest.approx(0, abs=1e-9 * timeline.makespan_s)


@given(cases())
@examples(60)
def test_no_task_is_faster_than_alone_and_without_sharing_none_is_slower(case):
    graph, hardware = case
    costs = CostModel(hardware, graph.model, graph.workload)
    alone = [costs.estimate(one).seconds for one in graph.tasks]
    assert simulate(graph, hardware).duration_s == pytest.approx(alone, rel=1e-9)
    shared = replace(
        hardware,
        interference=(slowed(H2D, D2H, 0.6), slowed(COMPUTE, H2D, 0.9)),
        uplinks=(Uplink("switch", (0,), 1e6, 1e6),),
    )
    for found, least in zip(simulate(graph, shared).duration_s, alone, strict=True):
        assert found >= least / ROUNDING


@given(models(5), bent_machines(), JOBS, st.integers(1, 20), st.data())
@examples(60)
def test_a_longer_context_with_the_same_recomputed_tokens_is_never_faster(
    model, hardware, job, more, data
):
    # Recomputing a generated token would cost a store that a prompt token does not need.
    split = data.draw(splits(model, replace(job, gen_tokens=1))) * job.gen_tokens
    longer = replace(job, prompt_tokens=job.prompt_tokens + more)
    short_s = simulate(lower("row", model, job, split), hardware).makespan_s
    long_s = simulate(lower("row", model, longer, split), hardware).makespan_s
    assert long_s >= short_s / ROUNDING


@given(models(5), bent_machines(), JOBS, st.data())
@examples(40)
def test_one_more_step_takes_longer_than_the_steps_before_it(model, hardware, job, data):
    longer = replace(job, gen_tokens=job.gen_tokens + 1)
    split = data.draw(splits(model, longer))
    graphs = lower("row", model, job, split[:-1]), lower("row", model, longer, split)
    before, after = (simulate(graph, hardware) for graph in graphs)
    assert after.makespan_s > before.makespan_s / ROUNDING


@given(models(5), bent_machines(), workloads(max_gen=2, max_prompt=24), PARTS)
@examples(25)
def test_the_bound_falls_when_a_part_gets_faster(model, hardware, job, part):
    machines = hardware, hardware.with_faster(part, 2.0)
    planners = [DecodePlanner(DecodeProblem(model, one, job)) for one in machines]
    base_s, faster_s = (one.lower_bound_s() for one in planners)
    assert base_s / 2 * (1 - 1e-6) <= faster_s <= base_s * (1 + 1e-6)
