"""Latent attention, with and without an index, takes the times that were measured of it."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import pytest
from builders import machine

from sim.catalog import find_hardware, find_model
from sim.cost.model import CostModel
from sim.cost.restore import ATTENDING, RestoreCosts
from sim.graph.jobs import RestoreRequest, Workload
from sim.machine.curves import Curve, RaggedGrid
from sim.machine.prefill import HeadShape, Prefill, QueryHeads, Restore
from sim.machine.profile import HardwareProfile
from sim.machine.provenance import SourcedValue
from sim.machine.sparse import IndexSizes, SparseHeads, SparsePrefill
from sim.model.kernels import IndexedAttention
from sim.model.operations import kernels

pq = pytest.importorskip("pyarrow.parquet")

SYSTEMS = {"h100-sxm": "h100_sxm", "h200": "h200_sxm", "b200": "b200_sxm", "gb200": "gb200"}
DENSE, GLM = find_model("deepseek-v3").dequantised(), find_model("glm-5").dequantised()
V32 = find_model("deepseek-v3.2").dequantised()
KIND = -1
"""Place of the layers with experts."""


def raw(name, table, keys, **where):
    """Median seconds by the columns of `keys` in the rows of a table that match."""
    spec = find_spec("aiconfigurator_core")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("aiconfigurator-core is not installed")
    data = Path(spec.submodule_search_locations[0]) / "systems" / "data" / SYSTEMS[name]
    filters = [(column, "==", value) for column, value in where.items()]
    times = {}
    for row in pq.read_table(data / f"{table}.parquet", filters=filters).to_pylist():
        times.setdefault(tuple(row[key] for key in keys), []).append(row["latency"] / 1e3)
    return {key: median(found) for key, found in times.items() if median(found) > 0}


def restores(hardware, model):
    return RestoreCosts(hardware, model, RestoreRequest(prompt_tokens=2**17, cached_tokens=1))


def attention_s(costs, start, n_tokens):
    """Of a chunk in the last layer."""
    (part,) = costs._parts_of(costs.model.n_layers - 1, 1, start + n_tokens)
    found = costs._prefill_attention(start, n_tokens, 1.0, part)
    return sum(one.seconds for one in found), found


@pytest.mark.parametrize("name", SYSTEMS)
def test_latent_prefill_takes_the_measured_times(name):
    found = raw(
        name,
        "mla/trtllm/1.3.0rc20/context_mla_perf",
        ("num_heads", "isl"),
        kv_cache_dtype="bfloat16",
        batch_size=1,
    )
    hardware, compared = find_hardware(name), 0
    for heads in (8, 16, 128):
        costs = restores(hardware, DENSE.shard(128 // heads))
        for n in (1024, 4096, 16384):
            seconds, parts = attention_s(costs, 0, n)
            assert seconds == pytest.approx(found[heads, n], rel=1e-3)
            assert [one.source for one in parts] == ["measured"]
            compared += 1
    assert compared == 9


@pytest.mark.parametrize("name", SYSTEMS)
def test_decoding_with_an_index_adds_to_the_layer_what_was_measured(name):
    """Every timed context from 128 on, those that the thinned table leaves out too: within a tenth
    of the layer in nineteen of twenty, and mostly within a fortieth."""
    hardware, errors = find_hardware(name), []
    launches_s = 9e-6
    for model, package in ((V32, "deepseek-ai/DeepSeek-V3.2"), (GLM, "zai-org/GLM-5")):
        (index,) = {one.attention.index for one in model.layers}
        for heads in (64, 16):
            timed = raw(
                name,
                "sparse_attention/vllm/0.24.0/dsa_generation_module_perf",
                ("batch_size", "step"),
                model=package,
                kv_cache_dtype="bfloat16",
                gemm_type="bfloat16",
                num_heads=heads,
            )
            attention = replace(model.layers[-1].attention, n_heads=heads)
            operations = CostModel(hardware, model, Workload(1, 8, 1)).operations
            for (batch, context), seconds in timed.items():
                short = [value for at, value in timed.items() if at[0] == batch and at[1] < 128]
                if context < 128 or not short:
                    continue
                kernel = IndexedAttention(batch, context, attention, ())
                one = operations.kernel(kernel)
                assert one.source == "measured"
                rest_s = median(short) - launches_s
                errors.append(abs((rest_s + one.seconds) / seconds - 1))
        assert index.top_tokens == 2048
    assert len(errors) > 350
    assert median(errors) < 1 / 40
    assert sorted(errors)[int(0.95 * len(errors))] < 0.1


@pytest.mark.parametrize("name", SYSTEMS)
def test_chunks_with_an_index_take_the_time_of_their_three_kernels(name):
    """Chunks of 256 tokens and more, those that the thinned table leaves out too."""
    (table, where), errors = (find_hardware(name).restore.prefill.sparse, {"batch_size": 1}), []
    kernels_s = [
        raw(
            name,
            f"sparse_attention/sglang/0.5.14/glm5_{kernel}_module_perf",
            ("isl", "step"),
            **where,
        )
        for kernel in ("dsa_attn", "mqa_logits", "topk")
    ]
    index = GLM.layers[-1].attention.index
    for tokens, before in kernels_s[0]:
        if tokens >= 256 and (tokens, before) in kernels_s[1]:
            whole_s = sum(one.get((tokens, before), 0.0) for one in kernels_s)
            seconds, _ = table.at(64, index, before, tokens)
            errors.append(abs(seconds / whole_s - 1))
    assert len(errors) > 150
    assert median(errors) < 0.02
    assert sorted(errors)[int(0.95 * len(errors))] < 1 / 7


@pytest.mark.parametrize("name", list(SYSTEMS)[:3])
@pytest.mark.parametrize(
    ("model", "table"),
    [
        (DENSE, "mla/trtllm/1.3.0rc20/mla_context_module_perf"),
        (V32, "sparse_attention/vllm/0.24.0/dsa_context_module_perf"),
        (GLM, "sparse_attention/vllm/0.24.0/dsa_context_module_perf"),
    ],
)
def test_a_whole_layer_takes_as_long_as_another_table_says(name, model, table):
    """Timings of whole layers, products included, that no constant comes from: within a fifth."""
    attention = model.layers[-1].attention
    where = {"kv_cache_dtype": "bfloat16", "gemm_type": "bfloat16", "batch_size": 1, "step": 0}
    if model is not DENSE:
        where["model"] = {64: "deepseek-ai/DeepSeek-V3.2", 32: "zai-org/GLM-5"}[
            attention.index.n_heads
        ]
    timed = raw(name, table, ("isl",), num_heads=attention.n_heads, **where)
    costs = restores(find_hardware(name), model)
    for n in (4096, 8192, 16384):
        products_s = sum(
            costs.operations.kernel(one).seconds
            for op in ("qkv", "attention")
            for one in kernels(op, n, 1, model, 1, kind=KIND)
            if not isinstance(one, ATTENDING)
        )
        assert products_s + attention_s(costs, 0, n)[0] == pytest.approx(timed[n,], rel=0.2)


def with_prefill(heads=(), sparse=None, attention=(), rate=1e30):
    """A machine whose latents cost nothing but what its tables say."""
    hardware = machine(memory_bytes_per_s=rate, flops_per_s=rate)
    block = Prefill(
        SourcedValue("measured", rate), SourcedValue("measured", 0.0), heads=heads, sparse=sparse
    )
    return replace(
        hardware,
        attention=replace(hardware.attention, source="measured", sparse=attention),
        restore=Restore(block),
    )


def test_a_chunk_builds_keys_and_values_of_the_tokens_before_it():
    """Causal attention of 100 tokens after 300: 35,050 of 80,200 pairs of a prompt of 400."""
    curve = Curve((100.0, 400.0), (1e-3, 16e-3))
    heads = QueryHeads(192, 1, RaggedGrid((64.0, 128.0), (curve, curve)), 128)
    hardware = with_prefill((heads,))
    whole_s = 16e-3 * 35_050 / 80_200
    slow = replace(hardware, gemm=replace(hardware.gemm, flops_per_s=1e15))
    built_s = 2 * 300 * 512 * 128 * (128 + 128) / 1e15
    chunk = restores(slow, DENSE)._chunk_attention(
        300, 100, 1.0, next(iter(restores(slow, DENSE)._parts_of(DENSE.n_layers - 1, 1, 400)))
    )
    assert chunk[0].seconds == pytest.approx(whole_s)
    # Decoding 100 tokens over 400 latents each: 2 x 128 x (512 + 64 + 512) FLOPs a pair.
    decoded_s = 100 * 400 * 2 * 128 * 1088 / 1e15
    assert decoded_s < whole_s + built_s
    assert attention_s(restores(slow, DENSE), 300, 100)[0] == pytest.approx(decoded_s)
    fast = replace(heads, fan=heads.fan.scaled(1e-4))
    quick = replace(with_prefill((fast,)), gemm=slow.gemm)
    seconds, parts = attention_s(restores(quick, DENSE), 300, 100)
    assert seconds == pytest.approx(whole_s * 1e-4 + built_s)
    assert len(parts) == 2


INDEX = IndexSizes(32, 128, 2048, 576)
SPARSE = SparsePrefill(
    64,
    64,
    INDEX,
    Curve((1.0, 1000.0), (1e-6, 1e-3)),
    RaggedGrid(
        (1.0, 1000.0), (Curve((1.0, 5000.0), (1e-6, 2e-6)), Curve((1.0, 5000.0), (2e-4, 6e-4)))
    ),
    RaggedGrid(
        (1.0, 1000.0), (Curve((1.0, 5000.0), (1e-6, 2e-6)), Curve((1.0, 5000.0), (1e-4, 3e-4)))
    ),
)


def test_heads_go_in_blocks_and_scores_with_the_heads_of_the_index():
    index = GLM.layers[-1].attention.index
    assert SPARSE.at(64, index, 4999, 1000) == (pytest.approx(1e-3 + 6e-4 + 3e-4), True)
    assert SPARSE.at(128, index, 4999, 1000) == (pytest.approx(2e-3 + 6e-4 + 3e-4), False)
    assert SPARSE.at(8, index, 4999, 1000) == (pytest.approx(1e-3 + 6e-4 + 3e-4), False)
    wide = replace(index, n_heads=64)
    assert SPARSE.at(64, wide, 4999, 1000) == (pytest.approx(1e-3 + 12e-4 + 3e-4), False)
    assert SPARSE.at(64, index, 0, 1000) == (pytest.approx(1e-3 + 2e-4), True)  # no choice yet
    shared = replace(index, shared=True)
    assert SPARSE.at(64, shared, 4999, 1000) == (pytest.approx(1e-3), True)


def test_an_index_of_other_sizes_goes_by_its_parts():
    fan = RaggedGrid((1.0, 2.0), (Curve((1.0, 4096.0), (1e-6, 5e-6)),) * 2)
    tables = tuple(SparseHeads(heads, INDEX, fan.scaled(heads)) for heads in (32, 128))
    operations = CostModel(with_prefill(attention=tables), GLM, Workload(1, 8, 1)).operations
    (kernel,) = (
        one for one in kernels("attention", 1, 4096, GLM, 1) if isinstance(one, IndexedAttention)
    )
    one = operations.kernel(replace(kernel, attention=replace(kernel.attention, n_heads=40)))
    assert (one.seconds, one.source) == (pytest.approx(32 * 5e-6), "fitted")
    few = replace(kernel.attention, index=replace(kernel.attention.index, top_tokens=1024))
    parts_s = sum(operations.kernel(part).seconds for part in kernel.parts)
    assert operations.kernel(replace(kernel, attention=few)).seconds == pytest.approx(parts_s)


def test_faster_parts_shorten_the_tables():
    hardware = find_hardware("h200")
    faster = hardware.with_faster("compute", 2.0)
    index = GLM.layers[-1].attention.index
    before, after = (one.restore.prefill for one in (hardware, faster))
    assert after.sparse.at(64, index, 0, 512)[0] == pytest.approx(
        before.sparse.at(64, index, 0, 512)[0] / 2
    )
    shape = HeadShape(1, 192, 128)
    assert after.attention(16, shape).at(512)[0] == pytest.approx(
        before.attention(16, shape).at(512)[0] / 2
    )
    old, new = hardware.attention.sparse[0].fan, faster.attention.sparse[0].fan
    assert new.at(8, 4096)[0] == pytest.approx(old.at(8, 4096)[0] / 2)


def test_profiles_without_such_tables_keep_their_content():
    """Hashes of studies depend on it; with tables a profile is what it was after a round trip."""
    content = find_hardware("a100-80g").to_dict()
    assert "sparse" not in content["attention"]
    assert "sparse" not in content["restore"]["prefill"]
    hardware = find_hardware("b200")
    assert HardwareProfile.from_dict(hardware.to_dict(), "b200") == replace(hardware, checks=())
