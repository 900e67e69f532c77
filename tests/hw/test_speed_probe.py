"""The speed probe: times of reference products and copies against a profile."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest
from allocations import Allocations
from builders import machine
from tiny import LLAMA, OPT

import hw.calibrate.bench
import hw.calibrate.speed_probe
from hw import SpeedProbe
from sim.machine.links import Link


@pytest.fixture(autouse=True)
def short_bench(monkeypatch):
    """Samples of one call, on few operands."""
    monkeypatch.setattr(hw.calibrate.bench, "SAMPLE_S", 1e-4)
    monkeypatch.setattr(hw.calibrate.bench, "COLD_STARTS", 2)
    monkeypatch.setattr(hw.calibrate.bench, "ROTATION_BYTES", 2**20)


def hardware(device, **rates):
    """A machine whose link is emulated on the cpu device and real on a GPU."""
    link = Link("datasheet", 1e8, paced_bytes_per_s=1e8 if device == "cpu" else None)
    return machine(h2d=link, d2h=link, device_kind=device, dtype="float32", **rates)


@pytest.mark.parametrize("step_tokens", [None, 8])
@pytest.mark.parametrize("model", [OPT, LLAMA], ids=lambda model: model.name)
def test_every_part_of_the_machine_has_a_speed(backend, device, model, step_tokens):
    probe = SpeedProbe(backend, model, hardware(device), step_tokens)
    parts = {"flops", "hbm", "link"} if device == "cuda" else {"flops", "hbm", "copy"}
    if device == "cpu" and step_tokens is None:
        parts.add("attention")
    sample, drift = probe.sample(), probe.drift(2)
    assert set(sample) == set(drift) == parts
    assert all(0 < ratio < float("inf") for ratio in (*sample.values(), *drift.values()))


def test_a_machine_is_as_slow_as_its_profile_is_fast(backend, device):
    """The same products against a profile that says a thousandth of the time."""
    slow, fast = (hardware(device, flops_per_s=rate) for rate in (1e9, 1e12))
    ratios = [SpeedProbe(backend, OPT, one).drift(3)["flops"] for one in (slow, fast)]
    assert ratios[1] > 100 * ratios[0]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_probe_takes_no_more_device_memory_than_it_says(backend, device, dtype, monkeypatch):
    for module in (hw.calibrate.bench, hw.calibrate.speed_probe):
        monkeypatch.setattr(module, "MAX_EVICTED_BYTES", 2**22)
    host_bytes = []

    def host_empty(shape, kind):
        host_bytes.append(prod(shape) * kind.itemsize)
        return made(shape, kind)

    made = backend.host_empty
    monkeypatch.setattr(backend, "host_empty", host_empty)
    model = replace(OPT, dtype=dtype)
    with Allocations() as allocations:
        probe = SpeedProbe(backend, model, hardware(device))
        probe.sample()
        held_bytes = allocations.held_bytes(device)
    if device == "cpu":  # both sides are host memory
        held_bytes -= sum(host_bytes)
    assert 0.5 * SpeedProbe.device_bytes(model, device) < held_bytes
    assert held_bytes <= SpeedProbe.device_bytes(model, device)
