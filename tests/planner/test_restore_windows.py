"""A restore moves, computes and holds the window of a layer: bytes, FLOPs and times by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from builders import examples, machine, make_plan, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from restores import figure, request, restores

from planner.advice.reuse import reuse
from planner.restore import RESTORE_POLICIES, RestorePlanner, RestoreSplit
from planner.restore.lower import compute_only_graph, split_graph, two_ended_graph
from sim.catalog import find_hardware, find_model
from sim.cost.restore import RestoreCosts
from sim.graph.claims import claimed
from sim.graph.jobs import RestoreRequest
from sim.graph.memory import layer_rows
from sim.graph.tasks import TaskGraph
from sim.machine.prefill import Prefill, Restore
from sim.machine.provenance import SourcedValue
from sim.model.spec import ModelSpec

POLICIES = RESTORE_POLICIES[:-1]
WINDOW = 24
SHAPES = {
    "mistral": {"n_layers": 3, "sliding_window": WINDOW},
    "gemma": {"n_layers": 4, "sliding_window": WINDOW, "full_attention_layers": (1, 3)},
    "full": {"n_layers": 3},
}
PROMPTS = {"shorter": WINDOW - 7, "equal": WINDOW, "longer by 1": WINDOW + 1, "longer": 101}
BALANCED = machine(
    flops_per_s=3e8,
    memory_bytes_per_s=1e8,
    h2d=3e6,
    restore=Restore(Prefill(figure(3e8), figure(1e-5))),
)
"""Loading a token costs about what computing it costs."""


def window_of(model: ModelSpec, layer: int) -> int:
    """Tokens that the layer attends to, written without the model's own methods."""
    unlimited = model.sliding_window is None or layer in model.full_attention_layers
    return 10**9 if unlimited else model.sliding_window


def loaded_bytes(timeline) -> int:
    return sum(
        one.bytes for one in claimed(timeline.graph, timeline.start_s) if one.op == "load_kv"
    )


def computed_cells(timeline) -> set[tuple[int, int]]:
    """(layer, token) of all K and V that are computed or projected."""
    return {
        (layer, token)
        for one in claimed(timeline.graph, timeline.start_s)
        if one.op in ("prefill", "recompute")
        for layer in range(one.layer, one.layer + one.layers)
        for token in range(one.token_start, one.token_stop)
    }


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_loads_bring_the_chunks_that_a_layer_attends_to_and_that_nothing_computed(
    shape, prompt, policy
):
    model, job = tiny_model(**shape), request(prompt, cached_tokens=prompt - 2, io_chunk_tokens=4)
    planner = RestorePlanner(model, BALANCED, job, cached_data="kv+x")
    timeline = planner.choice(policy).timeline
    there, cached, expected = computed_cells(timeline), job.cached_tokens, 0
    for layer in range(model.n_layers):
        for token in range(cached):
            chunk_stop = min(token - token % 4 + 4, cached)
            attended = chunk_stop > cached - window_of(model, layer) + 1
            expected += 32 * (attended and (layer, token) not in there)
    assert loaded_bytes(timeline) == expected


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_steps_attend_to_the_window(shape, prompt):
    model, job = tiny_model(**shape), request(prompt, cached_tokens=prompt - 2)
    products = 2 * (4 * 8 * 8 + 2 * 8 * 32)  # of one token in one layer: Q, K, V, out; up, down
    for graph in (compute_only_graph(model, job), two_ended_graph(model, job)):
        for one in graph.tasks:
            if one.op == "prefill":
                expected = 0
                for layer in range(model.n_layers):
                    for token in range(one.token_start, one.token_stop):
                        expected += products + 4 * 8 * min(token + 1, window_of(model, layer))
                assert one.flops == expected


def test_attention_takes_the_time_of_its_window():
    attention = 1e6
    hardware = machine(
        flops_per_s=1e30,
        memory_bytes_per_s=1e30,
        restore=Restore(Prefill(figure(attention), figure(0.0))),
    )
    model = tiny_model(n_layers=3, sliding_window=20, full_attention_layers=(1,))
    costs = RestoreCosts(hardware, model, request(65))
    full, windowed = sum(range(17, 25)), 17 + 18 + 19 + 5 * 20  # keys of tokens 16 to 24
    assert costs.prefill(16, 8, 1, 1).seconds == pytest.approx(4 * 8 * full / attention)
    assert costs.prefill(16, 8, 1, 2).seconds == pytest.approx(4 * 8 * windowed / attention)
    both = 4 * 8 * (full + 2 * windowed) / attention
    assert costs.prefill(16, 8, 3).seconds == pytest.approx(both)
    assert costs.step_s([(16, 8)], 0) == pytest.approx(both)


