"""Published operator timings become a device, from tables made here in the package's form."""

from __future__ import annotations

import json
import sys

import pytest

from sim.catalog import find_compute, find_hardware
from sim.errors import BadFile, UnknownName
from sim.machine.aiconfigurator import SystemTables, derive_part, engines, system_names
from sim.machine.components import ComputePart
from sim.machine.cross_validation import leave_one_out
from sim.machine.prefill import PromptAttention
from sim.model.kernels import ExpertsShape

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("yaml")

SIZES = (4096, 8192, 16384)
HEADS = ((8, 8), (16, 16), (32, 32), (32, 8))
"""Query heads and KV heads."""

DATASHEET = """
gpu:
  mem_bw: 1000000000000
  mem_bw_empirical_scaling_factor: 0.5
  mem_empirical_constant_latency: 0.000002
  mem_capacity: 64000000000
  bfloat16_tc_flops: 100000000000000
  fp8_tc_flops: 200000000000000
node:
  pcie_bw: 32000000000
"""


def product_s(m, n, k):
    """Twice as long as 1e14 FLOP/s and 1e12 bytes/s would take."""
    return 2 * max(2 * m * n * k / 1e14, 2 * (n * k + m * (n + k)) / 1e12)


def decode_s(kv_heads, context):
    return 5e-6 + 4 * kv_heads * 128 * context / 0.8e12


def prefill_s(heads, tokens):
    return 2 * heads * 128 * tokens**2 / 5e13


def attention_row(batch, heads, kv_heads, tokens, step, seconds, **others):
    return {
        "device": "TEST",
        "batch_size": batch,
        "num_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 128,
        "isl": tokens,
        "step": step,
        "kv_cache_dtype": "bfloat16",
        "window_size": 0,
        "latency": seconds * 1e3,
        **others,
    }


def tables():
    gemm = [
        {"device": "TEST", "gemm_dtype": dtype, "m": m, "n": n, "k": k, "latency": seconds * 1e3}
        for m in (1, 16, *SIZES)
        for n in SIZES
        for k in SIZES
        for dtype, seconds in (
            ("bfloat16", product_s(m, n, k)),
            ("fp8", product_s(m, n, k) / 2),
        )
    ]
    decode = [
        attention_row(batch, heads, kv, 1, context - 1, decode_s(batch * kv, context))
        for batch in (1, 4, 16)
        for heads, kv in HEADS
        for context in (64, 1024, 4096)
    ]
    prefill = [
        attention_row(1, heads, kv, tokens, 0, prefill_s(heads, tokens))
        for heads, kv in HEADS
        for tokens in (1, 512, 2048, 8192)
    ]
    return {
        "gemm_perf": gemm,
        "generation_attention_perf": decode,
        "context_attention_perf": prefill,
    }


FAMILIES = {
    "gemm_perf": "gemm",
    "custom_allreduce_perf": "comm",
    "moe_perf": "moe",
    "mla_generation_module_perf": "mla",
}


