"""Whatever the split, the graph moves every token once and never overwrites what is still read."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import pytest
from builders import MHA, decode_graph, examples, machine, models, splits, tiny_model, workloads
from hypothesis import given
from hypothesis import strategies as st

from planner.decode.lower import lower
from sim.engine.api import simulate
from sim.errors import BadInput
from sim.graph.jobs import Workload
from sim.graph.tasks import LANE_OF_OP, STAGING_SLOTS, TaskGraph
from sim.model.operations import compute_flops


@st.composite
def cases(draw, max_layers=5):
    """Model, job, split and the graph of the split."""
    model, job = draw(models(max_layers)), draw(workloads(max_prompt=6))
    split = draw(splits(model, job))
    return model, job, split, lower("row", model, job, split)


def ancestors(graph):
    """For each task the ids of all that must be done before it starts, by deps and lane order."""
    before = {one.id: set(one.deps) for one in graph.tasks}
    for queue in graph.lanes.values():
        for early, late in pairwise(queue):
            before[graph.tasks[late].id].add(graph.tasks[early].id)
    for one in graph.tasks:
        before[one.id].update(*(before[dep] for dep in list(before[one.id])))
    return before


def by_cell(graph):
    """Tasks of each (step, layer) by operation."""
    cells = defaultdict(dict)
    for one in graph.tasks:
        cells[one.step, one.layer][one.op] = one
    return cells


@given(cases())
@examples(60)
def test_every_token_of_every_layer_is_recomputed_or_loaded(case):
    model, job, split, graph = case
    cells = by_cell(graph)
    for step in range(job.gen_tokens):
        past = job.context_tokens(step)
        for layer in range(model.n_layers):
            ops, count = cells[step, layer], split[step][layer]
            recomputed = [
                (ops[op].token_start, ops[op].token_stop)
                for op in ("recompute", "load_x")
                if op in ops
            ]
            assert recomputed == [(0, count)] * 2 * (count > 0)
            loaded = (
                [(ops["load_kv"].token_start, ops["load_kv"].token_stop)]
                if "load_kv" in ops
                else []
            )
            assert loaded == [(count, past)] * (count < past)
            for op in ("qkv", "attention", "mlp", "store_kv"):
                assert (ops[op].token_start, ops[op].token_stop) == (past, past + 1)


@given(cases())
@examples(60)
def test_the_graph_is_valid_and_its_slots_are_those_it_states(case):
    model, _, _, graph = case
    assert TaskGraph.from_dict(graph.to_dict(), "here").sha256 == graph.sha256
    assert graph.slots == min(STAGING_SLOTS, model.n_layers)
    assert all(LANE_OF_OP[one.op] == one.lane for one in graph.tasks)
    for one in graph.tasks:
        expected = (one.step * model.n_layers + one.layer) % graph.slots if one.layer >= 0 else -1
        assert one.slot == expected


# Who writes and who reads each part of a staging slot.
PARTS = {
    "kv": (("load_kv", "recompute", "qkv"), ("attention", "store_kv")),
    "x": (("load_x",), ("recompute",)),
    "new x": (("qkv",), ("store_x",)),
}


@given(cases())
@examples(60)
def test_a_slot_is_written_only_after_its_old_content_was_written_and_read(case):
    _, _, _, graph = case
    before = ancestors(graph)
    for writers, readers in PARTS.values():
        for slot in range(graph.slots):
            users = [one for one in graph.tasks if one.slot == slot and one.op in writers + readers]
            for old in users:
                for new in users:
                    newer = (new.step, new.layer) > (old.step, old.layer)
                    if newer and new.op in writers:
                        assert old.id in before[new.id], f"{new.id} may overtake {old.id}"


@given(cases())
@examples(60)
def test_every_task_follows_the_tasks_whose_results_it_uses(case):
    model, job, _, graph = case
    before, cells = ancestors(graph), by_cell(graph)
    uses = {
        "recompute": ["load_x"],
        "attention": ["qkv", "recompute", "load_kv"],
        "mlp": ["attention"],
        "store_kv": ["qkv"],
        "store_x": ["qkv"],
    }
    previous = None
    for step in range(job.gen_tokens):
        for layer in (-1, *range(model.n_layers)):
            ops = cells[step, layer]
            for op, sources in uses.items():
                for source in sources:
                    if op in ops and source in ops:
                        assert ops[source].id in before[ops[op].id]
            first = ops["embed" if layer < 0 else "qkv"]
            assert previous is None or previous in before[first.id]
            previous = ops["embed" if layer < 0 else "mlp"].id
        assert previous in before[cells[step, -1]["head"].id]
        previous = cells[step, -1]["head"].id


@given(cases())
@examples(80)
def test_a_generated_token_is_loaded_only_after_it_was_stored(case):
    model, job, _, graph = case
    before, cells = ancestors(graph), by_cell(graph)
    for later in range(1, job.gen_tokens):
        for layer in range(model.n_layers):
            for load, store in (("load_kv", "store_kv"), ("load_x", "store_x")):
                loading = cells[later, layer].get(load)
                if loading is None:
                    continue
                for earlier in range(later):
                    token = job.context_tokens(earlier)
                    if loading.token_start <= token < loading.token_stop:
                        assert cells[earlier, layer][store].id in before[loading.id]


@given(cases())
@examples(80)
def test_x_of_a_new_token_is_stored_only_if_a_later_step_recomputes_it(case):
    model, job, split, graph = case
    cells = by_cell(graph)
    for step in range(job.gen_tokens):
        token = job.context_tokens(step)
        for layer in range(model.n_layers):
            needed = any(row[layer] > token for row in split[step + 1 :])
            assert ("store_x" in cells[step, layer]) == needed


@given(cases())
@examples(60)
def test_bytes_over_each_link_follow_from_the_split(case):
    model, job, split, graph = case
    total = defaultdict(int)
    for one in graph.tasks:
        total[one.op] += one.bytes
    recomputed = sum(map(sum, split))
    past = model.n_layers * sum(map(job.context_tokens, range(job.gen_tokens)))
    batch, cells = job.batch_size, model.n_layers * job.gen_tokens
    assert total["load_x"] == batch * recomputed * model.x_token_bytes
    assert total["load_kv"] == batch * (past - recomputed) * model.kv_token_bytes
    assert total["store_kv"] == batch * cells * model.kv_token_bytes
    timeline = simulate(graph, machine())
    for lane in ("h2d", "d2h"):
        moved = sum(span.task.bytes for span in timeline.spans if span.task.lane == lane)
        assert moved == sum(one.bytes for one in graph.tasks if one.lane == lane)
        assert timeline.busy_s(lane) == pytest.approx(moved / 1e8)


@given(cases())
@examples(60)
def test_flops_are_those_of_the_operations_plus_the_recomputed_tokens(case):
    model, job, split, graph = case
    batch, hidden = job.batch_size, model.hidden_size
    extra = 4 * batch * sum(map(sum, split)) * hidden * model.kv_size
    decode = 0
    for step in range(job.gen_tokens):
        context = job.context_tokens(step) + 1
        layer = sum(
            compute_flops(op, 1, context, model, batch) for op in ("qkv", "attention", "mlp")
        )
        decode += model.n_layers * layer + 2 * batch * hidden * model.vocab_size
    assert sum(one.flops for one in graph.tasks) == decode + extra


def test_the_link_loads_x_before_keys_and_values_layer_by_layer():
    loads = [one.id for one in decode_graph(recomputed=3).tasks if one.lane == "h2d"]
    assert loads == [
        f"s{s}.L{n}.{op}" for s in (0, 1) for n in (0, 1) for op in ("load_x", "load_kv")
    ]


def test_loads_run_ahead_of_compute_by_as_many_layers_as_there_are_slots():
    model = tiny_model(n_layers=4)
    graph = lower("row", model, Workload(1, 8, 1), [[0] * 4])
    waits = {one.id: one.deps for one in graph.tasks if one.op == "load_kv"}
    assert waits == {
        "s0.L0.load_kv": (),
        "s0.L1.load_kv": (),
        "s0.L2.load_kv": ("s0.L0.attention", "s0.L0.store_kv"),
        "s0.L3.load_kv": ("s0.L1.attention", "s0.L1.store_kv"),
    }


@pytest.mark.parametrize("split", [[], [[0, 0]], [[0, 0], [0]], [[0, 0], [0, 0], [0, 0]]])
def test_a_split_of_the_wrong_shape_is_refused(split):
    with pytest.raises(BadInput, match="2 steps of 2 layers"):
        lower("row", tiny_model(**MHA), Workload(1, 8, 2), split)


@pytest.mark.parametrize("count", [-1, 9])
def test_recomputing_other_than_past_tokens_is_refused_with_the_place(count):
    with pytest.raises(BadInput, match=rf"recomputed_tokens\(={count}\) of step 0, layer 1"):
        lower("row", tiny_model(), Workload(1, 8, 2), [[0, count], [0, 9]])
