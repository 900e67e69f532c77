"""Devices described by data sheets: shipped ones, one's own, and unified memory."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from builders import policy_s

from planner import Job, Plan, PlanOptions, make_plan
from planner.advice import advise, describe, headline
from sim.catalog import RECORDINGS, compute_names, find_compute, find_hardware, find_model
from sim.cost.matmul import MatmulCosts
from sim.errors import BadFile, BadInput, DoesNotFit, KvOverlapError, NotMeasured, UnknownName
from sim.graph.jobs import RestoreRequest, Workload
from sim.machine.all_reduce import AllReduce
from sim.machine.datasheet import GPU_LINK_STEP_S
from sim.machine.what_if import with_memory, with_rate
from sim.model.kernels import MatMul

MINE = """\
memory = "24GiB"
memory_bandwidth = "1000GB/s"
flops = "100TFLOP/s"
flops_8bit = "200TFLOP/s"
link = "pcie4-x16"
host_memory = "64GiB"
compute_efficiency = 0.5
memory_efficiency = 0.8
efficiency_source = "a guess"
source = "my vendor, 2025"
"""

# GiB, GB/s, dense TFLOP/s at 16, 8 and 4 bits, link
SHEETS = {
    "a10": (24, 600, 125, None, None, "pcie4-x16"),
    "l4": (24, 300, 121, 242.5, None, "pcie4-x16"),
    "rtx-3090": (24, 936, 71, None, None, "pcie4-x16"),
    "rtx-4070": (12, 504, 58.3, 116.6, None, "pcie4-x16"),
    "rtx-4090": (24, 1008, 165.2, 330.3, None, "pcie4-x16"),
    "rtx-5070-ti": (16, 896, 87.9, 175.8, 703, "pcie5-x16"),
    "rtx-5090": (32, 1792, 209.5, 419, 1676, "pcie5-x16"),
    "rtx-a6000": (48, 768, 154.8, None, None, "pcie4-x16"),
    "rtx-6000-ada": (48, 960, 364.2, 728.5, None, "pcie4-x16"),
    "mi300x": (192, 5300, 1307.4, 2614.9, None, "pcie5-x16"),
    "gh200": (96, 4000, 990, 1979, None, "nvlink-c2c"),
    "dgx-spark": (128e9 / 2**30, 273, 125, 250, 500, "unified"),
}
DENSE = [find_model("llama-3.1-8b"), find_model("opt-6.7b", "bfloat16")]


def own(tmp_path, text=MINE, name="mine.toml"):
    path = tmp_path / name
    path.write_text(text)
    return path


def resident(model, machine, prompt=1024):
    return make_plan(Job(model, machine, Workload(1, prompt, 1)), PlanOptions(keep=True))


@cache
def resident_step_s(name, model):
    return policy_s(model, find_hardware(name), Workload(1, 1024, 1), "resident")


def test_every_device_without_a_table_is_listed_here():
    sheets = {name for name in compute_names() if find_compute(name).efficiency is not None}
    assert sheets == set(SHEETS)


@pytest.mark.parametrize(("name", "sheet"), SHEETS.items())
def test_rates_are_those_of_the_sheet_times_the_stated_efficiency(name, sheet):
    gib, gb_per_s, *tflops, link = sheet
    part = find_compute(name)
    assert part.usual_link == link
    assert part.memory_bytes.value == pytest.approx(gib * 2**30)
    assert part.memory_bytes.note  # the title of the sheet
    reached = part.efficiency
    for rates in (part.gemm, part.attention, part.elementwise):
        assert rates.source == "datasheet"
        assert rates.bytes_per_s == pytest.approx(gb_per_s * 1e9 * reached.memory)
    gemm = part.gemm
    found = (gemm.flops_per_s, gemm.flops_8bit_per_s, gemm.flops_4bit_per_s)
    wanted = [rate and pytest.approx(rate * 1e12 * reached.compute) for rate in tflops]
    assert list(found) == wanted
    assert reached.source != "assumed"


def test_eight_bit_products_use_the_rate_of_the_sheet():
    model = find_model("llama-3.1-70b-fp8")
    shape = MatMul(8192, 8192, 8192)

    def seconds(name):
        return MatmulCosts(find_compute(name).gemm, model).estimate(shape)[0]

    assert seconds("rtx-4090") == pytest.approx(2 * 8192**3 / (330.3e12 * 0.77))
    assert seconds("rtx-3090") == pytest.approx(2 * 8192**3 / (71e12 * 0.77))  # no such units
    gemm = find_compute("rtx-5090").gemm
    assert [gemm.rate(bits) for bits in (4, 8, 16)] == [
        gemm.flops_4bit_per_s,
        gemm.flops_8bit_per_s,
        gemm.flops_per_s,
    ]
    assert find_compute("rtx-4090").gemm.rate(4) == find_compute("rtx-4090").gemm.flops_8bit_per_s


@pytest.mark.parametrize("model", DENSE, ids=lambda model: model.name)
@pytest.mark.parametrize("name", [name for name in SHEETS if name != "rtx-4070"])
def test_a_resident_step_reads_weights_and_cache_near_the_memory_rate(name, model):
    if name == "rtx-5070-ti" and model.name == "llama-3.1-8b":
        pytest.skip("15 GiB of weights leave no room for the reserve")
    looked_up = 2 * model.vocab_size * model.hidden_size if model.family == "llama" else 0
    moved = model.weight_bytes - looked_up + 1024 * model.n_layers * model.kv_token_bytes
    least_s = moved / (SHEETS[name][1] * 1e9)
    assert least_s < resident_step_s(name, model) < 1.6 * least_s + 20 * model.n_layers * 5e-6


@pytest.mark.parametrize("model", DENSE, ids=lambda model: model.name)
def test_a_device_with_faster_memory_is_not_slower(model):
    fitting = [name for name, sheet in SHEETS.items() if sheet[0] >= 24]
    machines = [find_hardware(name) for name in fitting]
    machines.sort(key=lambda machine: machine.gemm.bytes_per_s)
    steps = [resident_step_s(machine.name, model) for machine in machines]
    assert steps == sorted(steps, reverse=True)


@pytest.mark.parametrize("model", DENSE, ids=lambda model: model.name)
def test_sheets_agree_with_measured_tables_of_devices_of_the_same_memory_rate(model):
    def step_s(name):
        return resident_step_s(name, model)

    assert step_s("rtx-5090") == pytest.approx(step_s("rtx-pro-6000"), rel=0.1)  # both 1,792 GB/s
    assert step_s("rtx-6000-ada") == pytest.approx(step_s("l40s") * 864 / 960, rel=0.1)
    assert step_s("h200") * 0.95 < step_s("gh200") < step_s("h100-sxm")


@pytest.mark.parametrize("name", SHEETS)
def test_every_device_restores(name):
    machine, model = find_hardware(name), find_model("opt-1.3b")
    for tier in ("dram", "ssd"):
        request = RestoreRequest(prompt_tokens=1024, cached_tokens=1023, tier=tier)
        plan = make_plan(Job(model, machine, request))
        assert 0 < plan.ttft_s <= min(plan.baselines.values()) * (1 + 1e-9)
        assert plan.source == "datasheet"


def test_published_decode_steps_of_an_rtx_4070_are_near():
    """llama.cpp PR 31: 9.60 GiB of weights, 34,816 B of K and V a token in 16 layers, batch 1."""
    machine, kv_bytes = find_hardware("rtx-4070"), 16384 * 34816
    resident_s = (9.60 * 2**30 + kv_bytes) / machine.gemm.bytes_per_s
    assert resident_s == pytest.approx(27.78e-3, rel=0.1)
    load_s = 16 * machine.links.h2d.copy_s(kv_bytes / 16)[0]
    assert load_s == pytest.approx(50.76e-3 - 27.78e-3, rel=0.05)
    assert find_hardware("rtx-5070-ti").links.h2d.bytes_per_s == pytest.approx(56e9, rel=0.1)


# A machine of one's own


def test_ten_lines_describe_a_machine(tmp_path):
    assert len(MINE.splitlines()) == 10
    path = own(tmp_path)
    machine = find_hardware(str(path))
    assert machine.name == "mine+pcie4-x16"
    assert machine.gemm.flops_per_s == 50e12
    assert machine.gemm.flops_8bit_per_s == 100e12
    assert machine.attention.bytes_per_s == 800e9
    assert machine.memory.device_bytes == 24 * 2**30
    assert machine.memory.host_bytes == 64 * 2**30
    assert "50 % of the peak FLOP/s and 80 % of the peak memory bandwidth (a guess)" in (
        machine.efficiency_note
    )
    assert machine.from_dict(machine.to_dict(), "here") == machine
    assert find_hardware(f"{path}+pcie5-x16").links.h2d.bytes_per_s == 51.75e9
    assert find_hardware(f"{path}+12GB/s").links.h2d.bytes_per_s == 12e9


def test_five_keys_suffice_and_the_efficiency_is_assumed(tmp_path):
    keys = ("memory ", "memory_bandwidth", "flops ", "link", "source")
    text = "".join(f"{line}\n" for line in MINE.splitlines() if line.startswith(keys))
    machine = find_hardware(str(own(tmp_path, text.replace("pcie4-x16", "3GB/s"), "egpu.TOML")))
    assert machine.name == "egpu+3GB/s"
    assert "(assumed)" in machine.efficiency_note
    assert machine.links.h2d.bytes_per_s == machine.links.d2h.bytes_per_s == 3e9
    assert machine.memory.host_bytes == 64 * 2**30


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"24GiB"', "24", r'memory\(=24\) must be text with a unit, such as "24GiB"'),
        ('"24GiB"', '"24"', r"memory\(='24'\) must be text with a unit"),
        ('"24GiB"', '"0GiB"', r"memory\(=0GiB\) must be a size above 0, such as"),
        ('"1000GB/s"', '"1 fast/s"', r"memory_bandwidth\(=1 fast/s\) must be a rate"),
        ('"100TFLOP/s"', '"100GB/s"', r"flops\(=100GB/s\) must be a rate of at least 1 FLOP/s"),
        ('"200TFLOP/s"', '"no"', r"flops_8bit\(=no\) must be a rate"),
        ('"64GiB"', "[]", r"host_memory\(=\[\]\) must be text"),
        ("= 0.5", "= 1.5", r"compute_efficiency\(=1.5\) must be a part of the peak rate"),
        ("= 0.8", "= 0.0", r"memory_efficiency\(=0\) must be a part of the peak rate"),
        ("= 0.8", "= nan", r"memory_efficiency\(=nan\) must be a part of the peak rate"),
        ("= 0.8", '= "most"', r"memory_efficiency\(='most'\)"),
        ("flops =", "flop =", r"key 'flops' is missing|key 'flop' is unknown"),
        ("\nsource = ", "\nremark = ", r"key 'remark' is unknown|key 'source' is missing"),
        ('"pcie4-x16"', '"pcie4x16"', r"link 'pcie4x16' is unknown; did you mean 'pcie4-x16'"),
        ('"pcie4-x16"', '"9 miles"', r"link\(=9 miles\) must be a rate"),
        ('"pcie4-x16"', "4", r"link\(=4\)"),
        ("memory =", "memory", "not valid TOML"),
    ],
)
def test_a_bad_field_is_named_with_its_value_and_rule(tmp_path, old, new, message):
    assert old in MINE
    path = own(tmp_path, MINE.replace(old, new, 1))
    with pytest.raises(BadFile, match=message) as caught:
        find_hardware(str(path))
    assert str(path) in str(caught.value)


def test_names_of_devices_are_answers_and_misspelt_ones_are_suggested():
    assert find_hardware("gh200").name == "gh200+nvlink-c2c"
    assert find_hardware("H200").name == "h200+pcie5-x16"
    for wrong, right in (("gh20", "gh200"), ("rtx4090", "rtx-4090"), ("dgxspark", "dgx-spark")):
        with pytest.raises(UnknownName, match=f"did you mean '{right}'"):
            find_hardware(wrong)


# One memory for CPU and GPU


@pytest.fixture
def spark():
    return find_hardware("dgx-spark")


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("schedule", ["row", "column", "auto"])
def test_in_unified_memory_every_policy_is_the_resident_one(spark, schedule, keep, tmp_path):
    job = Job(find_model("opt-1.3b"), spark, Workload(4, 512, 2, 2 if schedule != "row" else 1))
    for policy in ("lp", "load-all", "recompute-all", "kvpr", "fixed:100", "resident"):
        made = make_plan(job, PlanOptions(policy=policy, schedule=schedule, keep=keep))
        assert made.fully_resident
        assert set(made.baselines.values()) == {made.makespan_s}
        assert made.lower_bound_s == pytest.approx(made.makespan_s)
        assert not {"h2d", "d2h"} & {one.part for one in made.sensitivities}
        first = "GPU and CPU share one memory on dgx-spark: there is no link to wait for."
        assert headline(made).startswith(first)
        made.save(tmp_path / "plan.json")
        assert Plan.load(tmp_path / "plan.json").lower().sha256 == made.graph_sha256


@pytest.mark.parametrize("engine", ["simpy", "fast"])
def test_a_restore_in_unified_memory_does_not_wait_for_a_link(spark, engine):
    model = find_model("opt-1.3b")
    alone = resident(model, spark, prompt=1023).makespan_s
    request = RestoreRequest(prompt_tokens=1024, cached_tokens=1023)
    made = make_plan(Job(model, spark, request), PlanOptions(engine=engine))
    assert made.ttft_s == pytest.approx(alone, rel=0.05)
    assert made.reason.startswith("GPU and CPU share one memory on dgx-spark: there is no link")
    assert "The cached K and V are used where they are" in made.reason
    disk = make_plan(
        Job(model, spark, RestoreRequest(prompt_tokens=1024, cached_tokens=1023, tier="ssd")),
        PlanOptions(policy="load-only", engine=engine),
    )
    assert disk.ttft_s == pytest.approx(alone + request.kv_bytes(model) / 7e9, rel=0.05)


def test_the_advice_for_unified_memory_speaks_of_no_link(spark):
    found = advise(find_model("opt-1.3b"), spark, Workload(4, 512, 1), RECORDINGS, slo_s=1.0)
    assert found.verdict == "resident"
    assert not found.settings
    text = describe(found)
    assert "host memory" not in text
    assert "if their K and V were kept" in text
    assert found.to_dict()["headline"].startswith("GPU and CPU share one memory")


def test_changes_that_unified_memory_has_no_place_for_are_refused(spark):
    model = find_model("opt-1.3b")
    with pytest.raises(NotMeasured, match="it has no link to change"):
        with_rate(spark, "link.bandwidth", 1e9)
    with pytest.raises(BadInput, match="dgx-spark shares one memory with its CPU"):
        find_hardware("dgx-spark+pcie5-x16")
    with pytest.raises(BadInput, match=r"h200 has a memory of its own; name it as h200\+pcie5"):
        find_hardware("h200+unified")
    with pytest.raises(BadInput, match="use policy resident"):
        make_plan(Job(model, spark, Workload(4, 512, 1)), PlanOptions(policy="hf-offloaded"))
    with pytest.raises(BadInput, match="share one memory; use kv_bits 16"):
        make_plan(Job(model, spark, Workload(4, 512, 1, kv_bits=8)))
    asking, job = replace(model, kv_bits=8), Workload(4, 512, 1)
    planned = make_plan(Job(asking, spark, job.as_asked(asking)))
    assert planned.workload == job
    assert planned.makespan_s == make_plan(Job(model, spark, job)).makespan_s
    with pytest.raises(BadInput, match="dgx-spark has one GPU"):
        make_plan(Job(model, spark, Workload(4, 512, 1)), PlanOptions(gpus=2))
    big = Job(find_model("llama-3.1-70b"), spark, Workload(1, 512, 1))
    for schedule in ("row", "column"):
        with pytest.raises(DoesNotFit, match="which CPU and GPU share; choose a smaller model"):
            make_plan(big, PlanOptions(schedule=schedule))
    smaller = with_memory(spark, host_bytes=20e9)
    assert smaller.memory.device_bytes == smaller.memory.host_bytes == 20e9


def test_a_machine_of_ones_own_may_share_its_memory(tmp_path):
    path = own(tmp_path, MINE.replace("pcie4-x16", "unified"), "apple.toml")
    machine = find_hardware(str(path))
    assert machine.name == "apple"
    assert machine.memory.unified
    assert find_hardware(f"{path}+unified") == machine
    with pytest.raises(KvOverlapError, match="shares one memory"):
        find_hardware(f"{path}+12GB/s")
    assert machine.from_dict(machine.to_dict(), "here") == machine


def test_an_all_reduce_over_the_links_of_a_data_sheet(tmp_path):
    """2 (n - 1) steps round a ring, 2 steps in a mesh; each moves an n-th of 8 MB."""
    step_s, part_s = GPU_LINK_STEP_S, 2e6 / 100e9
    for extra, seconds in (
        ('gpu_link = "100GB/s"', 6 * (step_s + part_s)),
        ('gpu_link = "100GB/s"\ngpu_mesh = true', 2 * (step_s + part_s)),
    ):
        machine = find_hardware(str(own(tmp_path, f"{MINE}{extra}\n")))
        assert machine.all_reduce.seconds(4, 8e6)[0] == pytest.approx(seconds)
    with pytest.raises(BadFile, match="gpu_mesh"):
        find_hardware(str(own(tmp_path, f"{MINE}gpu_mesh = true\n")))
    mesh = find_hardware("mi300x")
    over_pcie = AllReduce.over_pcie(mesh.links)
    assert mesh.all_reduce.seconds(8, 8e6)[0] < 0.1 * over_pcie.seconds(8, 8e6)[0]
