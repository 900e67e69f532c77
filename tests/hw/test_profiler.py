"""A profile measured here is complete, honest about where it came from, and readable again."""

from __future__ import annotations

import os
import platform
from dataclasses import replace
from pathlib import Path

import pytest
from builders import make_plan
from tiny import LLAMA, OPT

import hw.calibrate.bench
import hw.calibrate.profiler
from hw import SampledRanges, balanced_link_bytes_per_s, open_backend, profile_device
from hw.calibrate.profiler import value
from planner.decode.lower import lower
from sim import CostModel, HardwareProfile, Workload, simulate
from sim.lanes import D2H, H2D, HOST
from sim.model.kernels import MatMul
from sim.model.operations import kernels

PACE = 2e8
MAX_BATCH, MAX_ROWS = 4, 256
JOB = Workload(batch_size=4, prompt_tokens=40, gen_tokens=2)
MODELS = (OPT, LLAMA)


def pace_of(device) -> float | None:
    """Pace of the link: only that of the cpu device is emulated."""
    return PACE if device == "cpu" else None


def reduced_profile(device, models, max_rows, progress=lambda _text, _done: None):
    """A profile of `models` over reduced ranges."""
    pace = pace_of(device)
    with pytest.MonkeyPatch.context() as patch, open_backend(device, pace) as backend:
        patch.setitem(hw.calibrate.profiler.PASSES, device, 1)
        patch.setattr(hw.calibrate.profiler, "WARM_UP_S", 0.01)
        patch.setattr(hw.calibrate.bench, "REPEATS", 1)
        patch.setattr(hw.calibrate.bench, "SAMPLE_S", 1e-4)
        patch.setattr(hw.calibrate.bench, "COLD_STARTS", 2)
        patch.setattr(hw.calibrate.bench, "ROTATION_BYTES", 2**22)
        ranges = SampledRanges(MAX_BATCH, max_rows, (16, 64), (256, 4096, 2**16, 2**20))
        return profile_device(backend, models, "here", ranges, pace, progress)


@pytest.fixture(scope="module")
def measured(device):
    """A reduced profile, and the progress reported meanwhile."""
    seen: list[tuple[str, float]] = []
    profile = reduced_profile(
        device, MODELS, MAX_ROWS, lambda text, done: seen.append((text, done))
    )
    return profile, seen


@pytest.fixture
def profile(measured) -> HardwareProfile:
    return measured[0]


def test_more_rows_of_x_than_any_matrix_has_elements_can_be_sampled(device):
    made = reduced_profile(device, (LLAMA,), 2**14)
    (table,) = (t for t in made.gemm.tables if (t.n, t.k) == (2 * LLAMA.kv_size, LLAMA.hidden_size))
    assert table.curve.work[-1] == 2**14


def test_every_block_is_measured(device, profile):
    blocks = (profile.memory, profile.gemm, profile.attention, profile.elementwise)
    links = (profile.links.h2d, profile.links.d2h, profile.links.host)
    blocks += (*links, profile.dispatch, *profile.interference)
    assert {block.source for block in blocks} == {"measured"}
    assert profile.source == "measured"
    assert (profile.name, profile.device_kind, profile.dtype) == ("here", device, "float32")


