"""Plans and restores of models whose layers differ: chunks, other heads, chosen rows, states."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import SOAK, first_layers, machine, make_plan

from planner.decode.lower import lower
from planner.decode.plan import DecodePlan
from planner.decode.split import Residency
from planner.restore.planner import RestorePlanner
from sim.catalog import find_hardware, find_model, model_names
from sim.cost.model import CostModel
from sim.engine.api import simulate
from sim.errors import BadInput
from sim.graph.jobs import RestoreRequest, Workload
from sim.graph.memory import footprint
from sim.graph.races import check_races
from sim.lanes import COMPUTE, H2D
from sim.model.kernels import DecodeAttention, IndexedAttention, IndexScores, StateUpdate
from sim.model.operations import compute_flops, kernels
from sim.model.sheet import sheet

FOUR = {
    name: first_layers(name, 4)
    for name in (
        "qwen3.5-27b",  # three gated delta states, then full attention with a gate
        "llama-4-scout",  # three layers in chunks of 8,192, then full
        "deepseek-v3.2",  # latent with an index
        "deepseek-v4-flash",  # two windows, compressed 4 to 1 with an index, compressed 128 to 1
        "nemotron-super-49b",
        "minimax-m3",  # the fourth has an index
        "mimo-v2-flash",
        "glm-5.3",
    )
} | {
    "gemma-4-31b": first_layers("gemma-4-31b", 6),
    "nemotron-3-nano-30b-a3b": first_layers("nemotron-3-nano-30b-a3b", 6),
    "kimi-k3": first_layers("kimi-k3", 4),
}
SAMPLE = FOUR if SOAK else ("qwen3.5-27b", "deepseek-v3.2", "llama-4-scout", "kimi-k3")
JOB = Workload(batch_size=2, prompt_tokens=8190, gen_tokens=3)
REQUEST = RestoreRequest(prompt_tokens=4096, cached_tokens=4000)


def by_op(graph, op):
    return [task for task in graph.tasks if task.op == op]


def nothing_recomputed(model, job=JOB, residency=None):
    zeros = [[0] * model.n_layers] * job.gen_tokens
    return lower("row", model, job, zeros, residency=residency)


@pytest.mark.parametrize("name", model_names() if SOAK else model_names()[1::7])
def test_verbs_agree_on_weights_and_cache(name):
    """The sheet's bytes are those of a plan's memory, in host memory or kept, and of a restore.

    Layers with an index over compressed entries hold the entry in the making too.
    """
    model, past = find_model(name), 1920  # whole chunks of a restore; OPT has 2,048 positions
    if model.element_bytes == 4:
        model = replace(model, dtype="bfloat16")  # as the verbs read it for GPUs
    job = Workload(1, past, 1)
    then, now = sheet(model, past), sheet(model, past + 1)
    host, kept = (
        footprint(nothing_recomputed(model, job, residency))
        for residency in (None, Residency.whole_cache(model, job))
    )
    request = RestoreRequest(prompt_tokens=past + 1, cached_tokens=past)
    assert host.weight_bytes == kept.weight_bytes == then.weight_bytes == model.weight_bytes
    cached = request.kv_bytes(model), request.index_bytes(model), model.state_bytes
    assert cached == (then.kv_bytes, then.index_bytes, then.state_bytes)
    close = pytest.approx(now.kv_bytes, rel=2e-3 if "deepseek-v4" in name else 1e-12)
    assert host.host_kv_bytes == close
    assert kept.kv_slot_bytes == close
    assert host.index_bytes == now.index_bytes


def test_a_layer_with_a_state_moves_nothing_and_keeps_it_on_the_device():
    model = FOUR["qwen3.5-27b"]
    graph = nothing_recomputed(model)
    assert {task.layer for task in graph.tasks if task.lane != COMPUTE} == {3}
    assert [one.bytes for one in by_op(graph, "load_kv")] == [
        2 * past * 2 * 4 * 256 * 2 for past in (8190, 8191, 8192)
    ]
    # 48 heads of 128 x 128 in 32 bits, and 3 inputs of 10,240 channels in 16, of 3 layers.
    state_bytes = 3 * (48 * 128 * 128 * 4 + 3 * (2 * 16 * 128 + 48 * 128) * 2)
    assert model.state_bytes == state_bytes
    need = footprint(graph)
    assert (need.state_bytes, need.index_bytes) == (2 * state_bytes, 0)
    with pytest.raises(BadInput, match="must be between 0 and the 0 attended"):
        lower("row", model, JOB, [[1, 0, 0, 0]] * 3)


def test_a_state_is_read_and_written_once_a_step():
    model = FOUR["qwen3.5-27b"]
    (update,) = (
        one for one in kernels("attention", 1, 1, model, 2, kind=0) if isinstance(one, StateUpdate)
    )
    assert update.bytes == 2 * 2 * (48 * 128 * 128 * 4 + 3 * 10_240 * 2)
    assert update.flops == 2 * 6 * 48 * 128 * 128
    hardware = machine(flops_per_s=1e30, memory_bytes_per_s=1e9)
    found = CostModel(hardware, model, JOB).operations.kernel(update)
    assert (found.seconds, found.in_range) == (pytest.approx(update.bytes / 1e9), False)
    (many,) = (
        one for one in kernels("attention", 64, 1, model, 1, kind=0) if isinstance(one, StateUpdate)
    )
    slow = CostModel(machine(flops_per_s=1e9), model, JOB).operations.kernel(many)
    assert slow.seconds == pytest.approx(64 * 6 * 48 * 128 * 128 / (0.12 * 1e9))


def test_a_chunk_that_begins_reads_nothing():
    model = FOUR["llama-4-scout"]
    graph = nothing_recomputed(model)
    loads = {(task.step, task.layer): task.n_tokens for task in by_op(graph, "load_kv")}
    assert [loads[step, 3] for step in range(3)] == [8190, 8191, 8192]
    assert [loads.get((step, 0), 0) for step in range(3)] == [8190, 8191, 0]
    one_key = compute_flops("attention", 1, 1, model, 2)
    flops = {(task.step, task.layer): task.flops for task in by_op(graph, "attention")}
    assert flops[2, 0] == one_key
    assert flops[2, 3] - one_key == 2 * 4 * 40 * 128 * 8192


def test_chosen_rows_are_loaded_after_the_choice():
    model = FOUR["deepseek-v3.2"]
    graph = nothing_recomputed(model)
    row_bytes = (512 + 64) * 2
    for load in by_op(graph, "load_kv"):
        assert load.bytes == 2 * 2048 * row_bytes
        assert f"s{load.step}.L{load.layer}.qkv" in load.deps
    need = footprint(graph)
    assert need.index_bytes == 2 * 4 * 8193 * 128
    assert need.host_kv_bytes == 2 * 4 * 8193 * row_bytes
    assert need.kv_slot_bytes == 2 * 2 * (2048 + 3) * row_bytes
    whole = footprint(nothing_recomputed(model, residency=Residency.whole_cache(model, JOB)))
    assert whole.kv_slot_bytes == 2 * 4 * 8193 * row_bytes


def test_an_index_reads_all_keys_and_attention_the_chosen_rows():
    model = FOUR["deepseek-v3.2"]
    launched = kernels("attention", 1, 131_072, model, 3)
    (whole,) = (one for one in launched if isinstance(one, IndexedAttention))
    (scores,) = (one for one in whole.parts if isinstance(one, IndexScores))
    (attended,) = (one for one in whole.parts if isinstance(one, DecodeAttention))
    assert whole.flops == scores.flops + attended.flops
    assert scores.bytes == 3 * 131_072 * 128
    assert scores.flops == 3 * 131_072 * 2 * 64 * 128
    assert attended.flops == 3 * 2049 * 2 * 128 * (512 + 64 + 512)


def test_layers_that_use_the_choice_of_another_wait_for_it():
    model = first_layers("glm-5.3", 6)
    graph = nothing_recomputed(model)
    waits = {task.layer: task.deps for task in by_op(graph, "load_kv") if task.step == 0}
    assert [f"s0.L{at}.qkv" in waits[layer] for layer, at in ((2, 2), (3, 2), (5, 2))] == [True] * 3


def test_compressed_entries_by_hand():
    model = FOUR["deepseek-v4-flash"]
    graph = nothing_recomputed(model)
    first = {task.layer: task.bytes for task in by_op(graph, "load_kv") if task.step == 0}
    rows = [127, 127, 127 + 512, 127 + 8190 // 128]
    assert [first[layer] for layer in range(4)] == [2 * count * 512 * 2 for count in rows]
    launched = kernels("attention", 1, 8191, model, 2, kind=1)
    (scores,) = (one for one in launched if isinstance(one, IndexScores))
    assert scores.bytes == 2 * (8191 // 4) * 128
    (attended,) = (one for one in launched if isinstance(one, DecodeAttention))
    assert attended.flops == 2 * 640 * 4 * 64 * 512
    assert footprint(graph).index_bytes == 2 * (8193 // 4) * 128


def test_heads_that_differ_by_layer_are_priced_by_their_own_sizes():
    model = FOUR["gemma-4-31b"]
    graph = nothing_recomputed(model, Workload(1, 4096, 1))
    loads = {task.layer: task.bytes for task in by_op(graph, "load_kv")}
    assert loads == {**dict.fromkeys(range(5), 1023 * 2 * 16 * 256 * 2), 5: 4096 * 2 * 4 * 512 * 2}
    qkv = {task.layer: task.flops for task in by_op(graph, "qkv")}
    hidden = model.hidden_size
    assert qkv[0] == 2 * hidden * (32 + 2 * 16) * 256
    assert qkv[5] == 2 * hidden * (32 + 4) * 512  # K and V come from one matrix


def test_a_layer_without_attention_or_ffn_has_no_such_task():
    graph = nothing_recomputed(FOUR["nemotron-3-nano-30b-a3b"], Workload(1, 64, 1))
    ops = [[task.op for task in graph.tasks if task.layer == layer] for layer in (0, 1, 5)]
    assert ops == [["qkv", "attention"], ["mlp"], ["load_kv", "qkv", "store_kv", "attention"]]


@pytest.mark.parametrize("name", SAMPLE)
def test_plans_of_every_kind(name, tmp_path):
    """Both engines agree, tasks do not race, memory and files are consistent, no split is faster
    than the bound."""
    model = FOUR[name]
    hardware = machine(flops_per_s=1e12, memory_bytes_per_s=1e11, h2d=1e9, d2h=1e9)
    hardware = replace(hardware, memory=replace(hardware.memory, device_bytes=1e12))
    plan = make_plan(model, hardware, JOB, "lp")
    graph = plan.lower()
    check_races(graph)
    assert plan.lower_bound_s <= plan.makespan_s * (1 + 1e-9)
    assert plan.makespan_s <= min(plan.baselines[one] for one in ("load-all", "recompute-all"))
    assert simulate(graph, hardware, "fast").makespan_s == pytest.approx(plan.makespan_s, rel=1e-9)
    plan.save(tmp_path / "plan.json")
    assert DecodePlan.load(tmp_path / "plan.json").lower().sha256 == graph.sha256
    for step in plan.steps:
        for layer, count in enumerate(step.recomputed_tokens):
            assert not count or model.layers[layer].attention.projects_from_x
    resident = make_plan(model, hardware, JOB, "resident").lower()
    check_races(resident)
    assert not [task for task in resident.tasks if task.lane == H2D]


def test_a_short_layer_that_loads_nothing_does_not_raise_the_bound():
    """Chunks of 108 tokens are recomputed whole, so that the next layer's load begins early."""
    model = first_layers("llama-4-scout", 8).shard(4)
    job = Workload(4, 8300, 1)
    plan = make_plan(model, find_hardware("h200+pcie5-x16"), job, engine="fast")
    assert plan.lower_bound_s <= plan.makespan_s * (1 + 1e-9)


