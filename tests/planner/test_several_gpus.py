"""Identical decoders on several GPUs: shares of an uplink, hand-computed timelines, plans."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import (
    both_engines,
    examples,
    graph,
    machine,
    make_plan,
    models,
    task,
    times,
    tiny_model,
    unit_machine,
)
from hypothesis import given
from hypothesis import strategies as st
from tiny import CPU, OPT, simulated

from hw import DecodeExecutor, open_backend, prefilled_caches, random_weights
from planner import lower
from planner.decode.lower import replicate
from sim import find_hardware, find_model, simulate
from sim.engine.sharing import streaming_share
from sim.errors import BadInput, DoesNotFit, Mismatch
from sim.graph.jobs import Workload
from sim.graph.memory import footprint
from sim.lanes import COMPUTE, D2H, H2D
from sim.machine.links import Uplink

TWO_PER_SWITCH = (Uplink("left", (0, 1), 1.0, 1.0), Uplink("right", (2, 3), 1.0, 1.0))
FOUR_GPUS = unit_machine(uplinks=TWO_PER_SWITCH)
JOB = Workload(1, 64, 1)


def copies(*seconds):
    """One copy to each GPU; each takes its seconds alone."""
    return graph(*(task(f"g{at}", H2D, s, device=at) for at, s in enumerate(seconds) if s))


def test_two_behind_a_switch_halve_it_and_the_other_switch_is_free():
    found = times(both_engines(copies(4, 4, 4), FOUR_GPUS))
    assert found == {"g0": (0, 8), "g1": (0, 8), "g2": (0, 4)}


def test_when_a_neighbour_is_done_the_other_has_the_switch_alone():
    # g0 and g1 run at half pace until g0's 2 s of work are done at 4; g1 has 4 of its 6 left.
    found = times(both_engines(copies(2, 6, 3, 3), FOUR_GPUS))
    assert found == {"g0": (0, 4), "g1": (0, 8), "g2": (0, 6), "g3": (0, 6)}


def test_a_neighbour_that_computes_leaves_the_switch_alone():
    # g1 copies only from 4 to 8: g0 has all of the switch until then, 2 of its 6 s are left at 4.
    made = graph(
        task("g0.load", H2D, 6),
        task("g1.work", COMPUTE, 4, device=1),
        task("g1.load", H2D, 2, "g1.work", device=1),
    )
    assert times(both_engines(made, FOUR_GPUS)) == {
        "g0.load": (0, 8),
        "g1.work": (0, 4),
        "g1.load": (4, 8),
    }


def test_host_memory_is_an_uplink_of_all():
    dram = (*TWO_PER_SWITCH, Uplink("dram", (0, 1, 2, 3), 1.5, 1.5))
    # Three copies: the left pair gets half each, the right one the 0.5 that memory has left.
    found = times(both_engines(copies(4, 4, 4), unit_machine(uplinks=dram)))
    assert found == {"g0": (0, 8), "g1": (0, 8), "g2": (0, 8)}


@pytest.mark.parametrize(("devices", "share"), [(1, 1.0), (2, 0.5), (4, 0.5)])
def test_the_share_of_a_device_when_all_copy(devices, share):
    for lane in (H2D, D2H):
        assert streaming_share(FOUR_GPUS, lane, devices) == share
    assert streaming_share(unit_machine(), H2D, devices) == 1.0


@given(models(3), st.integers(2, 4), st.integers(0, 20))
@examples(15)
def test_no_uplink_carries_more_bytes_than_it_can(model, devices, count):
    uplinks = tuple(
        replace(one, h2d_bytes_per_s=3e6, d2h_bytes_per_s=3e6) for one in TWO_PER_SWITCH
    )
    hardware = machine(h2d=2e6, d2h=2e6, uplinks=uplinks)
    job = Workload(2, 20, 2)
    one = lower("row", model, job, [[count] * model.n_layers] * 2)
    timeline = simulate(replicate(one, devices), hardware)
    for uplink in uplinks:
        for lane in (H2D, D2H):
            mine = [s for s in timeline.spans if s.task.device in uplink.devices]
            mine = [s for s in mine if s.task.lane == lane]
            carried = sum(span.task.bytes for span in mine)
            n_devices = len({span.task.device for span in mine})
            assert carried == n_devices * sum(t.bytes for t in one.tasks if t.lane == lane)
            if mine:
                window_s = max(s.end_s for s in mine) - min(s.start_s for s in mine)
                assert carried <= 3e6 * window_s * (1 + 1e-9)


def test_replicas_are_the_same_graph_under_other_names():
    one = lower("row", tiny_model(), JOB, [[3, 3]])
    three = replicate(one, 3)
    assert three.n_devices == 3
    assert three.tasks[: len(one.tasks)] == one.tasks
    again = [
        replace(t, id=t.id[3:], deps=tuple(dep[3:] for dep in t.deps), device=0)
        for t in three.tasks
        if t.device == 2
    ]
    assert tuple(again) == one.tasks
    assert footprint(three).device_bytes == footprint(one).device_bytes
    assert footprint(three).host_bytes == 3 * footprint(one).host_bytes


def test_decoders_that_share_nothing_take_as_long_as_one():
    alone = make_plan(tiny_model(), machine(h2d=2e6), JOB)
    four = make_plan(tiny_model(), machine(h2d=2e6), JOB, gpus=4)
    assert four.makespan_s == pytest.approx(alone.makespan_s)
    assert four.steps == alone.steps
    assert four.tokens_per_s == pytest.approx(4 * alone.tokens_per_s)


def test_the_plan_changes_when_the_neighbour_streams():
    hardware, model = find_hardware("kvpr-a100-4gpu"), find_model("opt-6.7b")
    job = Workload(32, 1024, 1)
    alone, two = (make_plan(model, hardware, job, gpus=gpus) for gpus in (1, 2))
    four = make_plan(model, hardware, job, gpus=4)
    assert sum(two.steps[0].recomputed_tokens) > sum(alone.steps[0].recomputed_tokens)
    assert two.makespan_s > 1.2 * alone.makespan_s
    assert four.makespan_s == pytest.approx(two.makespan_s)
    assert alone.makespan_s <= two.lower_bound_s * 1.001
    # The split that was best alone is worse beside a neighbour than the one planned for it.
    split = [step.recomputed_tokens for step in alone.steps]
    kept = simulate(replicate(lower("row", model, job, split), 2), hardware)
    assert two.makespan_s < kept.makespan_s


def test_behind_a_switch_it_is_the_switch_that_limits():
    hardware, model = find_hardware("kvpr-a100-4gpu"), find_model("opt-6.7b")
    plan = make_plan(model, hardware, Workload(32, 1024, 1), "load-all", gpus=2)
    assert plan.bottleneck.startswith(
        "the shared uplink is the bottleneck: 10 % more bandwidth saves 9."
    )
    alone = make_plan(model, hardware, Workload(32, 1024, 1), "load-all")
    assert alone.bottleneck.startswith(
        "the host-to-GPU link and its switch together are the bottleneck: 10 % more bandwidth of "
        "both saves 9."
    ), "link and switch are equally fast"


def test_host_memory_must_hold_the_cache_of_all():
    hardware, model = find_hardware("kvpr-a100-4gpu"), find_model("opt-6.7b")
    job = Workload(32, 1024, 1)
    one = footprint(make_plan(model, hardware, job, "load-all").lower())
    small = replace(hardware, memory=replace(hardware.memory, host_bytes=2.5 * one.host_bytes))
    assert make_plan(model, small, job, "load-all", gpus=2).gpus == 2
    with pytest.raises(DoesNotFit, match="host memory"):
        make_plan(model, small, job, "load-all", gpus=3)


def test_a_device_runs_plans_for_one_gpu():
    job = Workload(2, 8, 1)
    weights = random_weights(OPT, 0, CPU)
    made = replicate(lower("row", OPT, job, [[3] * OPT.n_layers]), 2)
    with open_backend("cpu") as backend:
        caches = prefilled_caches(weights, job, 1, backend)
        with pytest.raises(Mismatch, match="2 GPUs"):
            DecodeExecutor(simulated(made), weights, caches, (), backend)


def test_more_gpus_than_a_switch_serves_are_refused():
    hardware, model = find_hardware("kvpr-a100-4gpu"), find_model("opt-6.7b")
    with pytest.raises(BadInput, match="uplinks of kvpr-a100-4gpu serve 4 GPUs"):
        make_plan(model, hardware, Workload(2, 64, 1), "load-all", gpus=5)


@pytest.mark.parametrize("size", [{"gpus": 10**6}, {"n_batches": 2**20}, {"gen_tokens": 10**6}])
def test_a_job_too_large_to_plan_is_refused_by_its_number_of_tasks(size):
    gpus = size.pop("gpus", 1)
    job = Workload(1, 8, **{"gen_tokens": 1, **size})
    model = replace(tiny_model(), max_positions=2**21)
    with pytest.raises(BadInput, match="tasks and at most 1,000,000 are planned"):
        make_plan(model, machine(), job, schedule="column", gpus=gpus)


def test_no_gpu_is_refused():
    with pytest.raises(BadInput, match="gpus"):
        make_plan(tiny_model(), machine(), JOB, gpus=0)
