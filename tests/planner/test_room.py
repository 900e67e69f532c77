"""Memory rows of the LP: what does not fit is not chosen, what fits as well as can be."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import (
    examples,
    machine,
    make_plan,
    models,
    straight_machines,
    tiny_model,
    uniform,
    workloads,
)
from hypothesis import assume, given
from hypothesis import strategies as st

from planner.decode.lower import lower
from planner.decode.planner import DecodePlanner
from planner.decode.problem import DecodeProblem
from sim.engine.api import simulate
from sim.errors import DoesNotFit
from sim.graph.jobs import Workload
from sim.graph.memory import footprint


def limited(hardware, **memory):
    return replace(hardware, memory=replace(hardware.memory, **memory))


@given(
    models(3),
    straight_machines(),
    workloads(max_gen=2),
    st.floats(0.05, 1.0),
    st.floats(0.0, 1.0),
    st.sampled_from(["row", "column"]),
)
@examples(40)
def test_no_uniform_split_that_fits_beats_the_plan(model, hardware, job, host, device, schedule):
    problem = DecodeProblem(model, hardware, job, schedule)
    most = max(job.context_tokens(step) for step in range(job.gen_tokens))
    counts = range(job.prompt_tokens + 1)
    timelines = [problem.simulate(uniform(model, job, count)) for count in counts]
    needs = [footprint(timeline.graph) for timeline in timelines]
    devices, hosts = (
        [getattr(one, name) for one in needs] for name in ("device_bytes", "host_bytes")
    )
    tight = limited(
        hardware,
        device_bytes=min(devices) + device * (max(devices) - min(devices)),
        host_bytes=min(hosts) + host * (max(hosts) - min(hosts)),
    )

    def fits(need):
        return (
            need.device_bytes <= tight.memory.device_bytes
            and need.host_bytes <= tight.memory.host_bytes
        )

    fitting = [one.makespan_s for one, need in zip(timelines, needs, strict=True) if fits(need)]
    assume(fitting)
    plan = make_plan(model, tight, job, schedule=schedule)
    assert fits(footprint(plan.lower()))
    assert plan.lower_bound_s <= plan.makespan_s * (1 + 1e-9)
    one_token_s = model.n_layers * job.gen_tokens * (timelines[0].makespan_s / most)
    assert plan.makespan_s <= min(fitting) * 1.005 + one_token_s


def test_a_host_too_small_for_k_and_v_recomputes_more():
    model, job = tiny_model(n_layers=4), Workload(2, 100, 1)
    hardware = machine(h2d=2e6, flops_per_s=2e6)
    free = make_plan(model, hardware, job)
    assert free.steps[0].recomputed_tokens < (20,) * 4
    # K and V of 101 tokens take 32 bytes each; X of those that are recomputed instead takes 16
    host_bytes = 2 * 4 * (101 * 32 - 50 * 16)
    plan = make_plan(model, limited(hardware, host_bytes=host_bytes), job)
    assert sum(plan.steps[0].recomputed_tokens) == pytest.approx(4 * 50, abs=4)
    assert footprint(plan.lower()).host_bytes <= host_bytes
    assert plan.makespan_s > free.makespan_s
    with pytest.raises(DoesNotFit, match="host memory"):
        make_plan(model, limited(hardware, host_bytes=2 * 4 * 101 * 16), job)


def test_a_device_without_room_for_x_recomputes_less():
    model, job = tiny_model(n_layers=4), Workload(2, 100, 1)
    hardware = machine(h2d=2e6, flops_per_s=1e9)
    free = make_plan(model, hardware, job)
    assert min(free.steps[0].recomputed_tokens) > 60
    loaded = footprint(make_plan(model, hardware, job, "load-all").lower())
    budget = loaded.device_bytes + 2 * 2 * 40 * 16
    plan = make_plan(model, limited(hardware, device_bytes=budget), job)
    assert max(plan.steps[0].recomputed_tokens) == 40
    assert plan.makespan_s < plan.baselines["load-all"]
    with pytest.raises(DoesNotFit, match="device memory"):
        make_plan(model, limited(hardware, device_bytes=loaded.device_bytes - 1), job)


def pinched(hardware, model, job, count, spare_bytes=0.0):
    """The machine with the device memory of a uniform split plus `spare_bytes`, and its host's."""
    need = footprint(lower("row", model, job, uniform(model, job, count)))
    spare = {"device_bytes": need.device_bytes + spare_bytes, "host_bytes": need.host_bytes}
    return limited(hardware, **spare)


@pytest.mark.parametrize(("prompt", "count"), [(1, 1), (2, 1), (3, 3)])
def test_a_single_layer_stages_x_in_one_slot(prompt, count):
    model, job = tiny_model(n_layers=1), Workload(1, prompt, 1)
    tight = pinched(machine(flops_per_s=3e7, h2d=2e6), model, job, count)
    plan = make_plan(model, tight, job)
    given_s = simulate(lower("row", model, job, uniform(model, job, count)), tight).makespan_s
    assert plan.lower_bound_s <= plan.makespan_s <= given_s * (1 + 1e-9)


def test_no_count_is_rounded_up_to_more_x_than_the_device_stages():
    model, job = tiny_model(n_layers=2), Workload(1, 17, 1)
    most_of_a_token = 0.6 * 2 * model.x_token_bytes
    tight = pinched(machine(flops_per_s=3e7, h2d=2e6), model, job, 1, most_of_a_token)
    assert make_plan(model, tight, job).steps[0].recomputed_tokens == (1, 1)


def test_parts_of_tokens_that_a_small_host_asks_for_are_rounded_up():
    model, job = tiny_model(n_layers=4), Workload(1, 17, 1)
    tight = pinched(machine(flops_per_s=1e5, h2d=1e8), model, job, 1)
    host_bytes = tight.memory.host_bytes + 3 * model.x_token_bytes
    plan = make_plan(model, limited(tight, host_bytes=host_bytes), job)
    assert 1 <= sum(plan.steps[0].recomputed_tokens) <= 4
    assert footprint(plan.lower()).host_bytes <= host_bytes


def test_a_split_that_stages_more_x_in_a_single_slot_is_within_the_bound():
    """Layers 0, 2 and 4 share a slot. The other slot stages nothing, so theirs may be longer."""
    model, job = tiny_model(n_layers=5), Workload(1, 20, 1)
    tight = pinched(machine(flops_per_s=3e7, h2d=2e6), model, job, 0, 3 * model.x_token_bytes)
    problem = DecodeProblem(model, tight, job)
    alternating = problem.simulate([[3, 0, 3, 0, 3]])
    assert problem.fits(alternating.graph)
    assert DecodePlanner(problem).lower_bound_s() <= alternating.makespan_s * (1 + 1e-9)
