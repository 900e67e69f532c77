"""A quantised cache in bytes, in the graph, in the memory and in the plan, counted by hand."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import pairwise

import pytest
from builders import (
    decode_graph,
    examples,
    machine,
    make_plan,
    models,
    splits,
    straight_machines,
    times,
    tiny_model,
    uniform,
    workloads,
)
from hypothesis import given
from hypothesis import strategies as st

from planner.decode.lower import lower
from planner.decode.policies import kvpr_tokens
from sim.catalog import find_hardware, find_model
from sim.cost.operations import OperationCosts
from sim.engine.api import simulate
from sim.graph.jobs import Workload
from sim.graph.memory import footprint
from sim.graph.tasks import TaskGraph
from sim.machine.curves import Curve
from sim.machine.profile import QuantisationTable
from sim.model.attention import FullAttention
from sim.model.kernels import ElementwiseKernel
from sim.model.kv_format import QuantisedRow, host_row_bytes
from sim.model.operations import compute_flops, kernels

TINY = tiny_model()


@pytest.mark.parametrize(
    ("name", "bits", "n_bytes"),
    [
        # 2 * 5120 elements in groups of 64: 160 scales and minimums of 2 bytes
        ("opt-13b", 8, 10240 + 160 * 4),
        ("opt-13b", 4, 5120 + 160 * 4),
        # grouped queries: K and V of 8 heads of 128
        ("llama-3.1-8b", 8, 2048 + 32 * 4),
        ("llama-3.1-8b", 4, 1024 + 32 * 4),
        ("opt-13b", None, 2 * 10240),
    ],
)
def test_bytes_of_a_token_by_hand(name, bits, n_bytes):
    assert host_row_bytes(find_model(name), bits) == n_bytes


@pytest.mark.parametrize(("head_dim", "group"), [(4, 4), (64, 64), (80, 80), (128, 64), (192, 64)])
def test_a_group_is_64_elements_or_a_head_that_64_does_not_divide(head_dim, group):
    assert QuantisedRow.of(tiny_model(head_dim=head_dim).layers[0].attention, 8).group == group


def test_scales_start_at_an_even_byte():
    row = QuantisedRow.of(FullAttention(1, 1, 5), 4)
    assert (row.code_bytes, row.bytes) == (6, 6 + 2 * 4)


# tiny: 16 elements of K and V in 4 groups of 4, so 16 + 16 bytes at 8 bits and 8 + 16 at 4.


@pytest.mark.parametrize(("bits", "token_bytes"), [(8, 32), (4, 24)])
def test_a_footprint_by_hand(bits, token_bytes):
    need = footprint(decode_graph(recomputed=3, kv_bits=bits))
    full = footprint(decode_graph(recomputed=3))
    # 2 layers or slots, batch 2, 10 tokens; a slot has one more row for the new token, and the host
    # none for the 3 that are recomputed
    assert need.host_kv_bytes == 2 * 2 * 7 * token_bytes
    assert need.quantised_slot_bytes == 2 * 2 * (10 + 1) * token_bytes
    assert need.device_bytes == full.device_bytes + need.quantised_slot_bytes
    assert full.quantised_slot_bytes == 0


def test_kernels_by_hand():
    # 10 rows of 16 elements of 2 bytes
    assert kernels("dequantise", 5, 5, TINY, 2, 8) == [
        ElementwiseKernel(160 + 320),
        ElementwiseKernel(640),
        ElementwiseKernel(640),
    ]
    halves = [ElementwiseKernel(80 + 80), ElementwiseKernel(80 + 160)] * 2
    assert kernels("dequantise", 5, 5, TINY, 2, 4) == [
        *halves,
        ElementwiseKernel(640),
        ElementwiseKernel(640),
    ]
    assert kernels("quantise", 1, 1, TINY, 1, 8)[0] == ElementwiseKernel(16 * (2 + 4))
    single = replace(TINY, dtype="float32")
    assert (
        len(kernels("quantise", 1, 1, single, 1, 8))
        == len(kernels("quantise", 1, 1, TINY, 1, 8)) - 1
    )
    assert compute_flops("dequantise", 5, 5, TINY, 2) == 0


def test_measured_times_are_read_by_operation_bits_and_elements():
    tables = tuple(
        QuantisationTable(op, bits, Curve((32.0, 320.0), (scale, 10 * scale)))
        for op, scale in (("quantise", 1.0), ("dequantise", 2.0))
        for bits in (8,)
    )
    base = machine()
    hardware = replace(base, elementwise=replace(base.elementwise, tables=tables))
    costs = OperationCosts(hardware, TINY, Workload(2, 40, 1, kv_bits=8))
    assert costs.compute("quantise", 1, 1).seconds == 1.0
    found = costs.compute("dequantise", 5, 5)  # 160 elements
    assert (found.seconds, found.in_range) == (pytest.approx(10.0), True)
    assert costs.token_knots("dequantise", 40) == [0, 1, 10, 40]
    faster = OperationCosts(hardware.with_faster("hbm", 2), TINY, costs.workload)
    assert faster.compute("dequantise", 5, 5).seconds == pytest.approx(5.0)
    other = OperationCosts(hardware, TINY, replace(costs.workload, kv_bits=4))
    assert other.compute("dequantise", 5, 5).seconds < 1e-3


def test_a_timeline_by_hand():
    """One layer of one step; each copied byte takes a second, compute takes what is left to it."""
    model, job = tiny_model(n_layers=1), Workload(1, 8, 1, kv_bits=8)
    graph = lower("row", model, job, [[3]])
    hardware = machine(flops_per_s=1e30, memory_bytes_per_s=1.0, h2d=1.0, d2h=1.0)
    ends = {name: end for name, (_, end) in times(simulate(graph, hardware)).items()}
    # embed 32 + 48 + 32; qkv 32 + 32 + 64 + 32; quantise 96 + 64 + 8 * 32 + 3 * 128 + 80 bytes
    assert ends["s0.embed"] == 112
    assert ends["s0.L0.qkv"] == 112 + 160
    assert ends["s0.L0.quantise"] == 272 + 880
    assert ends["s0.L0.store_kv"] == 1152 + 32
    # X of 3 tokens at 16 bytes, then rows of 5 at 32: both long there; recomputing is all product
    assert (ends["s0.L0.load_x"], ends["s0.L0.load_kv"]) == (48, 48 + 160)
    assert ends["s0.L0.recompute"] == pytest.approx(1152)
    # 5 tokens: 80 + 160 to widen, 320 to scale, 320 to add
    assert ends["s0.L0.dequantise"] == pytest.approx(1152 + 880)
    # 9 tokens of 32 bytes read, 48 for the residual
    assert ends["s0.L0.attention"] == pytest.approx(2032 + 288 + 48)


def test_loads_wait_for_rows_to_be_dequantised_and_not_for_the_attention():
    model = tiny_model(n_layers=4)
    graph = lower("row", model, Workload(1, 8, 1, kv_bits=4), [[0] * 4])
    waits = {one.id: one.deps for one in graph.tasks if one.op == "load_kv"}
    assert waits == {
        "s0.L0.load_kv": (),
        "s0.L1.load_kv": (),
        "s0.L2.load_kv": ("s0.L0.dequantise",),
        "s0.L3.load_kv": ("s0.L1.dequantise",),
    }
    stores = {one.id: one.deps for one in graph.tasks if one.op == "store_kv"}
    assert stores["s0.L2.store_kv"] == ("s0.L2.quantise",)


PARTS = {
    "rows": (("load_kv",), ("dequantise",)),
    "new row": (("quantise",), ("store_kv",)),
    "kv": (("dequantise", "recompute", "qkv"), ("attention", "quantise")),
}
"""Who writes and who reads each part of a staging slot."""


def ancestors(graph: TaskGraph) -> dict[str, set[str]]:
    """For each task the ids of all that must be done before it starts, by deps and lane order."""
    before = {one.id: set(one.deps) for one in graph.tasks}
    for queue in graph.lanes.values():
        for early, late in pairwise(queue):
            before[graph.tasks[late].id].add(graph.tasks[early].id)
    for one in graph.tasks:
        before[one.id].update(*(before[dep] for dep in list(before[one.id])))
    return before


@given(models(4), workloads(max_prompt=6), st.data(), st.sampled_from(["row", "column"]))
@examples(60)
def test_no_buffer_is_overwritten_while_it_is_read_and_all_is_there_in_time(
    model, job, data, schedule
):
    job = replace(job, kv_bits=8, n_batches=2 if schedule == "column" else 1)
    graph = lower(schedule, model, job, data.draw(splits(model, job)))
    before = ancestors(graph)
    users = defaultdict(list)
    for one in graph.tasks:
        users[one.slot, one.op].append(one)
    for writers, readers in PARTS.values():
        for slot in range(graph.slots):
            touching = [one for op in (*writers, *readers) for one in users[slot, op]]
            for old in touching:
                for new in touching:
                    newer = (new.step, new.layer, new.batch) > (old.step, old.layer, old.batch)
                    if newer and new.op in writers:
                        assert old.id in before[new.id], f"{new.id} may overtake {old.id}"
    for one in graph.tasks:
        if one.op in ("dequantise", "store_kv", "attention"):
            source = {"dequantise": "load_kv", "store_kv": "quantise", "attention": "dequantise"}
            needed = one.id.replace(one.op, source[one.op])
            assert needed not in graph.index or needed in before[one.id]
    loads, widened = ([t for t in graph.tasks if t.op == op] for op in ("load_kv", "dequantise"))
    assert [(t.token_start, t.token_stop) for t in loads] == [
        (t.token_start, t.token_stop) for t in sorted(widened, key=lambda t: loads_order(t, loads))
    ]


def loads_order(task, loads):
    """Place of a dequantisation's load among all loads."""
    return [one.id for one in loads].index(task.id.replace("dequantise", "load_kv"))


