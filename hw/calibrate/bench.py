"""Timing single operations on the lanes of a backend, under the conditions a decode finds.

Operands are random (zeros run faster than data), weights take turns so that they are as cold as a
real layer's, and what a decode receives over the link is copied over the link just before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from itertools import count, pairwise
from math import prod
from statistics import mean, median
from time import perf_counter

import torch
from torch import Tensor

from hw.backends import Backend, Handle
from hw.model.kernels import linear_into
from hw.model.weights import Linear
from sim.lanes import COMPUTE, H2D, HOST

REPEATS = 3
"""Samples of one point in one pass."""

SAMPLE_S = 2e-3
"""Short work is repeated inside one sample until it takes this long."""

SLOTS = 2
"""Staging buffers that take turns, as in the executor."""

MAX_EVICTED_BYTES = 256 * 2**20
"""More than any cache holds; a layer whose weights are larger is stood in for by this much."""

ROTATION_BYTES = 192 * 2**20
"""Memory over which the weights of one shape take turns."""

CHAIN = 4
ADDED = {"cpu": 1, "cuda": 2}
SHORTEST_S = 1e-7
"""Links of a chain of matrix products, kernels that are added to each, and the least that one of
them is said to take."""

BURST_S = 0.1
MAX_CALLS = 300
"""Length of a burst, and calls in it: fewer than a device's launch queue holds."""

MAX_TURNS = 16
"""More operands in turn push each other out of a core's own caches."""

MIN_ROTATION = {"cpu": 4, "cuda": 2}
"""Copies of a matrix so large that it fills the rotation alone, such as the output head."""

MAX_ROTATION = 256

OVERHEAD_TASKS = 50

SUSTAINED_S = 0.2
SUSTAINED_FLOPS = 2e10
READING_SHARE = 0.18
"""A GPU slows down under steady load. A product of so many operations is therefore sampled for so
long, with so much reading of memory between products for each second of them."""

Work = Callable[[int], object]
"""Work on a lane; the argument counts all calls ever made, so that operands take turns."""


