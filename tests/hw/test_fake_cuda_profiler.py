"""A GPU is profiled and its speed probed by operations that CUDA has."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import make_plan
from run_decodes import run_graph
from tiny import LLAMA, OPT

import hw.calibrate.bench
import hw.calibrate.profiler
import hw.calibrate.restores
from hw import SampledRanges, SpeedProbe, balanced_link_bytes_per_s, profile_device
from sim.graph.jobs import Workload


@pytest.fixture(autouse=True)
def short_bench(monkeypatch):
    """Samples of one call, on few and small operands."""
    small = {"SAMPLE_S": 1e-6, "ROTATION_BYTES": 2**18, "BURST_S": {"cuda": 1e-5}, "REPEATS": 1}
    for name, value in small.items():
        monkeypatch.setattr(hw.calibrate.bench, name, value)


def tiny_profile(monkeypatch, cuda, dtype, models):
    monkeypatch.setattr(hw.calibrate.profiler, "WARM_UP_S", 0.0)
    monkeypatch.setitem(hw.calibrate.profiler.PASSES, "cuda", 1)
    monkeypatch.setattr(hw.calibrate.restores, "READ_BYTES", (2**13, 2**16))
    chosen = [replace(model, dtype=dtype) for model in models]
    ranges = SampledRanges(2, 64, contexts=(17, 65), copy_bytes=(2**10, 2**14, 2**18))
    return profile_device(cuda, chosen, "fake", ranges)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_device_is_profiled_planned_for_and_its_speed_probed(cuda, monkeypatch, dtype):
    profile = tiny_profile(monkeypatch, cuda, dtype, (OPT, LLAMA) if dtype == "float32" else (OPT,))
    assert (profile.device_kind, profile.dtype) == ("cuda", dtype)
    model = replace(OPT, dtype=dtype)
    plan = make_plan(model, profile, Workload(2, 13, 2), "lp")
    run_graph(cuda, plan.simulated_graph())
    probe = SpeedProbe(cuda, model, profile)
    assert set(probe.drift(2)) == {"flops", "hbm", "link"}
    assert set(SpeedProbe(cuda, model, profile, 8).sample()) == {"flops", "hbm", "link"}


def test_large_products_are_sampled_under_steady_load(cuda, monkeypatch):
    monkeypatch.setattr(hw.calibrate.bench, "SUSTAINED_FLOPS", 0.0)
    monkeypatch.setattr(hw.calibrate.bench, "SUSTAINED_S", 1e-5)
    bench = hw.calibrate.bench.Bench(cuda, torch.float16, 2**12, 2**12, 2**12)
    assert min(bench.matmul(4, 32, 32) + bench.matmul_after_copy(4, 32, 32)) > 0


def test_a_balanced_link_is_measured(cuda):
    assert balanced_link_bytes_per_s(cuda, OPT) > 0
