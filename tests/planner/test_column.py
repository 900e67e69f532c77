"""The column schedule: batches share each loaded layer, planned, simulated and on a device."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from builders import (
    bent_machines,
    examples,
    machine,
    make_plan,
    models,
    splits,
    straight_machines,
    tiny_model,
)
from hypothesis import given
from hypothesis import strategies as st
from tiny import LLAMA, OPT, simulated

from hw import (
    DecodeExecutor,
    check_graph_fits,
    prefilled_caches,
    random_weights,
    resident_decode,
)
from hw.backends.base import Memory
from planner import Job, PlanOptions, choose_schedule, lower
from planner.decode.planner import DecodePlanner
from planner.decode.problem import DecodeProblem
from sim import find_hardware, find_model, simulate
from sim.errors import BadInput, DoesNotFit, Mismatch
from sim.graph.jobs import Workload
from sim.graph.memory import all_rows, footprint
from sim.lanes import COMPUTE, H2D

JOB = Workload(batch_size=2, prompt_tokens=8, gen_tokens=3, n_batches=3)
column_jobs = st.builds(
    Workload, st.integers(1, 3), st.integers(1, 24), st.integers(1, 3), st.integers(1, 3)
)


def uniform(model, job, count):
    return [
        [min(count, job.context_tokens(step))] * model.n_layers for step in range(job.gen_tokens)
    ]


def lane_order(graph, lane):
    return [task.id for task in graph.tasks if task.lane == lane]


def test_each_lane_works_layer_by_layer_and_batch_by_batch():
    graph = lower("column", tiny_model(), Workload(1, 8, 1, 2), [[3, 0]])
    assert lane_order(graph, H2D) == [
        "s0.L0.load_kv_weights",
        "s0.L0.b0.load_x",
        "s0.L0.load_weights",
        "s0.L0.b0.load_kv",
        "s0.L0.b1.load_x",
        "s0.L0.b1.load_kv",
        "s0.L1.load_kv_weights",
        "s0.L1.load_weights",
        "s0.L1.b0.load_kv",
        "s0.L1.b1.load_kv",
    ]
    assert lane_order(graph, COMPUTE) == [
        *("s0.b0.embed", "s0.b1.embed"),
        *(f"s0.L0.b{b}.{op}" for b in (0, 1) for op in ("recompute", "qkv", "attention", "mlp")),
        *(f"s0.L1.b{b}.{op}" for b in (0, 1) for op in ("qkv", "attention", "mlp")),
        *("s0.b0.head", "s0.b1.head"),
    ]


def test_recomputation_waits_for_the_kv_weights_and_not_for_the_others():
    graph = lower("column", tiny_model(), Workload(1, 8, 1, 2), [[3, 3]])
    deps = {task.id: set(task.deps) for task in graph.tasks}
    recompute = deps["s0.L0.b0.recompute"]
    assert {"s0.L0.load_kv_weights", "s0.L0.b0.load_x"} <= recompute
    assert "s0.L0.load_weights" not in recompute
    assert {"s0.L0.load_kv_weights", "s0.L0.load_weights"} <= deps["s0.L0.b0.qkv"]


def test_a_weight_slot_is_filled_again_when_the_last_batch_is_through():
    model = tiny_model(n_layers=3)
    graph = lower("column", model, Workload(1, 8, 2, 2), uniform(model, Workload(1, 8, 2, 2), 3))
    tasks = {task.id: task for task in graph.tasks}
    third = tasks["s0.L2.load_kv_weights"]
    assert third.slot == tasks["s0.L0.load_kv_weights"].slot
    assert "s0.L0.b1.mlp" in third.deps
    # An odd number of layers: the next step's first layer comes into the other slot.
    assert tasks["s1.L0.load_weights"].slot == 1
    assert "s0.L1.b1.mlp" in tasks["s1.L0.load_weights"].deps


def test_weights_are_loaded_once_a_step_and_kv_once_a_batch():
    model = tiny_model()
    split = uniform(model, JOB, 3)
    graph = lower("column", model, JOB, split)
    loaded = sum(task.bytes for task in graph.tasks if task.op.endswith("weights"))
    assert loaded == JOB.gen_tokens * model.n_layers * model.layer_weight_bytes
    kv = sum(task.bytes for task in graph.tasks if task.op == "load_kv")
    rows = sum(JOB.context_tokens(step) - 3 for step in range(JOB.gen_tokens))
    sequences = JOB.batch_size * JOB.n_batches
    assert kv == sequences * model.n_layers * rows * model.kv_token_bytes


def test_memory_holds_two_layers_on_the_device_and_all_on_the_host():
    model = tiny_model(n_layers=4)
    row = footprint(lower("row", model, Workload(2, 8, 3), uniform(model, JOB, 3)))
    column = footprint(lower("column", model, JOB, uniform(model, JOB, 3)))
    assert row.weight_bytes - column.weight_bytes == 2 * model.layer_weight_bytes
    assert column.host_weight_bytes == 4 * model.layer_weight_bytes
    assert column.host_kv_bytes == 3 * row.host_kv_bytes


@given(models(4), straight_machines(), column_jobs)
@examples(25)
def test_the_lp_s_optimum_is_the_simulated_makespan(model, hardware, job):
    plan = make_plan(model, hardware, job, "lp", "column")
    assert plan.schedule == "column"
    assert plan.lp_objective_s == pytest.approx(plan.makespan_s, rel=1e-6)
    assert plan.lower_bound_s <= plan.makespan_s * (1 + 1e-9)
    moving = [value for name, value in plan.baselines.items() if name != "resident"]
    assert plan.makespan_s <= min(moving) * (1 + 1e-12)


@given(models(4), bent_machines(), column_jobs, st.data())
@examples(25)
def test_no_split_beats_the_bound(model, hardware, job, data):
    planner = DecodePlanner(DecodeProblem(model, hardware, job, "column"))
    split = data.draw(splits(model, job))
    assert planner.lower_bound_s() <= planner.problem.simulate(split).makespan_s * (1 + 1e-9)


@pytest.mark.parametrize("model", [OPT, LLAMA], ids=lambda model: model.name)
@pytest.mark.parametrize("count", [0, 5, 1000])
@pytest.mark.parametrize(("n_batches", "kv_bits"), [(1, None), (3, None), (3, 8), (3, 4)])
def test_every_batch_decodes_as_if_alone(backend, model, count, n_batches, kv_bits):
    job = Workload(2, 8, 3, n_batches, kv_bits)
    weights = random_weights(model, 0, backend.device)
    caches = prefilled_caches(weights, job, 1, backend)
    references = [resident_decode(weights, cache, job) for cache in caches]
    graph = lower("column", model, job, uniform(model, job, count))
    executor = DecodeExecutor(simulated(graph), weights, caches, references, backend)
    executor.run()
    assert executor.check()["tokens_equal"] is True
    assert len(executor.tokens) == n_batches
    if n_batches > 1:
        assert not executor.logits[0].equal(executor.logits[1])


def test_weights_really_come_through_the_slots(backend):
    job = Workload(2, 8, 2, 2)
    weights = random_weights(OPT, 0, backend.device)
    caches = prefilled_caches(weights, job, 1, backend)
    references = [resident_decode(weights, cache, job) for cache in caches]
    graph = lower("column", OPT, job, uniform(OPT, job, 4))
    executor = DecodeExecutor(simulated(graph), weights, caches, references, backend)
    for layer in weights.layers:  # what the device still holds of them is not used
        for linear in (layer.attention.qkv, layer.attention.out, layer.ffn.up, layer.ffn.down):
            linear.weight.fill_(torch.nan)
    executor.run()
    assert executor.check()["tokens_equal"] is True


def test_a_device_must_hold_all_weights_for_the_reference():
    graph = lower("column", OPT, JOB, uniform(OPT, JOB, 4))
    need = footprint(graph, all_rows(OPT, JOB))
    layers = OPT.n_layers * OPT.layer_weight_bytes

    def with_room(device_bytes):
        memory = Memory(device_bytes, need.host_bytes)
        return SimpleNamespace(kind="cpu", memory=lambda: memory)

    check_graph_fits(graph, with_room(need.device_bytes + layers))
    with pytest.raises(DoesNotFit, match="device memory"):
        check_graph_fits(graph, with_room(need.device_bytes + layers - 1))


def test_as_many_caches_as_batches(backend):
    weights = random_weights(OPT, 0, backend.device)
    caches = prefilled_caches(weights, JOB, 1, backend)
    graph = lower("column", OPT, JOB, uniform(OPT, JOB, 4))
    with pytest.raises(Mismatch, match="decodes 3 batches, there are 2 caches"):
        DecodeExecutor(simulated(graph), weights, caches[:2], (), backend)


def test_row_takes_one_batch():
    with pytest.raises(BadInput, match="n_batches"):
        make_plan(tiny_model(), machine(), JOB, schedule="row")


def test_auto_takes_what_makes_more_tokens_and_says_so():
    model, hardware = tiny_model(), machine()
    best, reason = choose_schedule(Job(model, hardware, JOB), PlanOptions())
    row = make_plan(model, hardware, Workload(2, 8, 3))
    column = make_plan(model, hardware, JOB, schedule="column")
    assert best.tokens_per_s == max(row.tokens_per_s, column.tokens_per_s)
    assert best == make_plan(model, hardware, JOB, schedule="auto")
    assert reason.startswith(f"{best.schedule} schedule: row makes {row.tokens_per_s:,.1f}")


def test_auto_takes_what_fits():
    job = Workload(32, 512, 1, 8)
    hardware = find_hardware("kvpr-a100")
    best, reason = choose_schedule(
        Job(find_model("opt-30b"), hardware, job), PlanOptions(policy="load-all")
    )
    assert best.schedule == "column"
    assert "row does not fit" in reason
    with pytest.raises(DoesNotFit):
        make_plan(find_model("llama-3.1-70b"), hardware, Workload(512, 8192, 1, 8), None, "auto")


def test_column_pays_for_a_model_that_must_be_loaded_anyway():
    hardware = find_hardware("kvpr-a100")
    model = find_model("opt-30b")
    rates = [
        make_plan(model, hardware, Workload(16, 256, 1, n), "load-all", "column").tokens_per_s
        for n in (1, 2, 4)
    ]
    assert rates == sorted(rates)
    assert rates[2] > 1.5 * rates[0]


def test_the_simulated_graph_keeps_every_dep():
    graph = lower("column", tiny_model(), JOB, uniform(tiny_model(), JOB, 3))
    timeline = simulate(graph, machine())
    for at, deps in enumerate(graph.dep_indices):
        assert all(timeline.end_s[dep] <= timeline.start_s[at] for dep in deps)
