"""Timing of single operations on the lanes of a backend, under the conditions of a decode.

Operands are random because zeros run faster. Weights are cycled through so that they are as cold
as a real layer's. Data that a decode receives over the link is copied over the link just before.
Compute is timed in processor time, which leaves out the time that other processes had the core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import count, cycle, pairwise
from math import prod
from statistics import mean, median
from time import perf_counter

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from hw.backends import Backend, Handle
from hw.model.kernels import linear_into
from hw.model.layout import random_weights
from hw.model.weights import Linear, Weights
from sim.lanes import COMPUTE, H2D, HOST
from sim.model.spec import ModelSpec

REPEATS = 3
"""Samples of one point in one pass."""

CORE_REPEATS = 1
"""Samples of one kernel of a CPU in one pass: its speed changes from one pass to the next more than
within a pass."""

WARM_UPS = {"cpu": 1, "cuda": 2}
"""Uncounted first runs on slots that were just copied."""

SAMPLE_S = 2e-3
"""Minimum length of a sample; shorter work is repeated inside the sample."""

SLOTS = 2
"""Staging buffers, used alternately as in the executor."""

MAX_EVICTED_BYTES = 256 * 2**20
"""Bytes read to evict the caches, at most; more than any cache holds."""

ROTATION_BYTES = 192 * 2**20
"""Total size of the copies of one weight shape."""

CHAIN = 4
"""Matmuls in one chain."""

ADDED = {"cpu": 1, "cuda": 2}
"""Kernels added after each matmul of a chain."""

LONG_S = 0.03
"""Work that takes longer is sampled twice in one pass; shorter work `REPEATS` times."""

MIN_SAMPLE_S = 1e-7
"""Lower bound of a sample from which an overhead was subtracted."""

BURST_S = {"cpu": 0.05, "cuda": 0.1}
MAX_CALLS = 300
"""Calls in one burst; below the capacity of a device's launch queue."""

MAX_COLD_OPERANDS = 16
"""With more operands, they evict each other from a core's private caches."""

MIN_ROTATION = {"cpu": 4, "cuda": 2}
"""Copies of a matrix larger than the rotation, such as the output head."""

MAX_ROTATION = 256

OVERHEAD_TASKS = 50
COLD_STARTS = 25
"""Tasks whose median gives the extra time of an operation behind other work."""

SUSTAINED_S = 0.2
SUSTAINED_FLOPS = 2e10
READING_SHARE = 0.18
"""A GPU slows down under steady load, so matmuls of at least `SUSTAINED_FLOPS` are sampled for
`SUSTAINED_S`, with `READING_SHARE` seconds of memory reads for each second of matmuls."""

Work = Callable[[], object]
"""One call of the work on a lane; it moves on to the next of its operands itself."""