def test_quantising_is_measured_for_every_batch_and_dequantising_up_to_all_rows(profile):
    tables = {(table.op, table.bits): table.curve for table in profile.elementwise.tables}
    assert set(tables) == {(op, bits) for op in ("quantise", "dequantise") for bits in (8, 4)}
    row = 2 * OPT.kv_size
    for (op, bits), curve in tables.items():
        most = MAX_BATCH if op == "quantise" else MAX_ROWS
        assert curve.work[-1] == most * row
        costs = CostModel(profile, OPT, replace(JOB, kv_bits=bits)).operations
        found = costs.compute(op, 1 if op == "quantise" else MAX_ROWS // JOB.batch_size, 1)
        seconds = profile.dispatch.compute_task_s + curve.seconds[-1]
        assert (found.seconds, found.source, found.in_range) == (seconds, "measured", True)


def test_a_profile_file_holds_all_of_the_profile(profile, tmp_path):
    profile.save(tmp_path / "here.json")
    found = HardwareProfile.load(tmp_path / "here.json")
    assert (found, found.samples) == (profile, profile.samples)


def test_others_can_only_slow_down_a_real_link():
    found = {
        kind: [value((name,), [3.0, 1.0, 2.5], kind) for name in ("gemm", "link")]
        for kind in ("cpu", "cuda")
    }
    assert found == {"cpu": [2.5, 2.5], "cuda": [2.5, 1.0]}


def test_every_time_of_the_profile_is_of_its_samples(device, profile):
    medians = {one.point: value(one.point, one.values, device) for one in profile.samples}
    times = {
        ("gemm", table.n, table.k, int(m)): seconds
        for table in profile.gemm.tables
        for m, seconds in zip(table.curve.work, table.curve.seconds, strict=True)
    }
    for lane in (H2D, D2H, HOST):
        curve = getattr(profile.links, lane).curve
        for size, seconds in zip(curve.work, curve.seconds, strict=True):
            times["link", lane, int(size)] = seconds
    curve = profile.elementwise.curve
    for size, seconds in zip(curve.work, curve.seconds, strict=True):
        times["elementwise", int(size)] = seconds
    for table in profile.elementwise.tables:
        for elements, seconds in zip(table.curve.work, table.curve.seconds, strict=True):
            times[table.op, table.bits, int(elements)] = seconds
    for table in profile.attention.tables:
        heads = (table.n_heads, table.n_kv_heads, table.head_dim)
        for batch, row in zip(table.grid.rows, table.grid.seconds, strict=True):
            for context, seconds in zip(table.grid.columns, row, strict=True):
                times["attention", *heads, int(batch), int(context)] = seconds
    times["gap",], times["handover",] = profile.dispatch.gap_s, profile.dispatch.handover_s
    for point, seconds in times.items():
        assert medians[point] == pytest.approx(seconds, rel=1e-3), point
    times["step",] = profile.restore.prefill.step_s.value
    for table in profile.restore.prefill.tables:
        heads = (table.n_heads, table.n_kv_heads, table.head_dim)
        for n_tokens, row in zip(table.grid.rows, table.grid.seconds, strict=True):
            for first_keys, seconds in zip(table.grid.columns, row, strict=True):
                times["prefill", *heads, int(n_tokens), int(first_keys)] = seconds
    others = {point[0] for point in medians.keys() - times.keys()}
    others -= {"attention"}  # of reference kernels
    in_turn = {"turn"} if device == "cuda" else set()
    assert others == {"pace", "task", "kernel", "copy", "tier"} | in_turn


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_every_matrix_and_head_shape_of_the_models_has_a_table(profile, model):
    tables = {(table.n, table.k) for table in profile.gemm.tables}
    for op in ("qkv", "recompute", "attention", "mlp", "head"):
        for kernel in kernels(op, 1, 1, model, 1):
            assert not isinstance(kernel, MatMul) or (kernel.n, kernel.k) in tables
    heads = {
        (table.n_heads, table.n_kv_heads, table.head_dim) for table in profile.attention.tables
    }
    assert (model.n_heads, model.n_kv_heads, model.head_dim) in heads


@pytest.mark.parametrize("recomputed", [0, 20, 40])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_every_task_of_a_decode_in_the_sampled_range_has_a_measured_cost(
    profile, model, recomputed
):
    graph = lower("row", model, JOB, [[recomputed] * model.n_layers] * JOB.gen_tokens)
    costs = CostModel(profile, model, JOB)
    for task in graph.tasks:
        cost = costs.estimate(task)
        assert cost.seconds > 0
        assert (task.id, cost.source, cost.in_range) == (task.id, "measured", True)


@pytest.mark.parametrize("model", [OPT, LLAMA], ids=lambda model: model.name)
def test_computing_for_a_batch_of_one_is_in_the_sampled_range(profile, model):
    job = replace(JOB, batch_size=1)
    costs = CostModel(profile, model, job)
    for task in lower("row", model, job, [[20] * model.n_layers] * job.gen_tokens).tasks:
        if task.lane == "compute":
            assert (task.id, costs.estimate(task).in_range) == (task.id, True)


def test_a_context_beyond_the_sampled_ones_is_out_of_range(profile):
    costs = CostModel(profile, OPT, JOB)
    assert costs.operations.compute("attention", 1, 64).in_range
    assert not costs.operations.compute("attention", 1, 65).in_range


@pytest.mark.parametrize("policy", ["lp", "recompute-all"])
def test_a_measured_profile_plans_and_simulates(profile, policy):
    plan = make_plan(MODELS[0], profile, JOB, policy)
    assert simulate(plan.simulated_graph(), profile).makespan_s == pytest.approx(plan.makespan_s)


def test_times_over_the_link_grow_with_size_and_keep_the_pace(device, profile):
    for link in (profile.links.h2d, profile.links.d2h):
        assert link.paced_bytes_per_s == pace_of(device)
        assert device == "cuda" or link.bytes_per_s <= PACE
        assert link.curve.seconds[0] < link.curve.seconds[-1]


def test_copies_within_the_host_are_not_paced(profile):
    host = profile.links.host
    assert host.paced_bytes_per_s is None
    assert host.curve.work == profile.links.h2d.curve.work
    assert host.bytes_per_s > PACE


def test_interference_names_both_directions_and_compute(profile):
    pairs = {(entry.lane, entry.while_busy) for entry in profile.interference}
    assert {(H2D, D2H), (D2H, H2D)} <= pairs
    assert len(pairs) == 4


def test_progress_rises_from_nothing_and_never_passes_one(measured):
    fractions = [done for _, done in measured[1]]
    assert fractions[0] == 0
    assert fractions == sorted(fractions)
    assert fractions[-1] <= 1
    assert len(set(fractions)) > 10


def test_the_environment_names_the_machine_and_nobody(device, profile):
    environment = profile.environment
    assert {"processor", "torch", "measured_at", "device"} <= set(environment)
    assert ("link_bytes_per_s" in environment) == (device == "cpu")
    text = " ".join(map(str, environment.values()))
    assert str(Path.cwd()) not in text
    assert not {platform.node(), os.environ.get("USER"), str(Path.home())} & set(text.split())


@pytest.mark.parametrize("model", [OPT, LLAMA], ids=lambda model: model.name)
def test_the_balanced_pace_is_positive_and_has_two_digits(backend, model):
    pace = balanced_link_bytes_per_s(backend, model)
    assert 0 < pace < float("inf")
    assert pace == float(f"{pace:.1e}")