def write(folder, made, run="engine/1.0"):
    for name, rows in made.items():
        family = FAMILIES.get(name, "attention")
        path = folder / "aiconfigurator_core/systems/data/test_chip" / family / run
        path.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path / f"{name}.parquet")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package whose code must not be imported."""
    write(tmp_path, tables())
    module = tmp_path / "aiconfigurator_core"
    (module / "__init__.py").write_text("raise RuntimeError('imported')")
    (module / "systems/test_chip.yaml").write_text(DATASHEET)
    dist = tmp_path / "aiconfigurator_core-9.9.dist-info"
    dist.mkdir()
    (dist / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: aiconfigurator-core\nVersion: 9.9\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "aiconfigurator_core", raising=False)
    return tmp_path


def derived():
    return derive_part(SystemTables.find("test_chip", "engine"), "chip")


@pytest.mark.usefixtures("package")
def test_a_device_holds_what_was_timed_in_seconds_with_its_source():
    part = derived()
    assert (
        part.description
        == "TEST, operator timings of aiconfigurator-core 9.9, test_chip, engine 1.0"
    )
    assert part.environment is not None
    assert part.environment["package"] == "aiconfigurator-core 9.9"
    assert (part.gemm.source, part.attention.source) == ("measured", "measured")
    assert (part.elementwise.source, part.memory_bytes.source) == ("datasheet", "datasheet")
    assert part.usual_link == "pcie4-x16"
    assert part.memory_bytes.value == 64e9
    assert part.elementwise.bytes_per_s == 0.5e12
    assert part.elementwise.curve is not None
    assert part.elementwise.curve.at(1e6)[0] == pytest.approx(2e-6 + 1e6 / 0.5e12)


def test_all_reduces_are_those_of_the_newest_version_as_a_graph_replays_them(package):
    assert derived().all_reduce is None
    for version, slower in (("0.9", 3), ("1.0", 1)):
        rows = [
            {
                "allreduce_dtype": "bfloat16",
                "backend": f"engine_{how}",
                "num_gpus": gpus,
                "message_size": elements,
                "latency": slower * eager * gpus * (1 + elements) * 1e-3,
            }
            for how, eager in (("graph", 1), ("eager", 10))
            for gpus in (2, 8)
            for elements in (128, 4096)
        ]
        write(package, {"custom_allreduce_perf": rows}, f"engine/{version}")
    found = derived().all_reduce
    assert found is not None
    assert [table.gpus for table in found.tables] == [2, 8]
    assert found.seconds(8, 2 * 128) == (pytest.approx(8e-6 * 129), "measured", True)
    assert found.bytes_per_s == 32e9  # of PCIe, where the file names no link between GPUs


def test_experts_are_read_back_at_the_weights_that_even_routing_touches(package):
    assert derived().gemm.experts == ()
    rows = [
        {
            "moe_dtype": "bfloat16",
            "moe_ep_size": 1,
            "moe_tp_size": parts,
            "hidden_size": 4096,
            "inter_size": 2048,
            "topk": 2,
            "num_experts": 16,
            "num_tokens": n,
            "distribution": distribution,
            "latency": 1e3 * spread * 2 * min(16, 2 * n) * 3 * 4096 * 2048 * 2 / parts / 1e12,
        }
        for parts in (1, 2)
        for n in (1, 4, 64)
        for distribution, spread in (("balanced", 1), ("power_law_1.01", 2), ("power_law_1.2", 3))
    ]
    write(package, {"moe_perf": rows})
    (table,) = derived().gemm.experts
    assert (table.weight_bits, table.tokens) == (16, (1, 4, 64))
    assert [line.split()[:4] for line in table.shapes] == [
        ["4096", "1024", "2", "16"],
        ["4096", "2048", "2", "16"],
    ]
    shape = ExpertsShape(4096, 2048, 2, 16)
    curve, measured = table.curve(shape)
    assert measured
    # Timed at twice the bytes over the rate; the floor is the fastest of all.
    for n in (1, 4, 64):
        read_s = shape.touched(n) * 3 * 4096 * 2048 * 2 / 1e12
        even_s = min(16, 2 * n) * 3 * 4096 * 2048 * 2 / 1e12
        expected_s = (table.floor_s + read_s) * 2 * even_s / (table.floor_s + even_s)
        assert curve.at(n)[0] == pytest.approx(expected_s, rel=1e-3)


def test_latent_attention_is_what_a_longer_context_adds(package):
    assert derived().attention.latent == ()
    rows = [
        {
            "kv_cache_dtype": "bfloat16",
            "gemm_type": "bfloat16",
            "num_heads": heads,
            "batch_size": batch,
            "isl": 1,
            "step": context - 1,
            "latency": 1e3 * (1e-4 + batch * context * heads * 1e-9),
        }
        for heads in (16, 128)
        for batch in (1, 8)
        for context in (4, 256, 1024, 4096)
    ]
    write(package, {"mla_generation_module_perf": rows})
    found = derived().attention.latent
    assert [one.n_heads for one in found] == [16, 128]
    for one in found:
        for batch in (1, 8):
            added_s = batch * (1024 - 4) * one.n_heads * 1e-9
            assert one.fan.at(batch, 1024)[0] == pytest.approx(2e-6 + added_s, rel=1e-3)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("m", [1, 16, 4096, 16384])
def test_products_are_read_back_as_they_were_timed(m):
    wide, narrow = derived().gemm.utilisation
    assert (wide.weight_bits, narrow.weight_bits) == (16, 8)
    for table, factor in ((wide, 1), (narrow, 0.5)):
        curve, inside = table.curve(8192, 4096)
        assert inside
        assert curve.at(m)[0] == pytest.approx(factor * product_s(m, 8192, 4096), rel=2e-3)


@pytest.mark.usefixtures("package")
def test_rates_of_the_device_are_those_of_large_products():
    part = derived()
    assert part.gemm.flops_per_s == pytest.approx(0.5e14)
    assert part.gemm.bytes_per_s == pytest.approx(0.5e12, rel=1e-3)
    assert part.prefill is not None
    assert part.prefill.attention_flops_per_s.value == pytest.approx(5e13, rel=1e-3)


@pytest.mark.usefixtures("package")
def test_decode_attention_goes_by_the_kv_heads_of_all_sequences():
    (heads,) = derived().attention.heads
    assert heads.head_dim == 128
    assert heads.fan.rows == (8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
    for rows, context in ((8, 64), (128, 1024), (512, 4096), (384, 2560)):
        assert heads.fan.at(rows, context)[0] == pytest.approx(decode_s(rows, context), rel=1e-3)


@pytest.mark.usefixtures("package")
def test_prefill_attention_is_kept_by_groups_that_have_several_head_counts():
    part = derived()
    assert part.prefill is not None
    (heads,) = part.prefill.heads
    assert (heads.head_dim, heads.queries_per_kv) == (128, 1)
    assert heads.fan.curves[0].work == (512.0, 2048.0, 8192.0)
    prompts = PromptAttention(heads, 16, heads.shape)
    assert prompts.at(1024)[0] == pytest.approx(prefill_s(16, 1024), rel=1e-3)


def test_rows_of_other_kinds_are_left_out_and_repeats_have_their_median(package):
    made = tables()
    again = [
        {**made["gemm_perf"][0], "latency": made["gemm_perf"][0]["latency"] * f} for f in (3, 9)
    ]
    made["gemm_perf"] += again
    odd = ({"window_size": 128}, {"kv_cache_dtype": "fp8"})
    made["generation_attention_perf"] += [attention_row(1, 8, 8, 1, 63, 9.0, **one) for one in odd]
    write(package, made)
    part = derived()
    shape = made["gemm_perf"][0]
    curve, _ = part.gemm.utilisation[0].curve(shape["n"], shape["k"])
    assert curve.at(shape["m"])[0] == pytest.approx(
        3 * product_s(shape["m"], shape["n"], shape["k"]), rel=2e-3
    )
    assert part.attention.heads[0].fan.at(8, 64)[0] == pytest.approx(decode_s(8, 64), rel=1e-3)


def test_what_came_out_of_a_cache_is_taken_at_the_rate_of_memory(package):
    made = tables()
    for row in made["gemm_perf"]:
        if (row["m"], row["n"], row["k"], row["gemm_dtype"]) == (1, 4096, 4096, "bfloat16"):
            row["latency"] *= 0.1
    for row in made["generation_attention_perf"]:
        row["latency"] *= 0.1
    write(package, made)
    part = derived()
    weights_s = 2 * (4096 * 4096 + 2 * 4096) / 1e12
    assert part.gemm.utilisation[0].curve(4096, 4096)[0].at(1)[0] == pytest.approx(
        weights_s, rel=2e-3
    )
    assert "1 of 45 products were faster than device memory" in part.gemm.note
    assert part.attention.bytes_per_s == pytest.approx(1e12)


def test_a_table_without_a_column_is_not_restricted_by_it(package):
    made = tables()
    for name in ("generation_attention_perf", "context_attention_perf"):
        for row in made[name]:
            del row["window_size"]
    write(package, made)
    assert derived().attention.heads


def test_the_newest_version_that_has_all_tables_is_taken(package):
    write(package, tables(), "engine/1.10")
    write(package, {"gemm_perf": tables()["gemm_perf"]}, "engine/2.0")
    assert system_names() == ["test_chip"]
    assert engines("test_chip") == {"engine": ["1.0", "1.10"]}
    assert SystemTables.find("test_chip", "engine").engine_version == "1.10"
    assert SystemTables.find("test_chip", "engine", "1.0").engine_version == "1.0"


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("test_chop", "engine"), "did you mean 'test_chip'.* systems: test_chip"),
        (("test_chip", "motor"), "engine 'motor' is unknown; .*known: engine"),
        (("test_chip", "engine", "3"), "engine version '3' is unknown; .*known: 1.0"),
    ],
)
def test_what_the_package_lacks_is_told_with_what_it_has(asked, message):
    with pytest.raises(UnknownName, match=message):
        SystemTables.find(*asked)


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("test_chip.yaml", "gpu: 3", "test_chip.yaml cannot be read"),
        ("test_chip.yaml", "gpu: {mem_bw: 1}\nnode: {pcie_bw: 1}", "no figure gpu.mem_capacity"),
        ("data/test_chip/gemm/engine/1.0/gemm_perf.parquet", "PAR1", "gemm_perf.parquet cannot"),
    ],
)
def test_a_broken_file_of_the_package_is_named(package, path, content, message):
    (package / "aiconfigurator_core/systems" / path).write_text(content)
    with pytest.raises(BadFile, match=message):
        derived()


@pytest.mark.usefixtures("package")
def test_the_verb_writes_a_machine_with_its_checks_and_says_how_good_they_are(call, tmp_path):
    path = tmp_path / "chip.json"
    words = ["hardware", "import", "aiconfigurator", "--system", "test_chip", "--engine", "engine"]
    status, stdout, stderr = call(*words, "--link", "pcie5-x16", "-o", path)
    assert status == 0
    assert "reading the tables" in stderr
    assert "matmuls with 16-bit weights: 5 rows x 3 n x 3 k" in stdout
    assert "decode attention" in stdout
    made = find_hardware(str(path))
    assert made.links.h2d.bytes_per_s == 51.75e9
    assert made.checks == leave_one_out(made)
    status, stdout, _ = call(*words, "-o", path, "--json")
    answer = json.loads(stdout)
    assert {one["kind"] for one in answer["checks"]} == {one.kind for one in made.checks}
    assert ComputePart.load(path).checks == made.checks
    job = ["--model", "opt-125m", "--batch", "2", "--prompt", "64", "--json"]
    status, stdout, _ = call("plan", "--hardware", f"{path}+nvlink-c2c", *job)
    assert status == 0
    assert json.loads(stdout)["hardware"] == "chip+nvlink-c2c"


def test_without_the_package_the_verb_names_the_extra(call, monkeypatch, tmp_path):
    monkeypatch.setattr("sim.machine.aiconfigurator.tables.find_spec", lambda _: None)
    words = ["hardware", "import", "aiconfigurator", "--system", "h100_sxm", "-o"]
    status, _, stderr = call(*words, tmp_path / "x.json")
    assert status == 2
    assert "aiconfigurator-core is not installed" in stderr
    assert "pip install 'kvoverlap[silicon]'" in stderr


def test_a_shipped_devices_checks_are_those_of_its_tables():
    made = find_hardware("h100-sxm+pcie5-x16")
    checks = {errors.kind: errors for errors in made.checks}
    assert leave_one_out(made) == made.checks
    assert checks["gemm"].median_abs_error_frac < 0.05
    assert checks["attention"].median_abs_error_frac < 0.03
    assert checks["prefill"].median_abs_error_frac < 0.03


def test_a_shipped_device_is_what_the_installed_package_gives():
    """Where the package is installed in the version that the shipped files name."""
    shipped = find_compute("a100-sxm-80g")
    try:
        tables = SystemTables.find("a100_sxm", "vllm")
    except ModuleNotFoundError:
        pytest.skip("aiconfigurator-core is not installed")
    if shipped.environment is None or tables.package_version not in shipped.environment["package"]:
        pytest.skip("another version of aiconfigurator-core is installed")
    assert derive_part(tables, "a100-sxm-80g") == shipped
