"""What runs on a GPU asks nothing of it that CUDA refuses, and never waits in a timed region."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from builders import make_plan
from fake_cuda import DEVICE, DeviceTensor, FakeCudaBackend, FakeStreams, Refused
from race_graphs import DECODE_GRAPHS, JOB
from run_restores import POLICIES, RestoreCase, policy_graphs, request
from tiny import LLAMA, MODELS, OPT, decode_case, simulated

import hw.calibrate.bench
import hw.calibrate.profiler
import hw.calibrate.restores
import hw.run.generate
from hw import (
    DecodeExecutor,
    HostCache,
    SampledRanges,
    SpeedProbe,
    balanced_link_bytes_per_s,
    open_tier,
    prefill,
    prefilled_caches,
    profile_device,
    prompt_ids,
    random_weights,
    resident_decode,
)
from hw.backends.cuda import CudaBackend
from hw.cache.verify import relative_difference
from hw.model.quantise import HALF_BITS, LOW_HALF, dequantise_into, quantise_into
from hw.run.adaptive_split import AdaptiveSplit
from hw.run.generate import DecodeSteps, MemoryPeaks, generate
from planner.decode.lower import lower
from planner.restore.lower import two_ended_graph
from sim.errors import BadInput, WrongNumbers
from sim.graph.claims import claimed
from sim.graph.jobs import Workload
from sim.lanes import COMPUTE, D2H, H2D, HOST, NET
from sim.model.kv_format import QuantisedRow

WINDOWED = replace(LLAMA, name="tiny-windows", sliding_window=11, full_attention_layers=(1,))
DTYPES = ("float32", "float16", "bfloat16")


@pytest.fixture(autouse=True)
def one_thread():
    """Threads of tiny operations would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def cuda():
    with FakeCudaBackend() as backend:
        yield backend


@pytest.fixture
def short_bench(monkeypatch):
    """Samples of one call, on few and small operands."""
    small = {"SAMPLE_S": 1e-6, "ROTATION_BYTES": 2**18, "BURST_S": 1e-5, "REPEATS": 1}
    for name, value in small.items():
        monkeypatch.setattr(hw.calibrate.bench, name, value)


# The guards.


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


def test_the_former_dequantisation_of_4_bits_is_refused(cuda):
    """Its unpacking into halves passed every test on a CPU, and failed on every GPU."""
    model = replace(OPT, dtype="float16")
    row = QuantisedRow.of(model, 4)
    kv = random_kv(cuda, model, 3)
    rows = torch.empty((3, 2, row.bytes), dtype=torch.uint8, device=DEVICE)
    quantise_into(kv, rows, row)
    codes = rows[..., : row.n_values // 2]
    keys, others = kv.view(3, 2, row.n_values).chunk(2, dim=-1)
    with pytest.raises(Refused, match="bitwise_and_cuda"):
        torch.bitwise_and(codes, LOW_HALF, out=keys)
    with pytest.raises(Refused, match="bitwise_right_shift_cuda"):
        torch.bitwise_right_shift(codes, HALF_BITS, out=others)
    with cuda.work_on(COMPUTE):
        dequantise_into(rows, kv, row)


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


# What the project runs on a device.


def random_kv(backend, model, n_tokens):
    shape = (n_tokens, 2, 2, model.n_kv_heads, model.head_dim)
    return backend.device_empty(shape, getattr(torch, model.dtype)).normal_()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [8, 4])
def test_kv_is_quantised_and_back(cuda, bits, dtype):
    model = replace(LLAMA, dtype=dtype)
    row = QuantisedRow.of(model, bits)
    kv = random_kv(cuda, model, 5)
    back, rows = torch.empty_like(kv), cuda.device_empty((5, 2, row.bytes), torch.uint8)
    with cuda.work_on(COMPUTE):
        quantise_into(kv, rows, row)
        dequantise_into(rows, back, row)
    assert relative_difference(back, kv) < (0.01 if bits == 8 else 0.12)


def run_graph(backend, graph):
    """Decode the prompts of a graph as it says, and check the numbers."""
    weights = random_weights(graph.model, 0, backend.device)
    pageable = (0, HOST) in graph.lanes
    caches = prefilled_caches(weights, graph.workload, 1, backend, pageable)
    exact = replace(graph.workload, kv_bits=None)
    originals = caches
    if graph.workload.kv_bits is not None:
        originals = prefilled_caches(weights, exact, 1, backend)
    references = [resident_decode(weights, cache, exact) for cache in originals]
    executor = DecodeExecutor(simulated(graph), weights, caches, references, backend)
    timeline = executor.run()
    assert executor.check()["tokens_equal"] is True
    assert timeline.makespan_s > 0
    assert all(tokens.device.type == "cpu" for tokens in executor.tokens)


@pytest.mark.parametrize("name", DECODE_GRAPHS)
def test_a_decode_of_every_kind_of_graph(cuda, name):
    graph = DECODE_GRAPHS[name]
    run_graph(cuda, graph)
    staged = sum(task.op == "store_kv" for task in graph.tasks) * ((0, HOST) in graph.lanes)
    assert cuda.waits == staged


@pytest.mark.parametrize(
    ("schedule", "dtype", "kv_bits"),
    [
        ("row", "float16", 8),
        ("row", "float16", 4),
        ("row", "bfloat16", None),
        ("column", "float16", None),
        ("column", "bfloat16", 8),
        ("column", "bfloat16", 4),
    ],
)
def test_a_decode_in_half_precision(cuda, schedule, dtype, kv_bits):
    job = replace(JOB, kv_bits=kv_bits, gen_tokens=2)
    run_graph(cuda, lower(schedule, replace(LLAMA, dtype=dtype), job, [[3, 0, 8], [9, 4, 0]]))


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_decode_of_every_family(cuda, model):
    run_graph(cuda, lower("row", model, replace(JOB, batch_size=2), [[5] * 3] * 3))


