"""FlexGen's loop: a host copy before each layer, its load beside it, and a barrier behind it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import (
    bent_machines,
    examples,
    machine,
    make_plan,
    models,
    times,
    tiny_model,
    workloads,
)
from hypothesis import given
from hypothesis import strategies as st
from tiny import CPU, LLAMA, simulated

from hw import DecodeExecutor, open_backend, prefilled_caches, random_weights, resident_decode
from hw.backends.cuda import cuda_available
from planner.decode.other_systems import other_system_graph
from sim import replay, simulate
from sim.errors import BadInput, Mismatch, NotMeasured, WrongNumbers
from sim.graph.jobs import Workload
from sim.graph.memory import footprint
from sim.lanes import HOST

JOB = Workload(batch_size=2, prompt_tokens=8, gen_tokens=2)
OP_S = {
    "embed": 1.0,
    "qkv": 1.0,
    "attention": 2.0,
    "mlp": 3.0,
    "head": 1.0,
    "stage_kv": 5.0,
    "load_kv": 7.0,
    "store_kv": 2.0,
}


def turn(task, n_layers: int) -> tuple[int, int]:
    """Step and place in it of the layer that a task runs beside: -1 embedding, n_layers head."""
    outside = {"embed": -1, "head": n_layers}
    ahead = task.op in ("stage_kv", "load_kv")
    return task.step, outside.get(task.op, task.layer - ahead)


def assert_barriers(timeline, resolution_s: float = 1e-12) -> None:
    """Nothing starts before all of the turn before has ended."""
    cold: dict[tuple[int, int], list] = {}
    for span in timeline.spans:
        cold.setdefault(turn(span.task, timeline.graph.model.n_layers), []).append(span)
    ended_s = 0.0
    for key in sorted(cold):
        assert min(span.start_s for span in cold[key]) >= ended_s - resolution_s, key
        ended_s = max(span.end_s for span in cold[key])


def test_two_layers_and_two_steps_by_hand():
    graph = other_system_graph("flexgen", tiny_model(n_layers=2), JOB)
    timeline = replay(graph, [OP_S[task.op] for task in graph.tasks], machine())
    first = {
        "s0.L0.stage_kv": (0, 5),
        "s0.embed": (5, 6),
        "s0.L0.load_kv": (5, 12),  # beside the embedding, which is the first layer
        "s0.L1.stage_kv": (12, 17),  # before layer 0 is launched
        "s0.L1.load_kv": (17, 24),
        "s0.L0.qkv": (17, 18),
        "s0.L0.attention": (18, 20),
        "s0.L0.store_kv": (18, 20),
        "s0.L0.mlp": (20, 23),
        "s0.L1.qkv": (24, 25),  # the barrier waited for the load
        "s0.L1.attention": (25, 27),
        "s0.L1.store_kv": (25, 27),
        "s0.L1.mlp": (27, 30),
        "s0.head": (30, 31),
    }
    second = {name.replace("s0", "s1"): (a + 31, b + 31) for name, (a, b) in first.items()}
    assert times(timeline) == first | second
    assert timeline.idle_by_cause("compute") == {"waits for host": 2 * 16, "waits for h2d": 2}
    assert timeline.exposed_copy_s == 2 * (6 + 1)  # a host copy crosses no link
    assert timeline.breakdown.idle_s == timeline.busy_s(HOST) == 20


def test_every_past_token_is_staged_and_loaded_and_one_is_stored():
    model = tiny_model(n_layers=3)
    graph = other_system_graph("flexgen", model, JOB)
    moved = {op: sum(task.bytes for task in graph.tasks if task.op == op) for op in OP_S}
    token_bytes = model.n_layers * JOB.batch_size * model.kv_token_bytes
    assert moved["stage_kv"] == moved["load_kv"] == token_bytes * (8 + 9)
    assert moved["store_kv"] == token_bytes * 2
    assert footprint(graph).host_staging_bytes == JOB.batch_size * 10 * model.kv_token_bytes


def test_staging_and_loading_add_up_where_computing_is_free():
    hardware = machine(flops_per_s=1e18, memory_bytes_per_s=1e18, h2d=2e6, host=1e6, d2h=1e18)
    graph = other_system_graph("flexgen", tiny_model(n_layers=5), JOB)
    loaded = sum(task.bytes for task in graph.tasks if task.op == "load_kv")
    makespan_s = simulate(graph, hardware).makespan_s
    assert makespan_s == pytest.approx(loaded / 2e6 + loaded / 1e6, rel=1e-6)


@given(models(), bent_machines(), workloads(), st.floats(1e-2, 1e2))
@examples(20)
def test_barriers_hold_and_loading_ahead_is_never_slower(model, hardware, job, host_factor):
    hardware = hardware.with_faster(HOST, host_factor)
    assert_barriers(simulate(other_system_graph("flexgen", model, job), hardware))
    plan = make_plan(model, hardware, job, "flexgen")
    assert plan.makespan_s >= plan.baselines["load-all"] * (1 - 1e-9)


def test_slow_host_copies_are_named_as_what_limits():
    hardware = machine(h2d=1e7, host=1e5)
    plan = make_plan(tiny_model(), hardware, JOB, "flexgen")
    assert plan.bottleneck.startswith("the copying within the host is the bottleneck: 10 % more")
    worth = {one.part: one.saved_frac for one in plan.sensitivities}
    assert worth[HOST] == pytest.approx(1 - 1 / 1.1, rel=0.05)
    others = make_plan(tiny_model(), hardware, JOB, "load-all").sensitivities
    assert HOST not in {one.part for one in others}


def test_a_profile_without_host_copies_gets_no_flexgen():
    hardware = machine(host=None)
    assert "host" not in hardware.to_dict()["links"]
    assert "flexgen" not in make_plan(tiny_model(), hardware, JOB).baselines
    with pytest.raises(NotMeasured, match=r"no links.host.*`kvoverlap profile`"):
        make_plan(tiny_model(), hardware, JOB, "flexgen")
    with pytest.raises(NotMeasured, match=r"links\.host"):
        hardware.with_faster(HOST, 2.0)


def test_flexgen_decodes_one_batch_in_a_schedule_of_its_own():
    with pytest.raises(BadInput, match="leave --schedule at row"):
        make_plan(tiny_model(), machine(), JOB, "flexgen", "column")
    with pytest.raises(BadInput, match="decodes one batch"):
        other_system_graph("flexgen", tiny_model(), replace(JOB, n_batches=2))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def prepared(request):
    """An executor of a graph that stages K and V."""
    if request.param == "cuda" and not cuda_available():
        pytest.skip("needs CUDA")
    with open_backend(request.param) as backend:
        graph = other_system_graph("flexgen", LLAMA, JOB)
        weights = random_weights(LLAMA, 0, backend.device)
        caches = prefilled_caches(weights, JOB, 1, backend, pageable=True)
        references = [resident_decode(weights, cache, JOB) for cache in caches]
        yield DecodeExecutor(simulated(graph), weights, caches, references, backend)


def test_a_device_keeps_the_barriers_and_computes_the_resident_tokens(prepared):
    executor = prepared
    for _ in range(3):
        assert_barriers(executor.run(), resolution_s=1e-6)
        assert executor.check()["tokens_equal"] is True


def test_what_is_loaded_is_what_was_staged(prepared, monkeypatch):
    executor = prepared
    executor.run()
    monkeypatch.setitem(DecodeExecutor.operations, "stage_kv", lambda _executor, _task: None)
    executor.run()
    with pytest.raises(WrongNumbers):
        executor.check()


def test_a_pinned_cache_is_refused(monkeypatch):
    graph, weights = other_system_graph("flexgen", LLAMA, JOB), random_weights(LLAMA, 0, CPU)
    with open_backend("cpu") as backend:
        caches = prefilled_caches(weights, JOB, 1, backend)
        monkeypatch.setattr(torch.Tensor, "is_pinned", lambda _self: True)
        with pytest.raises(Mismatch, match="pageable=True"):
            DecodeExecutor(simulated(graph), weights, caches, (), backend)
