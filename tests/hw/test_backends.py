"""Lanes run first in, first out, beside each other, and copies keep their pace."""

from __future__ import annotations

import threading
import time
from functools import partial
from itertools import pairwise

import pytest
import torch
from tiny import LLAMA, OPT, decode_case

from hw import DEVICES, open_backend, resolve_device
from hw.backends.cuda import cuda_available
from sim.errors import BadInput, DeviceUnavailable, UnknownName
from sim.lanes import COMPUTE, COPY_LANES, D2H, H2D, LANES, NET, TIER_LANES
from sim.machine.availability import Availability, Step

MB = 1_000_000

needs_cuda = pytest.mark.skipif(not cuda_available(), reason="torch sees no CUDA device")
without_cuda = pytest.mark.skipif(cuda_available(), reason="this machine has a CUDA device")


@pytest.fixture
def cpu():
    with open_backend("cpu") as backend:
        yield backend


def test_an_unknown_device_gets_a_suggestion():
    with pytest.raises(UnknownName, match="device 'cdua' is unknown; did you mean 'cuda'"):
        resolve_device("cdua")


@without_cuda
def test_cuda_without_a_gpu_says_what_to_do():
    with pytest.raises(DeviceUnavailable, match="use --device cpu"):
        open_backend("cuda")


@without_cuda
def test_auto_is_the_cpu_where_there_is_no_gpu():
    with open_backend("auto") as backend:
        assert backend.kind == "cpu"


def test_every_device_resolves_or_is_unavailable():
    for device in DEVICES:
        try:
            assert resolve_device(device) in {"cpu", "cuda"}
        except DeviceUnavailable:
            assert device == "cuda"


def test_all_lanes_run_at_the_same_time(cpu):
    everyone_is_here = threading.Barrier(len(LANES))
    cpu.begin()
    for lane in LANES:
        cpu.launch(lane, lambda: everyone_is_here.wait(timeout=30))
    cpu.finish()  # raises BrokenBarrierError if one lane waited for another


def test_copies_in_both_directions_overlap_in_time():
    with open_backend("cpu", 100 * MB) as backend:
        source, targets = torch.ones(8 * MB, dtype=torch.uint8), torch.zeros(2, 8 * MB).byte()
        backend.begin()
        handles = [
            backend.launch(lane, lambda into=into: backend.copy(into, source))
            for lane, into in zip(COPY_LANES, targets, strict=True)
        ]
        backend.finish()
        (one_start, one_end), (other_start, other_end) = backend.times_s(handles)
    assert max(one_start, other_start) < min(one_end, other_end)


def test_a_lane_runs_its_work_in_order_and_one_at_a_time(cpu):
    ran: list[int] = []
    cpu.begin()
    handles = [cpu.launch(COMPUTE, lambda n=number: ran.append(n)) for number in range(50)]
    cpu.finish()
    assert ran == list(range(50))
    times = cpu.times_s(handles)
    assert all(end <= start for (_, end), (start, _) in pairwise(times))


def test_work_starts_after_what_it_waits_for_on_another_lane(cpu):
    ran: list[str] = []
    cpu.begin()
    loaded = cpu.launch(H2D, lambda: (time.sleep(0.02), ran.append("load")))
    used = cpu.launch(COMPUTE, lambda: ran.append("use"), [loaded])
    stored = cpu.launch(D2H, lambda: ran.append("store"), [loaded, used])
    cpu.finish()
    assert ran == ["load", "use", "store"]
    (_, load_end), (use_start, use_end), (store_start, _) = cpu.times_s([loaded, used, stored])
    assert load_end <= use_start <= use_end <= store_start


def test_what_a_lane_raises_comes_out_of_finish_and_later_work_is_not_run(cpu):
    ran: list[str] = []
    cpu.begin()
    failed = cpu.launch(H2D, lambda: [][0])
    cpu.launch(H2D, lambda: ran.append("same lane"))
    cpu.launch(COMPUTE, lambda: ran.append("other lane"), [failed])
    with pytest.raises(IndexError):
        cpu.finish()
    assert ran == []


def test_a_backend_works_again_after_a_failed_run(cpu):
    cpu.begin()
    cpu.launch(H2D, lambda: [][0])
    with pytest.raises(IndexError):
        cpu.finish()
    ran: list[str] = []
    cpu.begin()
    cpu.launch(H2D, lambda: ran.append("again"))
    cpu.finish()
    assert ran == ["again"]


def test_memory_of_finished_work_is_free(cpu):
    class Operand:
        def __del__(self):
            time.sleep(0.05)
            freed.append(True)

    freed: list[bool] = []
    cpu.begin()
    cpu.launch(COMPUTE, partial(id, Operand()))
    cpu.finish()
    assert freed


def test_times_count_from_the_latest_begin(cpu):
    cpu.begin()
    time.sleep(0.05)
    before = time.perf_counter()
    cpu.begin()
    handle = cpu.launch(COMPUTE, lambda: None)
    cpu.finish()
    elapsed = time.perf_counter() - before
    ((start, end),) = cpu.times_s([handle])
    assert 0 <= start <= end <= elapsed


def test_threads_end_with_the_backend():
    before = set(threading.enumerate())
    with open_backend("cpu"):
        lanes = set(threading.enumerate()) - before
        assert len(lanes) == len(LANES) + len(TIER_LANES)
    assert not any(thread.is_alive() for thread in lanes)