def test_a_failed_run_is_drained_so_that_the_next_one_passes_its_check(cuda, monkeypatch):
    def fail(_executor, _task):
        raise LookupError("lost")

    executor = decode_case(cuda).executor(cuda)
    with monkeypatch.context() as patch:
        patch.setitem(DecodeExecutor.operations, "attention", fail)
        with pytest.raises(LookupError, match="lost"):
            executor.run()
    executor.run()
    assert executor.check()["tokens_equal"] is True


def test_a_store_that_does_not_happen_is_noticed(cuda, monkeypatch):
    case = decode_case(cuda)
    executor = case.executor(cuda)
    monkeypatch.setattr(cuda, "copy", lambda *_: None)
    executor.run()
    with pytest.raises(WrongNumbers):
        executor.check()


RESTORES = {
    "shared": (OPT, {"gpu_share": 0.25}, POLICIES),
    "bfloat16": (replace(LLAMA, dtype="bfloat16"), {}, POLICIES),
    "windows-net": (WINDOWED, {"tier": "net"}, ("two-ended", "layer-wise", "joint")),
    "float16-ssd": (replace(OPT, dtype="float16"), {"tier": "ssd"}, ("two-ended", "joint")),
}


@pytest.mark.parametrize(
    ("model", "changes", "policy"),
    [
        pytest.param(model, changes, policy, id=f"{name}-{policy}")
        for name, (model, changes, policies) in RESTORES.items()
        for policy in policies
    ],
)
def test_a_restore_of_every_policy(cuda, model, changes, policy):
    case = RestoreCase.of(cuda, model, request(**changes))
    graph = policy_graphs(model, case.job)[policy]
    with open_tier(case.job, case.weights, case.reference) as tier:
        executor = case.executor(graph, tier)
        timeline = executor.run()
        executor.check()
    done = [one for one in claimed(timeline.graph, timeline.start_s) if one.claim]
    loaded = sum(one.n_tokens for one in done if one.op in ("prefill", "load_kv"))
    assert loaded in (0, case.job.cached_tokens)


def test_a_split_that_moves_while_it_is_restored(cuda):
    case = RestoreCase.of(cuda, OPT, request())
    graph = two_ended_graph(OPT, case.job)
    split = AdaptiveSplit(graph, 8, lambda _task, _seconds, _standing: 24)
    executor = case.executor(graph)
    executor.run(claim_policy=split)
    assert executor.check()["tokens_equal"] is True
    assert split.changes


def tiny_profile(monkeypatch, cuda, dtype, models):
    monkeypatch.setattr(hw.calibrate.profiler, "WARM_UP_S", 0.0)
    monkeypatch.setitem(hw.calibrate.profiler.PASSES, "cuda", 1)
    monkeypatch.setattr(hw.calibrate.restores, "READ_BYTES", (2**13, 2**16))
    chosen = [replace(model, dtype=dtype) for model in models]
    ranges = SampledRanges(2, 64, contexts=(17, 65), copy_bytes=(2**10, 2**14, 2**18))
    return profile_device(cuda, chosen, "fake", ranges)


@pytest.mark.usefixtures("short_bench")
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


@pytest.mark.usefixtures("short_bench")
def test_large_products_are_sampled_under_steady_load(cuda, monkeypatch):
    monkeypatch.setattr(hw.calibrate.bench, "SUSTAINED_FLOPS", 0.0)
    monkeypatch.setattr(hw.calibrate.bench, "SUSTAINED_S", 1e-5)
    bench = hw.calibrate.bench.Bench(cuda, torch.float16, 2**12, 2**12, 2**12)
    assert min(bench.matmul(4, 32, 32) + bench.matmul_after_copy(4, 32, 32)) > 0


@pytest.mark.usefixtures("short_bench")
def test_a_balanced_link_is_measured(cuda):
    assert balanced_link_bytes_per_s(cuda, OPT) > 0


class Seeded:
    """Stands for a checkpoint: seeded random weights."""

    def load(self, model, backend, _progress):
        return random_weights(model, 0, backend.device)


@pytest.mark.parametrize("n_new", [0, 3])
def test_prompts_are_continued(cuda, monkeypatch, n_new):
    peaks = MemoryPeaks(0, "planned", 0, 0)
    monkeypatch.setattr(hw.run.generate, "reset_peaks", lambda _: None)
    monkeypatch.setattr(hw.run.generate, "memory_peaks", lambda *_: peaks)
    job = Workload(2, 13, max(1, n_new))
    graph = lower("row", LLAMA, job, [[4] * 3] * job.gen_tokens)
    steps = DecodeSteps(simulated(graph), warm_ups=1) if n_new else None
    prompts = prompt_ids(LLAMA, job, 1)
    found = generate(Seeded(), LLAMA, prompts.tolist(), steps, cuda)
    weights = random_weights(LLAMA, 0, DEVICE)
    cache = HostCache.empty(LLAMA, job, cuda)
    prefill(weights, prompts, cache)
    expected = cache.next_tokens[None]
    if n_new:
        expected = torch.cat((expected, resident_decode(weights, cache, job).tokens))
    assert found.tokens == expected.T.tolist()


def test_a_trace_is_refused_as_by_the_real_device(cuda):
    from sim.machine.availability import Availability, Step

    with pytest.raises(BadInput, match="--device cpu"):
        cuda.begin(Availability((Step(0.0, ((H2D, 0.5),)),)))