@pytest.mark.parametrize("name", FOUR)
def test_every_verb_counts_the_same_bytes(name):
    """Of a prompt that ends with a chunk, one token before the sheet's context."""
    model, context = FOUR[name], 16_384
    made = sheet(model, context)
    job = Workload(1, context - 1, 1)
    need = footprint(nothing_recomputed(model, job, Residency.whole_cache(model, job)))
    assert (need.index_bytes, need.state_bytes) == (made.index_bytes, made.state_bytes)
    slack = 2 * 2 * 512 * model.n_layers  # entries that end with the new token
    assert need.kv_slot_bytes == pytest.approx(made.kv_bytes, abs=slack)
    assert need.weight_bytes == made.weight_bytes
    request = RestoreRequest(prompt_tokens=context, cached_tokens=context - 1, io_chunk_tokens=1)
    restored = RestorePlanner(model, machine(), request)
    held = made.kv_bytes + made.index_bytes + made.state_bytes
    assert restored.device_bytes == pytest.approx(made.weight_bytes + held, abs=slack)
    cached = restored.cached_bytes
    assert cached == pytest.approx(held, abs=slack + model.all_rows_bytes + 128 * model.n_layers)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_restore_loads_what_is_needed_and_a_state_as_a_whole(name):
    model = FOUR[name]
    hardware = machine(flops_per_s=1e12, memory_bytes_per_s=1e11, h2d=1e9, d2h=1e9)
    hardware = replace(hardware, memory=replace(hardware.memory, device_bytes=1e12))
    planner = RestorePlanner(model, hardware, REQUEST)
    choices = {name: planner.choice(name) for name in ("load-only", "two-ended", "lp", "joint")}
    wanted = REQUEST.kv_bytes(model) + REQUEST.index_bytes(model) + model.state_bytes
    loads = by_op(choices["load-only"].timeline.graph, "load_kv")
    assert sum(task.bytes for task in loads) == pytest.approx(wanted, abs=8 * len(loads))
    for choice in choices.values():
        check_races(choice.timeline.graph)
        fast = simulate(choice.timeline.graph, hardware, "fast")
        assert fast.makespan_s == pytest.approx(choice.ttft_s, rel=1e-9)
    assert choices["joint"].ttft_s <= min(one.ttft_s for one in choices.values())
    note = make_plan(model, hardware, REQUEST, "load-only").state_note
    assert (note is None) == (model.state_bytes == 0)