def rotation_copies(n_bytes: int, kind: str) -> int:
    """Copies of a matrix that take turns on a device of this kind."""
    return max(MIN_ROTATION[kind], min(MAX_ROTATION, ROTATION_BYTES // n_bytes))


class Bench:
    """Random operands on a backend and samplers of what work on them takes.

    Every sampler returns seconds of several runs; the first runs after a start are dropped.

    Args:
        largest_operand: elements of the largest matrix that will be asked for.
        largest_slot: elements of the largest staging slot that will be asked for.
        layer_bytes: weights of one layer, which pass through the caches between two uses of
            the same data.
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
        self._calls = count()
        self._rotations: dict[tuple[int, ...], list[Tensor]] = {}
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
        """Device seconds of a compute task besides its kernels: its events, and starting up."""
        a, b, c = self.random(256, 1024), self.random(1024, 1024), self.out(256, 1024)
        return self._task_overhead_s(COMPUTE, lambda _: torch.mm(a, b, out=c))

    @cached_property
    def copy_task_s(self) -> float:
        """Device seconds of a copy task besides its copy."""
        return self._task_overhead_s(H2D, self.copy_work(H2D, 2**20))

    def _task_overhead_s(self, lane: str, work: Work) -> float:
        """What a task of one piece of work takes longer than that work in a row.

        None where the lane's own thread takes the time.
        """
        if self.backend.kind == "cpu":
            return 0.0
        in_a_row_s = min(self.back_to_back(lane, work))
        return max(0.0, median(self._samples(lane, work, 1, OVERHEAD_TASKS)) - in_a_row_s)

    def random(self, *shape: int) -> Tensor:
        """A random operand; equal shapes share their memory."""
        return self._pool[: prod(shape)].view(shape)

    def cold(self, *shape: int) -> list[Tensor]:
        """Random operands of one shape that take turns, so that none is in a near cache still.

        Unlike a rotation's they lie in the memory of all the others.
        """
        size = prod(shape)
        starts = range(0, self._pool.numel() - size + 1, size)[:MAX_TURNS]
        return [self._pool[start : start + size].view(shape) for start in starts]

    def rotation(self, *shape: int) -> list[Tensor]:
        """Different random operands of one shape, each allocated by itself as a layer's are."""
        if shape not in self._rotations:
            copies = rotation_copies(prod(shape) * self.dtype.itemsize, self.backend.kind)
            self._rotations[shape] = [self.random(*shape).clone() for _ in range(copies)]
        return self._rotations[shape]

    def linears(self, n: int, k: int) -> list[Linear]:
        return [Linear(weight, self.random(n)) for weight in self.rotation(n, k)]

    def out(self, *shape: int, slot: int = 0) -> Tensor:
        return self._outs[slot][: prod(shape)].view(shape)

    def back_to_back(self, lane: str, work: Work) -> list[float]:
        """Seconds of `work(i)` called in a row on `lane`."""
        once = self._samples(lane, work, 1, 2)[-1]
        inner = max(1, min(200, round(SAMPLE_S / max(once, 1e-7))))
        return [sample / inner for sample in self._samples(lane, work, inner, REPEATS)]

    def sustained(self, work: Work) -> list[float]:
        """Seconds of `work(i)` under the load of a decode: products for most of the time.

        The rest of the time the memory is read, as by attention.
        """
        overhead_s = self.compute_task_s
        once_s = min(self._samples(COMPUTE, work, 1, 2))
        inner = max(1, round(SAMPLE_S / once_s))
        read_s = min(self._samples(COMPUTE, lambda _: self._evict(), 1, 2))
        reads = max(1, round(READING_SHARE * inner * once_s / read_s))
        tasks = max(2 * REPEATS, round(SUSTAINED_S / (inner * once_s + reads * read_s)))

        def products() -> None:
            for _ in range(inner):
                work(next(self._calls))

        def reading() -> None:
            for _ in range(reads):
                self._evict()

        handles = []
        self.backend.begin(launches=MAX_CALLS)
        for _ in range(tasks):
            handles.append(self.backend.launch(COMPUTE, products))
            self.backend.launch(COMPUTE, reading)
        seconds = [(one - overhead_s) / inner for one in self._finish(handles)][tasks // 5 :]
        return [mean(seconds[part::REPEATS]) for part in range(REPEATS)]

    def between_products(self, n: int, work: Work) -> list[float]:
        """Seconds that `work(i)` adds between `[1, n] x [n, n]` products of one task.

        Element-wise kernels run like this. Alone in a loop they would find code and data in the
        nearest cache, and as tasks of their own they would also pay for waking up their lane.
        On a GPU the first kernel after a product also ends the overlap of the product with the next
        one, and most come in pairs: there two are added.
        """
        added = ADDED[self.backend.kind]
        linears, x, out = self.linears(n, n), self.random(1, n), self.out(1, n)

        def chain(call: int, extra: bool) -> None:
            for number in range(call, call + CHAIN):
                linear_into(linears[number % len(linears)], x, out)
                for _ in range(added if extra else 0):
                    work(number)

        handles = []
        self.backend.begin(launches=(1 + 2 * REPEATS) * (2 + added) * CHAIN)
        for _ in range(1 + 2 * REPEATS):
            for extra in (False, True):
                handles.append(
                    self.backend.launch(COMPUTE, self._once(partial(chain, extra=extra)))
                )
        seconds = self._finish(handles)[2:]
        return [
            max(SHORTEST_S, (full - bare) / (added * CHAIN))
            for bare, full in zip(seconds[::2], seconds[1::2], strict=True)
        ]

    def after_copy(
        self, shape: Sequence[int], work: Callable[[int, Tensor], object]
    ) -> list[float]:
        """Seconds of `work(i, slot)` when slot was filled over the link, but not just now."""
        size = prod(shape)
        host, slots = self._host[:size], [slot[:size] for slot in self._slots]
        overhead_s = self.compute_task_s
        handles: list[Handle] = []
        self.backend.begin()
        for number in range(2 + REPEATS):
            slot = slots[number % SLOTS]
            filled = self.backend.launch(
                H2D, partial(slot.copy_, host, non_blocking=True), handles[-1:]
            )
            self.backend.launch(COMPUTE, self._evict, [filled])
            use = partial(work, next(self._calls), slot.view(*shape))
            handles.append(self.backend.launch(COMPUTE, use))
        return [max(SHORTEST_S, one - overhead_s) for one in self._finish(handles)[2:]]

    def matmul(self, m: int, n: int, k: int) -> list[float]:
        """Seconds of `[m, k] x [k, n]` on activations that are still in a cache."""
        linears, x, out = self.linears(n, k), self.random(m, k), self.out(m, n)

        def work(call: int) -> None:
            linear_into(linears[call % len(linears)], x, out)

        if self.backend.kind == "cpu" or 2 * m * n * k < SUSTAINED_FLOPS:
            return self.back_to_back(COMPUTE, work)
        return self.sustained(work)

    def matmul_after_copy(self, m: int, n: int, k: int) -> list[float]:
        """Seconds of `[m, k] x [k, n]` when x just came over the link, as in a recomputation.

        A large product on a GPU is sampled under steady load instead, which matters more.
        """
        linears, outs = self.linears(n, k), [out[: m * n].view(m, n) for out in self._outs]
        slots = [slot[: m * k].view(m, k) for slot in self._slots]

        def work(call: int, x: Tensor) -> None:
            linear_into(linears[call % len(linears)], x, outs[call % SLOTS])

        if self.backend.kind == "cpu" or 2 * m * n * k < SUSTAINED_FLOPS:
            return self.after_copy((m, k), work)
        return self.sustained(lambda call: work(call, slots[call % SLOTS]))

    def copy_work(self, lane: str, n_bytes: int) -> Work:
        """A copy of `n_bytes` between host and device in the direction of `lane`.

        On lane `host` it is from pageable into pinned memory, and the source is as cold as a
        layer's K and V are.
        """
        n = n_bytes // self.dtype.itemsize
        if lane == HOST:
            starts = self._pageable.numel() - n + 1
            return lambda call: self._host[:n].copy_(self._pageable[call * n % starts :][:n])
        if lane == H2D:
            return lambda _: self.backend.copy(self._slots[0][:n], self._host[:n])
        return lambda _: self.backend.copy(self._host[-n:], self._slots[1][-n:])

    def pace_beside(self, lane: str, work: Work, other: str, other_work: Work) -> list[float]:
        """Pace of `lane`, relative to working alone, while `other` works too.

        Alone and together take turns, so that a machine that drifts slows both. `other` gets half
        as much work again, so that it lasts for as long as `lane` works even if it is not slowed.
        """
        once_s, other_s = self.back_to_back(lane, work)[0], self.back_to_back(other, other_work)[0]
        calls = max(3, min(MAX_CALLS, round(BURST_S / once_s)))
        calls = max(3, min(calls, int(MAX_CALLS * other_s / (1.5 * once_s))))
        beside = max(3, round(1.5 * calls * once_s / other_s))
        paces = []
        for _ in range(REPEATS):
            uncontended_s, _ = self._bursts({lane: (work, calls)})
            both_s, covered = self._bursts({lane: (work, calls), other: (other_work, beside)})
            paces.append(1.0 - (1.0 - uncontended_s / both_s) / covered)
        return paces

    def _bursts(self, works: dict[str, tuple[Work, int]]) -> tuple[float, float]:
        """Time of the first lane's burst, and the part of it in which the last lane worked too."""

        def several(work: Work, calls: int) -> None:
            for _ in range(calls):
                work(next(self._calls))

        self.backend.begin()
        handles = [
            self.backend.launch(lane, partial(several, *burst))
            for lane, burst in reversed(works.items())
        ]
        self.backend.finish()
        times = self.backend.times_s(handles)
        (start, end), (other_start, other_end) = times[-1], times[0]
        shared = min(end, other_end) - max(start, other_start)
        return end - start, max(shared / (end - start), 0.1)

    def launch_s(self, lane: str, work: Work, n: int = 200) -> list[float]:
        """Host seconds to issue one piece of work; the device has none of it to wait for.

        Args:
            n: pieces that are issued ahead; a launch queue that is full makes the host wait.
        """
        samples = []
        for _ in range(REPEATS):
            self.backend.begin()
            start = perf_counter()
            for _ in range(n):
                self.backend.launch(lane, self._once(work))
            samples.append((perf_counter() - start) / n)
            self.backend.finish()
        return samples

    def gap_s(self) -> list[float]:
        """Seconds between the end of a matrix product and the start of the next on its lane."""
        return self._gaps(lambda _: COMPUTE)

    def handover_s(self) -> list[float]:
        """Seconds between the end of work on one lane and the start of work that waits for it."""
        return self._gaps(lambda call: (COMPUTE, H2D)[call % 2])

    def turn_s(self) -> list[float]:
        """Seconds between two matrix products that are handed over when their turn has come."""
        return self._gaps(lambda _: COMPUTE, in_turn=True)

    def _gaps(self, lane_of: Callable[[int], str], in_turn: bool = False) -> list[float]:
        a, b, c = self.random(256, 1024), self.random(1024, 1024), self.out(256, 1024)
        copy = self.copy_work(H2D, 2**20)
        works: dict[str, Work] = {COMPUTE: lambda _: torch.mm(a, b, out=c), H2D: copy}
        for lane, work in works.items():  # a library loads its kernel when it is first called
            self._samples(lane, work, 1, 1)
        handles: list[Handle] = []
        self.backend.begin(in_turn=in_turn)
        for call in range(20):
            lane = lane_of(call)
            handles.append(self.backend.launch(lane, self._once(works[lane]), handles[-1:]))
        self.backend.finish()
        times = self.backend.times_s(handles)
        return [max(0.0, start - end) for (_, end), (start, _) in pairwise(times[2:])]

    @cached_property
    def _pageable(self) -> Tensor:
        """Ordinary host memory, more than the caches hold; written, so that its pages exist."""
        n = max(self._host.numel(), ROTATION_BYTES // self.dtype.itemsize)
        return torch.ones(n, dtype=self.dtype)

    def _evict(self) -> None:
        self._pool[: self._evicted].max()

    def _samples(self, lane: str, work: Work, inner: int, repeats: int) -> list[float]:
        def several() -> None:
            for _ in range(inner):
                work(next(self._calls))

        self.backend.begin(launches=min(MAX_CALLS, inner * (repeats + 1)))
        handles = [self.backend.launch(lane, several) for _ in range(repeats + 1)]
        return self._finish(handles)[1:]

    def _finish(self, handles: Sequence[Handle]) -> list[float]:
        self.backend.finish()
        return [end - start for start, end in self.backend.times_s(handles)]

    def _once(self, work: Work) -> Callable[[], object]:
        return partial(work, next(self._calls))