def test_a_split_skips_the_layers_that_a_window_has_left_by_hand():
    """17 cached tokens: layer 0 needs those from 17 + 1 - 6 = 12 on, layer 1 needs all."""
    model = tiny_model(sliding_window=6, full_attention_layers=(1,))
    job = request(18, io_chunk_tokens=4)

    def loads(graph: TaskGraph) -> dict[str, tuple[int, int, int]]:
        tasks = [one for one in graph.tasks if one.op.startswith("load")]
        return {one.id: (one.token_start, one.token_stop, one.bytes // 16) for one in tasks}

    assert loads(split_graph(model, job, RestoreSplit.even(model, 6))) == {
        "load_kv.16": (16, 17, 2 * 2),
        "load_kv.12": (12, 16, 2 * 2 * 4),
        "load_kv.8": (8, 12, 2 * 4),
        "load_kv.6": (6, 8, 2 * 2),
    }
    by_layer = RestoreSplit((3, 2), (2, 5), True)
    assert by_layer.loaded_tokens(model, job) == (3, 10)
    assert loads(split_graph(model, job, by_layer)) == {
        "load_x.L0.12": (12, 14, 2),
        "load_x.L1.2": (2, 7, 5),
        "load_kv.L0.14": (14, 17, 2 * 3),
        "load_kv.L1.7": (7, 15, 2 * 8),
        "load_kv.L1.15": (15, 17, 2 * 2),
    }


def test_the_last_load_ends_a_restore_whose_layers_all_have_windows():
    """16 tokens are cached and the window begins at 11: the chunk from 10 on is the last load."""
    model, job = tiny_model(sliding_window=6), request(17)
    graph = two_ended_graph(model, job)
    last = graph.tasks[graph.index["load_kv.10"]]
    assert (last.token_start, last.token_stop, last.bytes) == (0, 12, 2 * 2 * 32)
    assert graph.loaded_rows(last) == ([0, 1], 10, 12)
    slow = replace(BALANCED, restore=Restore(Prefill(figure(3e8), figure(1.0))))
    timeline = RestorePlanner(model, slow, job).choice("two-ended").timeline
    done = [one.id for one in claimed(graph, timeline.start_s) if one.n_tokens]
    assert done == ["prefill.0", "load_kv.14", "load_kv.12", "load_kv.10", "prefill.16", "head"]


@examples(40)
@given(restores(), st.sampled_from(POLICIES), st.integers(0, 9))
def test_a_window_longer_than_the_prompt_changes_no_graph_and_no_time(case, policy, more):
    model, hardware, job = case
    plain = replace(model, sliding_window=None, full_attention_layers=())
    wide = replace(plain, sliding_window=job.prompt_tokens + more)
    with_window, without = (
        RestorePlanner(one, hardware, job, cached_data="kv+x").choice(policy).timeline
        for one in (wide, plain)
    )
    assert with_window.graph.tasks == without.graph.tasks
    assert with_window.end_s == without.end_s


@examples(25)
@given(restores())
def test_less_to_load_and_to_compute_is_never_slower(case):
    model, hardware, job = case
    plain = replace(model, sliding_window=None, full_attention_layers=())
    windowed, full = (RestorePlanner(one, hardware, job) for one in (model, plain))
    for policy in ("compute-only", "load-only"):
        times = [one.choice(policy).ttft_s for one in (windowed, full)]
        assert times[0] <= times[1] * (1 + 1e-12)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_memory_and_cached_bytes_are_those_of_a_decode(shape):
    model, job = tiny_model(**shape), request(101, io_chunk_tokens=1)
    planner = RestorePlanner(model, BALANCED, job)
    step = replace(job, prompt_tokens=102)  # only for its number of tokens
    rows = [layer_rows(model, step, layer) for layer in range(model.n_layers)]
    assert planner.cached_bytes == sum(min(100, one - 1) for one in rows) * 32
    held = sum(min(101, window_of(model, layer)) for layer in range(model.n_layers))
    assert planner.device_bytes == model.weight_bytes + held * 32


def test_a_reused_prompt_fits_if_its_windows_do():
    model = tiny_model(sliding_window=100, max_positions=4000)
    memory = replace(BALANCED.memory, device_bytes=model.weight_bytes + 2 * 100 * 32)
    hardware = replace(BALANCED, memory=memory)
    assert reuse(model, hardware, 3000, "simpy") is not None
    assert reuse(tiny_model(max_positions=4000), hardware, 3000, "simpy") is None


MISTRAL_16K = RestoreRequest(prompt_tokens=2**14, cached_tokens=2**14 - 1)


def test_mistral_at_16k_by_hand():
    """4,095 of 16,383 tokens are loaded; attention takes 53 % of the FLOPs that it had."""
    hardware = find_hardware("a100-80g")
    windowed, full = (
        {
            name: make_plan(find_model(model), hardware, MISTRAL_16K, name).ttft_s
            for name in ("load-only", "compute-only")
        }
        for model in ("mistral-7b-v0.1", "mistral-7b")
    )
    saved_s = 32 * (12_288 * 4096) / hardware.links.h2d.bytes_per_s
    assert windowed["load-only"] == pytest.approx(full["load-only"] - saved_s, rel=0.01)
    assert windowed["load-only"] == pytest.approx(0.1287, rel=0.03)
    # 32 layers, 4 x 4096 FLOPs for each of the keys beyond 4,096 of 12,288 tokens
    saved_flops = 32 * 4 * 4096 * sum(range(1, 12_289))
    rate = hardware.restore.prefill.attention_flops_per_s.value
    expected_s = full["compute-only"] - saved_flops / rate
    assert windowed["compute-only"] == pytest.approx(expected_s, rel=0.01)
    assert windowed["compute-only"] == pytest.approx(1.421 + 0.095, rel=0.03)


GEMMA_3_27B = replace(
    find_model("gemma-2-9b"),
    name="gemma-3-27b",
    dtype="bfloat16",
    n_layers=62,
    hidden_size=5376,
    n_heads=32,
    n_kv_heads=16,
    head_dim=128,
    intermediate_size=21_504,
    vocab_size=262_208,
    max_positions=131_072,
    sliding_window=1024,
    full_attention_layers=tuple(range(5, 62, 6)),
    qk_norm=True,
)


def test_gemma_3_at_32k_by_hand():
    """10 layers of 32,767 tokens and 52 of 1,023, 8,192 bytes each: 61.3 ms over the link."""
    hardware = find_hardware("h100-sxm+pcie5-x16")
    job = RestoreRequest(prompt_tokens=2**15, cached_tokens=2**15 - 1)
    plan = make_plan(GEMMA_3_27B, hardware, job, "load-only")
    n_bytes = (10 * 32_767 + 52 * 1_023) * 8192
    assert plan.answer()["cached_kv_bytes"] == n_bytes == pytest.approx(3.12e9, rel=0.01)
    assert plan.answer()["cached_kv_bytes_by_window"] == [
        {"window": 1024, "bytes": 52 * 1_023 * 8192},
        {"window": None, "bytes": 10 * 32_767 * 8192},
    ]
    full = replace(GEMMA_3_27B, sliding_window=None, full_attention_layers=())
    full_s = make_plan(full, hardware, job, "load-only").ttft_s
    all_bytes = 62 * 32_767 * 8192
    read_s = (all_bytes + full.weight_bytes) / hardware.attention.bytes_per_s
    load_s = all_bytes / hardware.links.h2d.bytes_per_s
    assert full_s == pytest.approx(load_s + read_s, rel=0.03), "and the last token's launches"
    saved_bytes = all_bytes - n_bytes  # neither loaded nor read by the last token
    per_byte_s = 1 / hardware.links.h2d.bytes_per_s + 1 / hardware.attention.bytes_per_s
    assert plan.ttft_s == pytest.approx(full_s - saved_bytes * per_byte_s, rel=0.01)
    assert plan.window_savings == (
        "52 of 62 layers keep a window of 1,024 tokens: of 16.64 GB of cached K and V 3.12 GB are "
        "needed."
    )


@pytest.mark.parametrize(("model", "prompt"), [("mistral-7b", 8192), ("mistral-7b-v0.1", 4096)])
def test_nothing_is_said_of_windows_that_leave_nothing_out(model, prompt):
    job = RestoreRequest(prompt_tokens=prompt, cached_tokens=prompt - 1)
    assert (
        make_plan(find_model(model), find_hardware("h100"), job, "load-only").window_savings is None
    )


def test_tokens_of_a_windowed_plan_add_up_to_the_prompt():
    model, job = tiny_model(**SHAPES["gemma"]), request(101)
    for policy in POLICIES:
        plan = make_plan(model, BALANCED, job, policy, cached_data="kv+x")
        counts = Counter(computed=plan.computed_tokens, loaded=plan.loaded_tokens)
        assert counts.total() + plan.projected_tokens == 101


def test_sources_of_a_step_weigh_each_kind_of_layer_by_its_number():
    """Token 40 attends to 41 keys in one layer and to 2 in nine, at a fitted rate."""
    rate = SourcedValue("fitted", 1e6)
    hardware = machine(
        flops_per_s=1e8, memory_bytes_per_s=1e30, restore=Restore(Prefill(rate, figure(0.0)))
    )
    model = tiny_model(n_layers=10, sliding_window=2, full_attention_layers=(0,))
    step = RestoreCosts(hardware, model, request(65)).prefill(40, 1, 10)
    fitted_s = 4 * 8 * (41 + 9 * 2) / 1e6
    assert step.seconds_by_source["fitted"] == pytest.approx(fitted_s)
    assert step.seconds > 1.01 * fitted_s  # the matmuls are of the datasheet
