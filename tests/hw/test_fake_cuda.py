"""What CUDA refuses, and what makes the host wait for the device, is refused by the fake device."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from fake_cuda import DEVICE, DeviceTensor, Refused
from fake_streams import FakeStreams

from hw.backends.cuda import CudaBackend
from sim.errors import BadInput
from sim.lanes import COMPUTE, D2H, H2D, HOST, NET
from sim.machine.availability import Availability, Step


@pytest.mark.usefixtures("cuda")
def test_numbers_are_those_of_the_cpu_and_stay_on_the_device():
    host = torch.arange(6.0).view(2, 3)
    x = host.to(DEVICE)
    assert (type(x), x.device, x.is_pinned()) == (DeviceTensor, DEVICE, False)
    part = x[:, 1:]
    part.add_(10)
    torch.mm(x, x[:2].t(), out=x[:, :2])
    assert x.cpu()[:, 2].tolist() == [12.0, 15.0]
    x[0] = 7.0
    x[1, :2] = host[1, :2]
    assert x.tolist() == [[7.0, 7.0, 7.0], [3.0, 4.0, 15.0]]
    assert x[..., None, -1].shape == (2, 1)
    assert host[0, 0] == 0.0


def test_uninitialised_memory_shows(cuda):
    assert cuda.device_empty((3,), torch.bfloat16).isnan().all()
    assert cuda.host_empty((3,), torch.float32).isnan().all()
    assert cuda.device_empty((2,), torch.int64).tolist() == [-1, -1]


def test_tensors_of_two_devices_do_not_meet(cuda):
    x, host = cuda.device_empty((3, 4), torch.float32), torch.ones(3, 4)
    table = cuda.device_empty((5, 2), torch.float32)
    for mixed in (
        lambda: x + host,
        lambda: host.mul_(x),
        lambda: x.add_(host[0]),
        lambda: torch.cat((x, host)),
        lambda: torch.mm(x, x.t(), out=torch.empty(3, 3)),
        lambda: torch.mm(host, host.t(), out=x[:, :3]),
        lambda: torch.nn.functional.embedding(torch.tensor([1]), table),
        lambda: torch.nn.functional.scaled_dot_product_attention(x, x, host),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    (x + torch.tensor(1.0)).add_(2.0)
    assert x.copy_(host).cpu().equal(host)


def test_a_generator_fills_tensors_of_its_own_device(cuda):
    here, there = torch.Generator(), torch.Generator(device=DEVICE)
    with pytest.raises(Refused, match="'cuda' device type for generator but found 'cpu'"):
        cuda.device_empty((3,), torch.float32).normal_(generator=here)
    with pytest.raises(Refused, match="'cpu' device type for generator but found 'cuda'"):
        torch.empty(3).normal_(generator=there)
    with pytest.raises(Refused, match="generator"):
        torch.randint(0, 5, (3,), device=DEVICE, generator=here)
    draw = cuda.device_empty((3,), torch.float32).normal_(generator=there.manual_seed(3))
    assert not draw.isnan().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_an_output_of_another_dtype_class_is_refused(cuda, dtype):
    codes = cuda.device_empty((4, 8), torch.uint8)
    out = cuda.device_empty((4, 8), dtype)
    with pytest.raises(Refused, match="'bitwise_and_cuda' not implemented for torch"):
        torch.bitwise_and(codes, 15, out=out)
    with pytest.raises(Refused, match="'bitwise_right_shift_cuda' not implemented"):
        torch.bitwise_right_shift(codes, 4, out=out)
    with pytest.raises(Refused, match="'argmax_cuda' not implemented"):
        torch.argmax(out, dim=-1, out=out[0, :4])
    torch.bitwise_and(codes, 15, out=cuda.device_empty((4, 8), torch.int32))
    torch.mul(codes, out, out=out)
    torch.argmax(out, dim=-1, out=cuda.device_empty((4,), torch.int64))


WAITS = {
    "item": (lambda x, _: x[0, 0].item(), "item makes the host wait"),
    "float": (lambda x, _: float(x.max()), "__float__ makes"),
    "int": (lambda x, _: int(x.argmax()), "__int__ makes"),
    "bool": (lambda x, _: bool((x > 0).any()), "is_nonzero makes"),
    "tolist": (lambda x, _: x.tolist(), "tolist makes"),
    "equal": (lambda x, _: torch.equal(x, x), "equal makes"),
    "nonzero": (lambda x, _: x.nonzero(), "nonzero makes"),
    "index-of-bools": (lambda x, _: x[x > 0], "a boolean index makes"),
    "index-on-host": (lambda x, host: x[host[0].long()], "allocates host memory"),
    "cpu": (lambda x, _: x.cpu(), "new host memory makes"),
    "blocking-load": (lambda x, host: x.copy_(host), "without non_blocking=True makes"),
    "blocking-store": (lambda x, host: host.copy_(x), "without non_blocking=True makes"),
    "to-device": (lambda _, host: host.to(DEVICE), "without non_blocking=True makes"),
}
"""What makes the host wait for the device, and is right where nothing is timed."""


@pytest.mark.parametrize(("wait", "message"), WAITS.values(), ids=WAITS)
def test_the_host_does_not_wait_in_the_work_of_a_lane(cuda, wait, message):
    x = cuda.device_empty((3, 4), torch.float32).fill_(1.0)
    host = cuda.host_empty((3, 4), torch.float32).fill_(1.0)
    cuda.begin()
    with pytest.raises(Refused, match=message):
        cuda.launch(COMPUTE, lambda: wait(x, host))
    cuda.finish()
    wait(x, host)


SPOILS = {
    "pageable-load": (
        lambda x, _, pageable: x.copy_(pageable, non_blocking=True),
        "pageable host memory makes",
    ),
    "pageable-store": (
        lambda x, _, pageable: pageable.copy_(x, non_blocking=True),
        "pageable host memory makes",
    ),
    "pageable-index": (lambda x, _, pageable: x[pageable[0].to(torch.int64)], "allocates"),
    "to-new-host-memory": (lambda x, *_: x.to("cpu", non_blocking=True), "new host memory makes"),
    "other-strides": (
        lambda x, host, _: x[:, :2].copy_(host[:, :2], non_blocking=True),
        "other strides makes",
    ),
    "other-dtype": (
        lambda x, host, _: x.half().copy_(host, non_blocking=True),
        "from torch.float32 to torch.float16 makes",
    ),
    "numbers": (lambda *_: torch.tensor([1.0, 2.0], device=DEVICE), "pageable host memory makes"),
    "host-memory": (lambda *_: torch.zeros(3), "allocates host memory"),
    "host-arithmetic": (lambda _, host, __: host + 1, "allocates host memory"),
    "pinned-memory": (lambda *_: torch.empty(3, pin_memory=True), "pinning host memory makes"),
    "numpy": (lambda x, *_: x.numpy(), "can't convert"),
}
"""What no stream can do by itself, or what takes memory of the host."""


@pytest.mark.parametrize(("work", "message"), SPOILS.values(), ids=SPOILS)
def test_nothing_but_the_devices_own_work_is_done_on_a_lane(cuda, work, message):
    x = cuda.device_empty((3, 4), torch.float32)
    host, pageable = cuda.host_empty((3, 4), torch.float32), torch.ones(3, 4)
    cuda.begin()
    with pytest.raises(Refused, match=message):
        cuda.launch(COMPUTE, lambda: work(x, host, pageable))
    cuda.finish()


def test_an_index_in_host_memory_is_copied_by_a_waiting_host(cuda):
    x, at = cuda.device_empty((3, 4), torch.float32).fill_(2.0), torch.tensor([0, 2])
    assert x[at].tolist() == [[2.0] * 4] * 2
    with cuda.work_on(COMPUTE), pytest.raises(Refused, match="an index in host memory"):
        x[at]


def test_a_lane_may_compute_and_copy(cuda):
    x = cuda.device_empty((3, 4), torch.float32)
    host = cuda.host_empty((3, 4), torch.float32).fill_(2.0)
    pageable = torch.ones(3, 4)
    cuda.begin()
    load = cuda.launch(H2D, lambda: cuda.copy(x, host))
    use = cuda.launch(COMPUTE, lambda: x.mul_(x).add_(x.new_empty(4).fill_(1.0)), [load])
    store = cuda.launch(D2H, lambda: cuda.copy(host[1:], x[1:]), [use])
    cuda.launch(D2H, lambda: cuda.copy(pageable, x, pageable=True))
    cuda.launch(HOST, lambda: host[:1].copy_(torch.zeros(1, 4)))
    cuda.finish()
    assert host.tolist() == [[0.0] * 4, [5.0] * 4, [5.0] * 4]
    assert (cuda.waits, pageable.tolist()) == (1, [[5.0] * 4] * 3)
    times = cuda.times_s([load, use, store])
    assert all(one[1] <= other[0] for one, other in pairwise(times))
    with pytest.raises(RuntimeError, match="pageable"):
        cuda.copy(x, pageable)


def test_between_begin_and_finish_the_device_is_left_to_the_lanes(cuda):
    x = cuda.device_empty((3,), torch.float32)
    cuda.begin()
    with pytest.raises(Refused, match="outside of any lane"):
        x.add_(1.0)
    with pytest.raises(Refused, match="outside of any lane"):
        x.cpu()
    cuda.finish()
    with pytest.raises(Refused, match="nobody waits for"):
        x.to("cpu", non_blocking=True)
    with pytest.raises(Refused, match="before any wait"):
        torch.empty(3).copy_(x, non_blocking=True)


def test_lanes_take_turns_and_work_that_never_settles_is_found(cuda):
    ran: list[str] = []
    asked = iter([None, None, True])
    cuda.begin(in_turn=True)
    late = cuda.launch(COMPUTE, lambda: ran.append("late"), resolve=lambda: next(asked))
    cuda.launch(NET, lambda: ran.append("one"))
    cuda.launch(NET, lambda: ran.append("two"), done=lambda seconds: ran.append(seconds > 0))
    left_out = cuda.launch(H2D, lambda: ran.append("no"), [late], resolve=lambda: False)
    cuda.finish()
    assert ran == ["one", "two", True, "late"]
    assert left_out.start_s == left_out.end_s
    cuda.begin(in_turn=True)
    cuda.launch(COMPUTE, lambda: None, resolve=lambda: None)
    with pytest.raises(Refused, match="never settles"):
        cuda.finish()


def test_work_runs_on_the_stream_of_its_lane_and_leaves_the_callers_stream_current():
    """The events mark the work and not the waits; a failure changes no stream of the caller."""
    with FakeStreams().installed() as streams, CudaBackend() as backend:
        backend.begin()
        streams.calls.clear()
        on: list[str] = []

        def work():
            on.append(streams.current.name)

        def failing_work():
            work()
            raise LookupError("lost")

        load = backend.launch(H2D, work)
        again = backend.launch(H2D, work, [load])
        backend.launch(COMPUTE, work, [load, again])
        assert streams.current is streams.outside
        with pytest.raises(LookupError):
            backend.launch(COMPUTE, failing_work)
        assert streams.current is streams.outside
        assert on == [H2D, H2D, COMPUTE, COMPUTE]
        assert streams.calls == [
            *((H2D, "records", f"h2d.{number}") for number in range(4)),
            (COMPUTE, "waits for", "h2d.1"),
            (COMPUTE, "waits for", "h2d.3"),
            *((COMPUTE, "records", f"compute.{number}") for number in range(3)),
        ]


def test_a_trace_is_refused_as_by_the_real_device(cuda):
    with pytest.raises(BadInput, match="--device cpu"):
        cuda.begin(Availability((Step(0.0, ((H2D, 0.5),)),)))
