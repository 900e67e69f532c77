"""Plans of what users would compare with: resident cache, transformers' offloaded cache."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import machine, make_plan, tiny_model
from tiny import CPU, LLAMA, OPT, simulated

from hw import DecodeExecutor, open_backend, prefilled_caches, random_weights, resident_decode
from planner import DecodePlan
from planner.decode.other_systems import OTHER_SYSTEMS, RUNTIME_SYSTEMS, other_system_graph
from sim import simulate
from sim.errors import BadInput
from sim.graph.jobs import Workload
from sim.graph.memory import footprint
from sim.lanes import COMPUTE

JOB = Workload(batch_size=2, prompt_tokens=8, gen_tokens=3)


def test_a_resident_cache_moves_nothing_and_fills_the_device():
    graph = make_plan(tiny_model(n_layers=5), machine(), JOB, "resident").lower()
    assert {task.lane for task in graph.tasks} == {COMPUTE}
    need = footprint(graph)
    assert need.kv_slot_bytes == need.host_kv_bytes
    timeline = simulate(graph, machine())
    assert timeline.makespan_s == pytest.approx(sum(timeline.duration_s))


def test_the_offloaded_cache_moves_everything_both_ways_every_step():
    model = tiny_model(n_layers=5)
    graph = other_system_graph("hf-offloaded", model, JOB)
    one_s = JOB.batch_size * model.kv_token_bytes * model.n_layers
    loaded = sum(task.bytes for task in graph.tasks if task.op == "load_kv")
    stored = sum(task.bytes for task in graph.tasks if task.op == "store_kv")
    assert loaded == one_s * (8 + 9 + 10)
    assert stored == one_s * (9 + 10 + 11)


def test_attention_waits_for_the_layer_s_way_back():
    graph = other_system_graph("hf-offloaded", tiny_model(), JOB)
    tasks = {task.id: task for task in graph.tasks}
    assert tasks["s0.L0.attention"].deps == ("s0.L0.store_kv",)
    assert set(tasks["s0.L0.store_kv"].deps) == {"s0.L0.qkv", "s0.L0.load_kv"}
    assert "s0.L0.store_kv" in tasks["s1.L0.load_kv"].deps


def test_a_slow_way_back_is_never_hidden():
    model, hardware = tiny_model(n_layers=6), machine(h2d=1e6, d2h=1e6)
    plan = make_plan(model, hardware, JOB, "hf-offloaded")
    graph = plan.lower()
    stores_s = sum(task.bytes for task in graph.tasks if task.op == "store_kv") / 1e6
    assert plan.makespan_s >= stores_s
    assert plan.makespan_s > plan.baselines["load-all"]


@pytest.mark.parametrize("policy", ["resident", *RUNTIME_SYSTEMS])
@pytest.mark.parametrize("model", [OPT, LLAMA], ids=lambda model: model.name)
def test_a_rival_computes_what_a_resident_decode_does(policy, model):
    weights = random_weights(model, 0, CPU)
    graph = make_plan(model, machine(dtype="float32"), JOB, policy).lower()
    with open_backend("cpu") as backend:
        caches = prefilled_caches(weights, JOB, 1, backend)
        references = [resident_decode(weights, cache, JOB) for cache in caches]
        executor = DecodeExecutor(simulated(graph), weights, caches, references, backend)
        for _ in range(2):
            executor.run()
            assert executor.check()["tokens_equal"] is True


@pytest.mark.parametrize("policy", ["resident", *OTHER_SYSTEMS])
def test_a_rival_s_plan_comes_back_from_disk_and_is_listed_with_its_makespan(tmp_path, policy):
    plan = make_plan(tiny_model(), machine(), JOB, policy)
    plan.save(tmp_path / "plan.json")
    again = DecodePlan.load(tmp_path / "plan.json")
    assert again.simulated_graph().sha256 == plan.graph_sha256
    assert again.makespan_s == again.baselines[policy]
    kept = {step.resident_tokens[0] for step in again.steps}
    assert kept == ({8, 9, 10} if policy == "resident" else {0})


def test_a_resident_cache_that_does_not_fit_is_not_listed():
    model, hardware = tiny_model(n_layers=16), machine()
    budget = footprint(make_plan(model, hardware, JOB, "load-all").lower()).device_bytes
    small = replace(hardware, memory=replace(hardware.memory, device_bytes=budget + 500))
    assert "resident" in make_plan(model, hardware, JOB).baselines
    assert "resident" not in make_plan(model, small, JOB).baselines


def test_rivals_have_a_schedule_of_their_own():
    with pytest.raises(BadInput, match="leave --schedule at row"):
        make_plan(tiny_model(), machine(), JOB, "hf-offloaded", "column")
    with pytest.raises(BadInput, match="decodes one batch"):
        other_system_graph("hf-offloaded", tiny_model(), replace(JOB, n_batches=2))