def test_a_paced_copy_is_not_faster_than_its_pace():
    n_bytes = 3 * MB + 1
    with open_backend("cpu", 100 * MB) as backend:
        source, into = torch.ones(n_bytes).byte(), torch.zeros(n_bytes).byte()
        backend.begin()
        handle = backend.launch(H2D, lambda: backend.copy(into, source))
        backend.finish()
        ((start, end),) = backend.times_s([handle])
    assert end - start >= n_bytes / (100 * MB)


@pytest.mark.parametrize("pace", [None, 1e9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (262_145, 1), (4, 65_537)])
def test_a_copy_brings_exactly_its_bytes(pace, dtype, shape):
    with open_backend("cpu", pace) as backend:
        source = torch.randint(1, 100, (shape[0] + 2, *shape[1:])).to(dtype)
        into = torch.zeros_like(source)
        backend.copy(into[1:-1], source[1:-1])
    assert into[1:-1].equal(source[1:-1])
    assert not into[[0, -1]].any()


def test_memory_and_environment_say_what_the_device_is(cpu):
    memory, environment = cpu.memory(), cpu.environment()
    assert memory.device_bytes > 0
    assert memory.host_bytes > 0
    assert environment["device"].startswith("cpu")
    assert environment["link_bytes_per_s"] is None


def test_whoever_settles_first_starts_first(cpu):
    resolved: list[tuple[str, int]] = []
    cpu.begin(in_turn=True)
    handles = {
        (lane, number): cpu.launch(
            lane, lambda: None, resolve=lambda key=(lane, number): resolved.append(key) is None
        )
        for number in range(100)
        for lane in (COMPUTE, *COPY_LANES, NET)
    }
    cpu.finish()
    times = dict(zip(handles, cpu.times_s(list(handles.values())), strict=True))
    assert sorted(times, key=lambda key: times[key][0]) == resolved


def test_work_that_settles_on_nothing_takes_no_time(cpu):
    cpu.begin(in_turn=True)
    handle = cpu.launch(COMPUTE, lambda: pytest.fail("was run"), resolve=lambda: False)
    cpu.finish()
    ((start_s, end_s),) = cpu.times_s([handle])
    assert start_s == end_s


def test_a_tiers_lane_keeps_its_own_pace():
    with open_backend("cpu", 1000 * MB, {NET: 20 * MB}) as backend:
        backend.begin()
        handle = backend.launch(NET, lambda: backend.transfer().passed(2 * MB))
        backend.finish()
        ((start_s, end_s),) = backend.times_s([handle])
    assert 0.1 <= end_s - start_s < 0.15


def test_a_trace_slows_a_paced_copy_and_nothing_else_can_be_slowed():
    source, target = torch.ones(2 * MB, dtype=torch.uint8), torch.zeros(2 * MB, dtype=torch.uint8)
    with open_backend("cpu", 20 * MB) as backend:
        backend.begin(Availability((Step(0.05, ((H2D, 0.5),)),)))
        handle = backend.launch(H2D, lambda: backend.copy(target, source))
        backend.finish()
        ((_, end_s),) = backend.times_s([handle])
        assert 0.15 <= end_s < 0.2  # half of it by second 0.05, the other half at half the pace
        with pytest.raises(BadInput, match="'net', which has no pace"):
            backend.begin(Availability((Step(0.0, ((NET, 0.5),)),)))


@pytest.mark.gpu
@needs_cuda
def test_cuda_refuses_to_copy_from_pageable_memory():
    with open_backend("cuda") as backend:
        device = backend.device_empty((4,), torch.float32)
        pageable = torch.ones(4)
        with pytest.raises(RuntimeError, match="pageable"):
            backend.copy(device, pageable)
        with pytest.raises(RuntimeError, match="pageable"):
            backend.copy(pageable, device)


@pytest.mark.gpu
@needs_cuda
def test_cuda_times_follow_lanes_and_dependencies():
    with open_backend("cuda") as backend:
        host = backend.host_empty((16 * MB,), torch.float32).normal_()
        device = backend.device_empty((16 * MB,), torch.float32)
        total = backend.device_empty((), torch.float32)
        backend.begin()
        load = backend.launch(H2D, lambda: backend.copy(device, host))
        use = backend.launch(COMPUTE, lambda: torch.sum(device, 0, out=total), [load])
        again = backend.launch(COMPUTE, lambda: torch.sum(device, 0, out=total))
        store = backend.launch(D2H, lambda: backend.copy(host, device), [again])
        backend.finish()
        times = backend.times_s([load, use, again, store])
    assert all(0 <= start <= end for start, end in times)
    assert all(end <= start + 1e-6 for (_, end), (start, _) in pairwise(times))


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("model", [OPT, LLAMA], ids=lambda model: model.name)
def test_cuda_decode_equals_the_resident_one(model):
    with open_backend("cuda") as backend:
        case = decode_case(backend, model, split=5)
        executor = case.executor(backend)
        for _ in range(3):
            executor.run()
            executor.check()


@pytest.mark.gpu
@needs_cuda
def test_cuda_settles_in_the_order_of_its_start_times():
    resolved: list[int] = []
    with open_backend("cuda") as backend:
        backend.begin(in_turn=True)
        handles = [
            backend.launch(lane, lambda: None, resolve=lambda key=key: resolved.append(key) is None)
            for key, lane in enumerate((COMPUTE, H2D, NET) * 30)
        ]
        backend.finish()
        starts = [start for start, _ in backend.times_s(handles)]
    assert sorted(range(len(starts)), key=starts.__getitem__) == resolved


@pytest.mark.gpu
@needs_cuda
def test_cuda_has_all_of_its_lanes_all_of_the_time():
    with open_backend("cuda") as backend, pytest.raises(BadInput, match="--device cpu"):
        backend.begin(Availability((Step(0.0, ((H2D, 0.5),)),)))
