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

from planner.decode.planner import DecodePlanner
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
    planner = DecodePlanner(model, hardware, job, schedule)
    most = max(job.context_tokens(step) for step in range(job.gen_tokens))
    counts = range(job.prompt_tokens + 1)
    timelines = [planner.simulate(uniform(model, job, count)) for count in counts]
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