@pytest.mark.parametrize("bits", [8, 4])
def test_bytes_over_the_links_are_those_of_the_rows(bits):
    job = Workload(2, 8, 2, kv_bits=bits)
    graph = lower("row", TINY, job, uniform(TINY, job, 3))
    row = host_row_bytes(TINY, bits)
    loaded = sum(one.bytes for one in graph.tasks if one.op == "load_kv")
    stored = sum(one.bytes for one in graph.tasks if one.op == "store_kv")
    assert loaded == 2 * 2 * (5 + 6) * row
    assert stored == 2 * 2 * 2 * row
    assert (
        graph.sha256 != lower("row", TINY, replace(job, kv_bits=None), uniform(TINY, job, 3)).sha256
    )


def test_the_smaller_the_rows_the_less_is_recomputed():
    """X of OPT is half of its KV, as large as its 8-bit rows, and twice its 4-bit rows."""
    model, hardware = find_model("opt-13b"), find_hardware("kvpr-a100")
    jobs = [Workload(32, 1024, 1, kv_bits=bits) for bits in (None, 8, 4)]
    plans = [make_plan(model, hardware, job) for job in jobs]
    recomputed = [sum(plan.steps[0].recomputed_tokens) for plan in plans]
    assert recomputed[0] > 0.5 * 1024 * 40
    assert recomputed[0] > recomputed[1] >= recomputed[2] == 0
    assert [kvpr_tokens(model, job, hardware, 1024) for job in jobs][2] == 0
    loads = [plan.baselines["load-all"] for plan in plans]
    assert loads == sorted(loads, reverse=True)


@pytest.mark.parametrize("bits", [8, 4])
@given(models(4), straight_machines(), st.builds(Workload, *[st.integers(1, 3)] * 4))
@examples(15)
def test_of_a_column_schedule_too_the_lp_s_value_is_the_simulated_makespan(
    bits, model, hardware, job
):
    plan = make_plan(model, hardware, replace(job, kv_bits=bits), "lp", "column")
    assert plan.lp_objective_s == pytest.approx(plan.makespan_s, rel=1e-6)
    moving = [value for name, value in plan.baselines.items() if name != "resident"]
    assert plan.makespan_s <= min(moving) * (1 + 1e-12)


def test_rivals_are_left_out_beside_a_quantised_cache():
    plan = make_plan(TINY, machine(), Workload(2, 8, 1, kv_bits=8))
    assert set(plan.baselines) == {"load-all", "recompute-all", "kvpr", "lp", "resident"}
