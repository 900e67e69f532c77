"""Kernels of each operation counted by hand, priced from rates and from tables."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from builders import decode_graph, dispatch, examples, machine, models, task, tiny_model
from hypothesis import given
from hypothesis import strategies as st

from sim.catalog import find_model
from sim.cost.model import CostModel
from sim.graph.jobs import Workload
from sim.lanes import H2D
from sim.machine.curves import Curve, Grid, RaggedGrid
from sim.machine.links import Link
from sim.machine.profile import AttentionTable, GemmTable, KvHeads
from sim.model.kernels import DecodeAttention, ElementwiseKernel, MatMul
from sim.model.operations import compute_flops, kernels

JOB = Workload(batch_size=2, prompt_tokens=500, gen_tokens=1)
OPT, LLAMA = find_model("opt-13b"), find_model("llama-3.1-8b")
# hidden 8 = 2 heads of 4, MLP 32, 2 bytes an element: X of a token is 16 bytes, so are K and V.
TINY = tiny_model()


def costs(hardware=None, model=TINY, job=JOB):
    return CostModel(hardware or machine(), model, job).operations


def with_tables(shapes, m=(1.0, 100.0, 200.0), seconds=(1.0, 1.0, 3.0), source="measured"):
    base = machine(gemm_bytes_per_s=1e9)
    tables = tuple(GemmTable(n, k, Curve(m, seconds)) for n, k in shapes)
    return replace(base, gemm=replace(base.gemm, source=source, tables=tables))


@pytest.mark.parametrize("model", [OPT, LLAMA, TINY], ids=lambda model: model.name)
def test_recomputing_is_two_projections_of_every_token(model):
    flops = compute_flops("recompute", 100, 100, model, 32)
    assert flops == 4 * 32 * 100 * model.hidden_size * model.kv_size


def test_flops_of_one_opt_13b_layer():
    hidden, context, batch = 5120, 1024, 32
    assert compute_flops("qkv", 1, 0, OPT, batch) == 2 * batch * hidden * 3 * hidden
    assert compute_flops("mlp", 1, 0, OPT, batch) == 2 * batch * 2 * hidden * 4 * hidden
    reading = 4 * batch * context * hidden
    projection = 2 * batch * hidden * hidden
    assert compute_flops("attention", 1, context, OPT, batch) == reading + projection
    assert compute_flops("head", 1, 0, OPT, batch) == 2 * batch * hidden * 50272
    assert compute_flops("embed", 1, 0, OPT, batch) == 0


def test_flops_of_one_llama_8b_layer_with_grouped_queries():
    assert compute_flops("qkv", 1, 0, LLAMA, 1) == 2 * 4096 * (4096 + 2 * 1024)
    assert compute_flops("mlp", 1, 0, LLAMA, 1) == 2 * 3 * 4096 * 14336
    assert compute_flops("attention", 1, 10, LLAMA, 1) == 4 * 10 * 4096 + 2 * 4096 * 4096


def test_kernels_of_a_plain_mlp_model():
    assert kernels("embed", 1, 9, TINY, 2) == [
        ElementwiseKernel(64),
        ElementwiseKernel(96),
        ElementwiseKernel(64),
    ]
    qkv = [
        ElementwiseKernel(64),
        ElementwiseKernel(64),
        MatMul(2, 24, 8),
        ElementwiseKernel(128),
        ElementwiseKernel(64),
    ]
    assert kernels("qkv", 1, 9, TINY, 2) == qkv
    assert kernels("recompute", 5, 5, TINY, 2) == [MatMul(10, 16, 8)]
    attention = [
        DecodeAttention(2, 9, TINY.layers[0].attention),
        MatMul(2, 8, 8),
        ElementwiseKernel(96),
    ]
    assert kernels("attention", 1, 9, TINY, 2) == attention
    up, down = MatMul(2, 32, 8), MatMul(2, 8, 32)
    assert kernels("mlp", 1, 9, TINY, 2) == [
        ElementwiseKernel(64),
        up,
        ElementwiseKernel(256),
        down,
        ElementwiseKernel(96),
    ]
    assert kernels("head", 1, 9, TINY, 2) == [
        ElementwiseKernel(64),
        MatMul(2, 64, 8),
        ElementwiseKernel(512),
        ElementwiseKernel(256),
    ]


def test_kernels_of_a_gated_rotary_model_with_normed_keys():
    model = tiny_model(n_kv_heads=1, gated_mlp=True, rotary=True, qk_norm=True)
    # Keys take 5 * 8 bytes, queries 5 * 16; a norm in place writes its result back.
    keys = [
        ElementwiseKernel(80),
        ElementwiseKernel(80),
        ElementwiseKernel(40),
        ElementwiseKernel(80),
        ElementwiseKernel(80),
        ElementwiseKernel(80),
        ElementwiseKernel(120),
    ]
    queries = [
        ElementwiseKernel(160),
        ElementwiseKernel(80),
        ElementwiseKernel(160),
        ElementwiseKernel(160),
        ElementwiseKernel(160),
        ElementwiseKernel(240),
    ]
    assert kernels("recompute", 5, 5, model, 1) == [MatMul(5, 8, 8), *keys]
    start = [
        ElementwiseKernel(160),
        ElementwiseKernel(160),
        MatMul(5, 16, 8),
        ElementwiseKernel(160),
    ]
    assert kernels("qkv", 5, 5, model, 1) == [*start, *keys, *queries, ElementwiseKernel(160)]
    up = MatMul(5, 32, 8)
    down = MatMul(5, 8, 32)
    gate = [ElementwiseKernel(640), ElementwiseKernel(960)]
    assert kernels("mlp", 5, 5, model, 1) == [
        ElementwiseKernel(160),
        up,
        up,
        *gate,
        down,
        ElementwiseKernel(240),
    ]


def test_a_copy_is_no_compute_operation():
    with pytest.raises(ValueError, match="load_kv is not a compute operation"):
        kernels("load_kv", 1, 1, TINY, 1)


def test_a_product_costs_the_larger_of_arithmetic_and_memory():
    # 10 rows of [10, 8] x [8, 16]: 2560 flops; 16*8 + 10*(16 + 8) = 368 elements of 2 bytes.
    fast_memory = costs(machine(flops_per_s=2560.0, gemm_bytes_per_s=1e9))
    assert fast_memory.compute("recompute", 5, 5).seconds == pytest.approx(1.0)
    slow_memory = costs(machine(flops_per_s=2560.0, gemm_bytes_per_s=368.0))
    assert slow_memory.compute("recompute", 5, 5).seconds == pytest.approx(2.0)
    no_memory = costs(machine(flops_per_s=1280.0))
    assert no_memory.compute("recompute", 5, 5).seconds == pytest.approx(2.0)


def test_attention_reads_all_keys_and_values_once():
    # 2 sequences * 9 tokens * 32 bytes, then 2*2*8*8 flops and 96 bytes of a pass.
    priced = costs(machine(flops_per_s=256.0, memory_bytes_per_s=96.0))
    assert priced.compute("attention", 1, 9).seconds == pytest.approx(576 / 96 + 1 + 1)


def test_a_copy_costs_latency_and_bytes_in_its_own_direction():
    h2d, d2h = Link("measured", 100.0, latency_s=0.5), Link("datasheet", 50.0)
    priced = costs(machine(h2d=h2d, d2h=d2h))
    there, back = priced.copy("h2d", 200), priced.copy("d2h", 200)
    assert (there.seconds, there.source, there.in_range) == (2.5, "measured", True)
    assert (back.seconds, back.source, back.in_range) == (4.0, "datasheet", True)


def test_a_link_curve_says_where_it_was_sampled():
    link = Link("measured", 1.0, latency_s=9.0, curve=Curve((100.0, 200.0), (2.0, 3.0)))
    priced = costs(machine(h2d=link))
    for n_bytes, seconds, inside in [(150, 2.5, True), (50, 2.0, False), (400, 6.0, False)]:
        found = priced.copy("h2d", n_bytes)
        assert (found.seconds, found.in_range) == (seconds, inside)


def test_a_measured_shape_is_read_from_its_table():
    priced = costs(with_tables([(16, 8)]))
    for tokens, seconds, inside in [(25, 1.0, True), (75, 2.0, True), (200, 6.0, False)]:
        found = priced.compute("recompute", tokens, tokens)
        assert (found.seconds, found.source, found.in_range) == (seconds, "measured", inside)


def test_an_unmeasured_shape_is_scaled_from_the_nearest_and_says_so():
    # [m, 8] x [8, 16] is twice the work of the measured [m, 8] x [8, 8], arithmetic decides.
    profile = with_tables([(8, 8), (512, 512)])
    profile = replace(profile, gemm=replace(profile.gemm, flops_per_s=1.0))
    found = costs(profile).compute("recompute", 75, 75)
    assert (found.seconds, found.source, found.in_range) == (pytest.approx(4.0), "fitted", False)


def test_an_operation_is_as_strong_as_its_weakest_kernel():
    profile = with_tables([(24, 8)])
    assert costs(profile).compute("qkv", 1, 1).source == "datasheet"
    passes = replace(profile.elementwise, source="fitted")
    assert costs(replace(profile, elementwise=passes)).compute("qkv", 1, 1).source == "fitted"
    passes = replace(profile.elementwise, source="measured", curve=Curve((1.0, 999.0), (1.0, 1.0)))
    found = costs(replace(profile, elementwise=passes)).compute("qkv", 1, 1)
    assert (found.source, found.in_range) == ("measured", True)
    passes = replace(passes, curve=Curve((100.0, 999.0), (1.0, 1.0)))
    assert not costs(replace(profile, elementwise=passes)).compute("qkv", 1, 1).in_range


def test_attention_is_read_from_the_table_of_its_head_shape():
    base = machine(flops_per_s=1e30, memory_bytes_per_s=1e30)
    table = AttentionTable(2, 2, 4, Grid((1.0, 4.0), (10.0, 20.0), ((1.0, 2.0), (4.0, 8.0))))
    profile = replace(base, attention=replace(base.attention, source="measured", tables=(table,)))
    found = costs(profile).compute("attention", 1, 15)
    assert found.seconds == pytest.approx(1.5 * 2 / 3 + 6.0 / 3)
    assert found.in_range
    assert not costs(profile).compute("attention", 1, 30).in_range
    other = costs(profile, tiny_model(n_kv_heads=1)).compute("attention", 1, 15)
    assert (other.source, other.in_range) == ("datasheet", False)


def test_the_host_pays_for_a_task_and_for_each_of_its_kernels():
    hardware = machine(dispatch=dispatch(task_s=0.5, kernel_s=0.125, copy_s=0.25))
    priced = CostModel(hardware, TINY, JOB)
    by_op = {one.op: priced.launch_s(one) for one in decode_graph().tasks}
    kernel_counts = {"embed": 3, "qkv": 5, "recompute": 1, "attention": 3, "mlp": 5, "head": 4}
    for op, count in kernel_counts.items():
        assert by_op[op] == 0.5 + 0.125 * count
    assert by_op["load_kv"] == by_op["store_kv"] == 0.75


def test_a_task_is_priced_by_what_it_works_on():
    priced = CostModel(machine(h2d=8.0), TINY, JOB)
    assert priced.estimate(task("a", H2D, 4)).seconds == 0.5
    attention = next(one for one in decode_graph().tasks if one.op == "attention")
    assert priced.estimate(attention) == priced.operations.compute("attention", 1, 9)


SAMPLES = (3.0, 40.0, 170.0, 600.0)
TIMES = (1.0, 2.0, 8.0, 9.0)


def machine_with_curves(measured_shape):
    base = with_tables([measured_shape], SAMPLES, TIMES)
    passes = replace(base.elementwise, curve=Curve((64.0, 999.0, 7777.0), (0.5, 0.6, 3.0)))
    link = Link("measured", 1.0, curve=Curve((100.0, 5000.0, 9001.0), (0.1, 0.2, 2.0)))
    return replace(base, elementwise=passes, links=replace(base.links, h2d=link))


def assert_straight_between_knots(priced, model, job, max_tokens=400):
    def seconds(op, count):
        if op == "recompute":
            return priced.compute(op, count, count).seconds
        one = model.x_token_bytes if op == "load_x" else model.kv_token_bytes
        return priced.copy("h2d", job.batch_size * count * one).seconds

    for op in ("recompute", "load_x", "load_kv"):
        knots = priced.token_knots(op, max_tokens)
        assert knots[:2] == [0, 1]
        assert knots[-1] == max_tokens
        for low, high in pairwise(knots[1:]):
            start, end = seconds(op, low), seconds(op, high)
            for count in {low + 1, (low + high) // 2, high - 1} - {low, high}:
                line = start + (end - start) * (count - low) / (high - low)
                assert seconds(op, count) == pytest.approx(line, rel=1e-9), (op, low, count, high)


@given(models(), st.integers(1, 5), st.floats(1e6, 1e12), st.floats(1e6, 1e12))
@examples(60)
def test_datasheet_costs_are_straight_between_knots(model, batch, flops_per_s, bytes_per_s):
    link = Link("datasheet", 1e8, latency_s=1e-5)
    profile = machine(flops_per_s=flops_per_s, gemm_bytes_per_s=bytes_per_s, h2d=link)
    job = Workload(batch, 400, 1)
    assert_straight_between_knots(costs(profile, model, job), model, job)


@given(models(), st.integers(1, 5))
@examples(40)
def test_tabulated_costs_are_straight_between_knots(model, batch):
    profile = machine_with_curves((2 * model.kv_size, model.hidden_size))
    job = Workload(batch, 400, 1)
    assert_straight_between_knots(costs(profile, model, job), model, job)


@given(models(), st.integers(1, 5))
@examples(40)
def test_costs_scaled_from_another_shape_are_straight_between_knots(model, batch):
    profile = machine_with_curves((3 * model.kv_size, model.hidden_size))
    job = Workload(batch, 400, 1)
    assert_straight_between_knots(costs(profile, model, job), model, job)


def test_decode_attention_goes_by_kv_heads_of_all_sequences():
    fan = RaggedGrid(
        (2.0, 8.0), (Curve((100.0, 200.0), (1.0, 2.0)), Curve((100.0, 200.0), (4.0, 8.0)))
    )
    base = machine()
    attention = replace(base.attention, source="measured", heads=(KvHeads(TINY.head_dim, fan),))
    hardware = replace(base, attention=attention)
    product = costs(hardware).matmul(MatMul(2, 8, 8)).seconds + 3 * 32 / 1e9
    # A batch of 2 with 2 KV heads each: 4 rows, a third of the way from 2 to 8.
    found = costs(hardware).compute("attention", 1, 150)
    assert found.seconds == pytest.approx(1.5 + (6.0 - 1.5) / 3 + product)
    assert found.in_range
    assert not costs(hardware).compute("attention", 1, 201).in_range
    other = replace(hardware, attention=replace(attention, heads=(KvHeads(8, fan),)))
    found = costs(other).compute("attention", 1, 150)
    assert found.seconds == pytest.approx((1.5 + 1.5) / 2 + product)
    assert not found.in_range
