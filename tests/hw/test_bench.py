"""Samplers give positive times of what they say they time."""

from __future__ import annotations

import time
from statistics import median

import pytest
import torch

import hw.calibrate.bench
from hw import open_backend
from hw.calibrate.bench import REPEATS, Bench
from sim.lanes import COMPUTE, D2H, H2D

PACE = 50e6

CYCLES_PER_S = 4e9
"""Above the clock of any GPU."""


@pytest.fixture
def bench(backend, monkeypatch):
    monkeypatch.setattr(hw.calibrate.bench, "SAMPLE_S", 1e-4)
    monkeypatch.setattr(hw.calibrate.bench, "CORE_REPEATS", REPEATS)
    return Bench(
        backend, torch.float32, largest_operand=2**20, largest_slot=2**18, layer_bytes=2**20
    )


@pytest.fixture
def busy(device):
    """`busy(seconds)` works for so much processor time: on a GPU up to four times as long."""
    if device == "cuda":
        return lambda seconds: torch.cuda._sleep(int(seconds * CYCLES_PER_S))
    return spin


def spin(seconds):
    until_s = time.thread_time() + seconds
    while time.thread_time() < until_s:
        pass


def test_time_without_the_core_does_not_count():
    with open_backend("cpu") as backend:
        bench = Bench(backend, torch.float32, 2**20, 2**18, 2**20)
        samples = bench.back_to_back(COMPUTE, lambda: (spin(0.002), time.sleep(0.05)))
    assert max(samples) < 0.05
    assert bench.worked_s < bench.took_s / 5


def test_a_sampler_of_lone_work_gives_seconds_of_one_call(bench, busy):
    samples = bench.back_to_back(COMPUTE, lambda: busy(0.005))
    assert len(samples) == REPEATS
    assert all(0.005 <= sample < 1 for sample in samples)


def test_short_work_is_repeated_inside_a_sample_and_reported_for_one_call(bench, busy, monkeypatch):
    monkeypatch.setattr(hw.calibrate.bench, "SAMPLE_S", 0.04)
    calls: list[None] = []
    samples = bench.back_to_back(COMPUTE, lambda: (calls.append(None), busy(0.001)))
    assert len(calls) > 4 * REPEATS
    assert 0.001 <= min(samples) < 0.02


def test_equal_shapes_of_random_operands_share_memory_and_rotated_ones_do_not(bench):
    assert bench.random(8, 4).data_ptr() == bench.random(8, 4).data_ptr()
    rotated = bench.rotation(8, 4)
    assert len({tensor.data_ptr() for tensor in rotated}) == len(rotated) >= 2
    assert bench.rotation(8, 4) is rotated


def test_work_on_fed_data_finds_the_host_data_in_turning_slots(bench):
    found: list[tuple[int, torch.Tensor]] = []
    samples = bench.after_copy((16, 4), lambda slot: found.append((slot.data_ptr(), slot.clone())))
    assert len(samples) == REPEATS
    assert found[0][1].any()
    assert all(data.equal(found[0][1]) for _, data in found)
    assert found[0][0] != found[1][0]
    assert found[0][0] == found[2][0]


@pytest.mark.parametrize("sampler", ["matmul", "matmul_after_copy"])
def test_a_larger_product_takes_longer(bench, sampler):
    small, large = (min(getattr(bench, sampler)(m, 256, 256)) for m in (1, 1024))
    assert 0 < small < large


@pytest.mark.parametrize("lane", [H2D, D2H])
def test_a_copy_of_some_bytes_takes_their_time_at_the_pace(device, lane):
    with open_backend(device, PACE) as backend:
        bench = Bench(
            backend, torch.float32, largest_operand=1024, largest_slot=2**18, layer_bytes=2**20
        )
        samples = bench.back_to_back(lane, bench.copy_work(lane, 2**20))
    bytes_per_s = PACE if device == "cpu" else 1e12  # faster than any real link
    assert all(sample >= 2**20 / bytes_per_s for sample in samples)


def test_work_between_matmuls_is_charged_what_it_adds(bench, busy):
    assert median(bench.between_matmuls(64, lambda: busy(0.002))) >= 0.0015
    assert median(bench.between_matmuls(64, lambda: None)) < 0.001


def test_lanes_that_do_not_disturb_each_other_keep_their_pace(bench, busy):
    def nap() -> None:
        busy(0.01)

    for pace in bench.speed_while(COMPUTE, nap, H2D, nap):
        assert 0.2 < pace < 5


def test_pauses_between_tasks_and_time_to_issue_are_short_and_not_negative(bench):
    gaps, handovers = bench.gap_s(), bench.handover_s()
    assert min(gaps + handovers) >= 0
    assert sorted(gaps)[len(gaps) // 2] < 0.1
    assert all(0 < seconds < 0.1 for seconds in bench.launch_s(COMPUTE, lambda: None))


def test_operands_that_take_turns_do_not_overlap_and_have_the_shape(backend):
    bench = Bench(backend, torch.float32, 3 * 10**6, 16, 16)
    cold = bench.cold(1000, 1000)
    few = bench.cold(3, 10**6)
    many = bench.cold(10, 10)
    assert [tuple(one.shape) for one in cold] == [(1000, 1000)] * 3
    assert len({one.data_ptr() for one in cold}) == 3
    assert (len(few), len(many)) == (1, 16)