def rotation_copies(n_bytes: int, kind: str) -> int:
    """Number of copies to cycle through for a matrix of `n_bytes`."""
    return max(MIN_ROTATION[kind], min(MAX_ROTATION, ROTATION_BYTES // n_bytes))


def one_layer(model: ModelSpec, device: torch.device, max_positions: int = 8) -> Weights:
    """Random weights of one layer of `model`, with a tiny MLP and vocabulary, and no experts."""
    tiny = replace(
        model,
        n_layers=1,
        vocab_size=8,
        intermediate_size=8,
        max_positions=max_positions,
        full_attention_layers=(),
        moe=None,
        layer_kinds=(),
        layer_order=(),
    )
    return random_weights(tiny, 0, device)


class Bench:
    """Random operands on a backend, and samplers of operations on them.

    Every sampler returns the seconds of several runs; the first runs are dropped as warm-up.

    Args:
        largest_operand: elements of the largest matrix.
        largest_slot: elements of the largest staging slot.
        layer_bytes: weight bytes of one layer. So many bytes are read to evict the caches.

    Attributes:
        took_s, worked_s: duration and processor time of all compute until now.
    """

    def __init__(
        self,
        backend: Backend,
        dtype: torch.dtype,
        largest_operand: int,
        largest_slot: int,
        layer_bytes: int,
    ) -> None:
        self.backend = backend
        self.dtype = dtype
        generator = torch.Generator(device=backend.device).manual_seed(0)
        self.took_s = self.worked_s = 0.0
        self._rotations: dict[tuple[int, ...], list[Tensor]] = {}
        self._chains = count()
        self._linears: dict[tuple[int, int], Iterator[Linear]] = {}
        self._evicted = min(layer_bytes, MAX_EVICTED_BYTES) // dtype.itemsize
        n = max(largest_operand, self._evicted, 1024 * 1024)
        self._pool = torch.empty(n, dtype=dtype, device=backend.device)
        self._pool.normal_(generator=generator)
        self._outs = [torch.empty_like(self._pool) for _ in range(SLOTS)]
        self._host = backend.host_empty((largest_slot,), dtype)
        self._slots = [backend.device_empty((largest_slot,), dtype) for _ in range(SLOTS)]
        for slot in self._slots:
            slot.normal_(generator=generator)
        self._host.copy_(self._slots[0])

    @cached_property
    def compute_task_s(self) -> float:
        """Device seconds of a compute task in addition to its kernels: events, cold caches."""
        if self.backend.kind == "cpu":
            return self._cold_start_s()
        return self._task_overhead_s(COMPUTE, self._small_matmul())

    @cached_property
    def copy_task_s(self) -> float:
        """Device seconds of a copy task in addition to its copy.

        0 on a CPU, where the lane's own thread takes the time.
        """
        if self.backend.kind == "cpu":
            return 0.0
        return self._task_overhead_s(H2D, self.copy_work(H2D, 2**20))

    def _task_overhead_s(self, lane: str, work: Work) -> float:
        """Seconds of a task with one call of `work`, minus the seconds of one call back to back."""
        call_s = min(self.back_to_back(lane, work))
        return max(0.0, median(self._samples(lane, work, 1, OVERHEAD_TASKS)) - call_s)

    def _cold_start_s(self) -> float:
        """Extra seconds of a decode step's operation behind other work, compared with a loop of it.

        A task that follows another finds little of its code in the core's caches. The operation is
        a norm, a matmul, a copy and a residual, as many kernels as most operations have.
        """
        weights, x, out = cycle(self.cold(1024, 1024)), self.random(4, 1024), self.out(4, 1024)
        normed = self.out(4, 1024, slot=1)

        def operation() -> None:
            normed.copy_(F.layer_norm(x, (1024,)))
            torch.mm(normed, next(weights), out=out)
            out.add_(x)

        longer_s = []
        for _ in range(COLD_STARTS):
            (loop_s,) = self._samples(COMPUTE, operation, 4, 1)
            self.backend.begin()
            self.backend.launch(COMPUTE, self._evict)
            (alone_s,) = self._finish([self.backend.launch(COMPUTE, operation)])
            longer_s.append(alone_s - loop_s / 4)
        return max(0.0, median(longer_s))

    def _small_matmul(self) -> Work:
        a, b, c = self.random(256, 1024), self.random(1024, 1024), self.out(256, 1024)
        return partial(torch.mm, a, b, out=c)

    def random(self, *shape: int) -> Tensor:
        """A random operand; operands of equal shape share their memory."""
        return self._pool[: prod(shape)].view(shape)

    def cold(self, *shape: int) -> list[Tensor]:
        """Operands of one shape to cycle through, so that each is cold in L1 and L2.

        They are views of the memory that `random` uses.
        """
        size = prod(shape)
        starts = range(0, self._pool.numel() - size + 1, size)[:MAX_COLD_OPERANDS]
        return [self._pool[start : start + size].view(shape) for start in starts]

    def rotation(self, *shape: int) -> list[Tensor]:
        """Random operands of one shape, each allocated separately."""
        if shape not in self._rotations:
            copies = rotation_copies(prod(shape) * self.dtype.itemsize, self.backend.kind)
            self._rotations[shape] = [self.random(*shape).clone() for _ in range(copies)]
        return self._rotations[shape]

    def linears(self, n: int, k: int) -> Iterator[Linear]:
        """Linear layers `[n, k]` in an endless cycle, which all samplers of the shape continue."""
        if (n, k) not in self._linears:
            weights = self.rotation(n, k)
            self._linears[n, k] = cycle([Linear(weight, self.random(n)) for weight in weights])
        return self._linears[n, k]

    def out(self, *shape: int, slot: int = 0) -> Tensor:
        """Memory for a result; results in the same slot share it."""
        return self._outs[slot][: prod(shape)].view(shape)

    def outs(self, *shape: int) -> Iterator[Tensor]:
        """Memory for results, an endless cycle through the slots."""
        return cycle([self.out(*shape, slot=slot) for slot in range(SLOTS)])

    def back_to_back(self, lane: str, work: Work) -> list[float]:
        """Seconds of one `work()`, called back to back on `lane`."""
        first = self._samples(lane, work, 1, 2)
        if min(first) > LONG_S:
            return first
        inner = max(1, min(200, round(SAMPLE_S / max(first[-1], 1e-7))))
        repeats = self._repeats(lane)
        return [sample / inner for sample in self._samples(lane, work, inner, repeats)]

    def _repeats(self, lane: str) -> int:
        return CORE_REPEATS if (lane, self.backend.kind) == (COMPUTE, "cpu") else REPEATS

    def sustained(self, work: Work) -> list[float]:
        """Seconds of one matmul `work()` under the load of a decode.

        Matmuls fill most of the time; memory reads, like those of attention, fill the rest.
        """
        overhead_s = self.compute_task_s
        once_s = min(self._samples(COMPUTE, work, 1, 2))
        inner = max(1, round(SAMPLE_S / once_s))
        read_s = min(self._samples(COMPUTE, self._evict, 1, 2))
        reads = max(1, round(READING_SHARE * inner * once_s / read_s))
        tasks = max(2 * REPEATS, round(SUSTAINED_S / (inner * once_s + reads * read_s)))
        handles = []
        self.backend.begin(launches=MAX_CALLS)
        for _ in range(tasks):
            handles.append(self.backend.launch(COMPUTE, _repeated(work, inner)))
            self.backend.launch(COMPUTE, _repeated(self._evict, reads))
        seconds = [(one - overhead_s) / inner for one in self._finish(handles)][tasks // 5 :]
        return [mean(seconds[first::REPEATS]) for first in range(REPEATS)]

    def between_matmuls(self, n: int, work: Work) -> list[float]:
        """Seconds that `work()` adds between `[1, n] x [n, n]` matmuls of one task.

        Element-wise kernels run like this in a decode. In a loop without matmuls they would find
        code and data in the nearest cache; as separate tasks they would include the start of a
        task. On a GPU the first kernel after a matmul also ends the overlap of that matmul with the
        next one, and most such kernels come in pairs, so two are added there.
        """
        added = ADDED[self.backend.kind]
        weights, bias = self.rotation(n, n), self.random(n)
        x, out = self.random(1, n), self.out(1, n)

        def chain(first: int, extra: bool) -> None:
            for number in range(first, first + CHAIN):
                linear_into(Linear(weights[number % len(weights)], bias), x, out)
                for _ in range(added if extra else 0):
                    work()

        self.backend.begin(launches=(1 + 2 * REPEATS) * (2 + added) * CHAIN)
        handles = [
            self.backend.launch(COMPUTE, partial(chain, next(self._chains), extra))
            for _ in range(1 + 2 * REPEATS)
            for extra in (False, True)
        ]
        seconds = self._finish(handles)[2:]
        return [
            max(MIN_SAMPLE_S, (full - bare) / (added * CHAIN))
            for bare, full in zip(seconds[::2], seconds[1::2], strict=True)
        ]

    def after_copy(self, shape: Sequence[int], work: Callable[[Tensor], object]) -> list[float]:
        """Seconds of `work(slot)` on a slot that was filled over the link and then evicted."""
        size = prod(shape)
        host, slots = self._host[:size], [slot[:size] for slot in self._slots]
        overhead_s = self.compute_task_s
        handles: list[Handle] = []
        self.backend.begin()
        warm_ups = WARM_UPS[self.backend.kind]
        for number in range(warm_ups + self._repeats(COMPUTE)):
            slot = slots[number % SLOTS]
            filled = self.backend.launch(
                H2D, partial(slot.copy_, host, non_blocking=True), handles[-1:]
            )
            self.backend.launch(COMPUTE, self._evict, [filled])
            handles.append(self.backend.launch(COMPUTE, partial(work, slot.view(*shape))))
        return [max(MIN_SAMPLE_S, one - overhead_s) for one in self._finish(handles)[warm_ups:]]

    def matmul(self, m: int, n: int, k: int) -> list[float]:
        """Seconds of `[m, k] x [k, n]` on activations that are still in a cache."""
        linears, x, out = self.linears(n, k), self.random(m, k), self.out(m, n)

        def work() -> None:
            linear_into(next(linears), x, out)

        if self._draws_full_power(m, n, k):
            return self.sustained(work)
        return self.back_to_back(COMPUTE, work)

    def matmul_after_copy(self, m: int, n: int, k: int) -> list[float]:
        """Seconds of `[m, k] x [k, n]` on an x that just came over the link, as in a recomputation.

        A large matmul on a GPU is sampled under steady load instead, which has a larger effect.
        """
        linears, outs = self.linears(n, k), self.outs(m, n)

        def work(x: Tensor) -> None:
            linear_into(next(linears), x, next(outs))

        if self._draws_full_power(m, n, k):
            slots = cycle([slot[: m * k].view(m, k) for slot in self._slots])
            return self.sustained(lambda: work(next(slots)))
        return self.after_copy((m, k), work)

    def _draws_full_power(self, m: int, n: int, k: int) -> bool:
        return self.backend.kind != "cpu" and 2 * m * n * k >= SUSTAINED_FLOPS

    def copy_work(self, lane: str, n_bytes: int) -> Work:
        """A copy of `n_bytes` between host and device in the direction of `lane`.

        On lane `host` it goes from pageable into pinned memory, from a source as cold as a layer's
        K and V.
        """
        n = n_bytes // self.dtype.itemsize
        if lane == HOST:
            starts, offsets = self._pageable.numel() - n + 1, count(0, n)
            return lambda: self._host[:n].copy_(self._pageable[next(offsets) % starts :][:n])
        if lane == H2D:
            return lambda: self.backend.copy(self._slots[0][:n], self._host[:n])
        return lambda: self.backend.copy(self._host[-n:], self._slots[1][-n:])

    def speed_while(self, lane: str, work: Work, other: str, other_work: Work) -> list[float]:
        """Speed of `lane` while `other` works too, relative to its speed while `other` is idle.

        Both cases alternate, so that drift of the machine affects both. `other` gets 1.5 times as
        much work, so that it is busy for as long as `lane` is even if it is not slowed down.
        """
        once_s, other_s = self.back_to_back(lane, work)[0], self.back_to_back(other, other_work)[0]
        calls = max(3, min(MAX_CALLS, round(BURST_S[self.backend.kind] / once_s)))
        calls = max(3, min(calls, int(MAX_CALLS * other_s / (1.5 * once_s))))
        other_calls = max(3, round(1.5 * calls * once_s / other_s))
        speeds = []
        for _ in range(REPEATS):
            uncontended_s, _ = self._bursts({lane: (work, calls)})
            both_s, covered = self._bursts({lane: (work, calls), other: (other_work, other_calls)})
            speeds.append(1.0 - (1.0 - uncontended_s / both_s) / covered)
        return speeds

    def _bursts(self, works: dict[str, tuple[Work, int]]) -> tuple[float, float]:
        """Seconds of the first lane's burst, and the fraction with the last lane busy."""
        self.backend.begin()
        handles = [
            self.backend.launch(lane, _repeated(*burst)) for lane, burst in reversed(works.items())
        ]
        (seconds,) = self._finish(handles[-1:], next(iter(works)))
        times = self.backend.times_s(handles)
        (start, end), (other_start, other_end) = times[-1], times[0]
        shared = min(end, other_end) - max(start, other_start)
        return seconds, max(shared / (end - start), 0.1)

    def launch_s(self, lane: str, work: Work, n: int = 200) -> list[float]:
        """Host seconds to launch one call of `work`.

        Args:
            n: calls launched before the device is waited for; a full launch queue blocks the host.
        """
        samples = []
        for _ in range(REPEATS):
            self.backend.begin()
            start = perf_counter()
            for _ in range(n):
                self.backend.launch(lane, work)
            samples.append((perf_counter() - start) / n)
            self.backend.finish()
        return samples

    def gap_s(self) -> list[float]:
        """Seconds between the end of a matmul and the start of the next one on its lane."""
        return self._gaps([COMPUTE])

    def handover_s(self) -> list[float]:
        """Seconds between the end of work on one lane and the start of work that waits for it."""
        return self._gaps([COMPUTE, H2D])

    def turn_s(self) -> list[float]:
        """Seconds between two matmuls that are launched in turn: the next when the last is done."""
        return self._gaps([COMPUTE], in_turn=True)

    def _gaps(self, lanes: Sequence[str], in_turn: bool = False) -> list[float]:
        """Seconds between dependent tasks that cycle through `lanes`."""
        works = {COMPUTE: self._small_matmul(), H2D: self.copy_work(H2D, 2**20)}
        for lane, work in works.items():  # a library loads its kernel at the first call
            self._samples(lane, work, 1, 1)
        handles: list[Handle] = []
        self.backend.begin(in_turn=in_turn)
        for call in range(20):
            lane = lanes[call % len(lanes)]
            handles.append(self.backend.launch(lane, works[lane], handles[-1:]))
        self.backend.finish()
        times = self.backend.times_s(handles)
        return [max(0.0, start - end) for (_, end), (start, _) in pairwise(times[2:])]

    @cached_property
    def _pageable(self) -> Tensor:
        """Pageable host memory larger than the caches; written, so that its pages exist."""
        n = max(self._host.numel(), ROTATION_BYTES // self.dtype.itemsize)
        return torch.ones(n, dtype=self.dtype)

    def _evict(self) -> None:
        self._pool[: self._evicted].max()

    def _samples(self, lane: str, work: Work, inner: int, repeats: int) -> list[float]:
        """Seconds of `repeats` tasks of `inner` calls each, after one warm-up task."""
        self.backend.begin(launches=min(MAX_CALLS, inner * (repeats + 1)))
        handles = [self.backend.launch(lane, _repeated(work, inner)) for _ in range(repeats + 1)]
        return self._finish(handles, lane)[1:]

    def _finish(self, handles: Sequence[Handle], lane: str = COMPUTE) -> list[float]:
        """Seconds of each launched work of a lane; waits until all is done."""
        self.backend.finish()
        seconds = [end - start for start, end in self.backend.times_s(handles)]
        if lane != COMPUTE:
            return seconds
        worked_s = self.backend.worked_s(handles)
        self.took_s, self.worked_s = self.took_s + sum(seconds), self.worked_s + sum(worked_s)
        return worked_s


def _repeated(work: Work, times: int) -> Work:
    def run() -> None:
        for _ in range(times):
            work()

    return run