def test_the_state_comes_with_the_last_chunk_and_not_if_all_is_computed():
    model = FOUR["qwen3.5-27b"]
    planner = RestorePlanner(model, machine(h2d=1e9), REQUEST)
    loads = by_op(planner.choice("load-only").timeline.graph, "load_kv")
    row_bytes = 2 * 4 * 256 * 2
    assert [task.bytes for task in loads[:2]] == [
        (4000 - 3968) * row_bytes + model.state_bytes,
        128 * row_bytes,
    ]
    computed = planner.choice("compute-only").timeline.graph
    assert not by_op(computed, "load_kv")


def test_from_x_only_what_a_layer_can_project():
    model = FOUR["qwen3.5-27b"]
    hardware = machine(flops_per_s=1e15, memory_bytes_per_s=1e12, h2d=1e9)
    plan = make_plan(model, hardware, REQUEST, "joint", cached_data="kv+x")
    assert plan.split is None or not any(plan.split.projected_tokens[:3])
    assert REQUEST.x_bytes(model) == 4000 * model.x_token_bytes


@pytest.mark.parametrize("name", ["deepseek-v3.2", "deepseek-v4-flash", "qwen3.5-27b"])
def test_parts_on_several_gpus(name):
    model = FOUR[name]
    part = model.shard(2)
    assert part.index_bytes(1000) == model.index_bytes(1000)
    assert 2 * part.state_bytes == model.state_bytes
    assert 0.5 <= part.weight_bytes / model.weight_bytes < 0.56
    flops = [
        sum(task.flops for task in nothing_recomputed(one, Workload(1, 4096, 1)).tasks)
        for one in (model, part)
    ]
    assert 0.5 <= flops[1] / flops[0] < 0.65  # latents, entries and indexes are on both


def test_other_systems_and_columns_are_refused():
    model = FOUR["qwen3.5-27b"]
    with pytest.raises(BadInput, match="has layers of several kinds"):
        make_plan(model, machine(), JOB, "flexgen")
    with pytest.raises(BadInput, match="use --schedule row"):
        make_plan(model, machine(), JOB, schedule="column")
    with pytest.raises(BadInput, match="is not modelled quantised"):
        make_plan(FOUR["deepseek-v3.2"], machine(), replace(JOB, kv_bits=8))
