"""This machine as a device: compute on one thread, links as paced byte copies on other threads.

Tensors, copies, overlap and waiting are real; the speed of the link is an input. A run shows that
a plan computes the right numbers in the predicted order and time. It predicts nothing about PCIe.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from hw.backends.base import (
    ASK_AGAIN_S,
    FINISH_TIMEOUT_S,
    JOIN_TIMEOUT_S,
    Done,
    Memory,
    Resolve,
    Work,
    wait_for,
)
from hw.backends.cpu_contention import CompetingLoad, check_competition
from hw.backends.pacing import Pace, Transfer
from hw.environment import host_environment, host_memory_bytes
from sim.errors import BadInput, DoesNotFit
from sim.lanes import COMPUTE, COPY_LANES, LANES, TIER_LANES
from sim.machine.availability import ALWAYS, Availability

CHUNK_BYTES = 512 * 1024
"""Bytes copied at memory speed between two sleeps of a paced copy."""


@dataclass(slots=True)
class CpuHandle:
    lane: str
    done: threading.Event = field(default_factory=threading.Event)
    start_s: float = 0.0
    end_s: float = 0.0
    worked_s: float = 0.0


Job = tuple[Work, Sequence[CpuHandle], Resolve | None, Done | None, CpuHandle]


class CpuBackend:
    """The CPU as a device; each lane is a thread with a queue.

    Args:
        link_bytes_per_s: pace of each copy direction; None copies as fast as memory allows.
        tier_bytes_per_s: pace of the lanes behind host memory.
    """

    kind = "cpu"

    def __init__(
        self,
        link_bytes_per_s: float | None,
        tier_bytes_per_s: Mapping[str, float] | None = None,
    ) -> None:
        self.device = torch.device("cpu")
        self.link_bytes_per_s = link_bytes_per_s
        self._rates = dict(tier_bytes_per_s or {})
        if link_bytes_per_s is not None:
            self._rates |= dict.fromkeys(COPY_LANES, link_bytes_per_s)
        self._paces: dict[str, Pace] = {}
        self._resolving = threading.Lock()
        self._local = threading.local()
        self._queues: dict[str, queue.SimpleQueue[Job | None]] = {
            lane: queue.SimpleQueue() for lane in (*LANES, *TIER_LANES)
        }
        self._threads = [
            threading.Thread(target=self._work, args=(lane, jobs), name=f"lane-{lane}", daemon=True)
            for lane, jobs in self._queues.items()
        ]
        self._launched: list[CpuHandle] = []
        self._failure: BaseException | None = None
        self._competing: CompetingLoad | None = None
        self._zero_s = time.perf_counter()
        for thread in self._threads:
            thread.start()

    def host_empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype)

    def device_empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype)

    def memory(self) -> Memory:
        """Half of the free host memory for each side, since device and host share it."""
        half = host_memory_bytes() // 2
        return Memory(half, half)

    def head_start_s(self) -> float:
        return 0.0

    def begin(
        self,
        trace: Availability = ALWAYS,
        in_turn: bool = False,  # noqa: ARG002 - lanes always run in turn
        launches: int = 0,  # noqa: ARG002 - lanes launch their own kernels
    ) -> None:
        if COMPUTE in trace.lanes:
            check_competition(trace)
        for lane in trace.lanes:
            if lane not in (COMPUTE, *self._rates):
                raise BadInput(
                    f"the trace changes lane {lane!r}, which has no pace of its own on this cpu "
                    "device; give the tier or link a rate."
                )
        self._launched = []
        self._failure = None
        self._paces = {
            lane: Pace(lane, rate, self._now_s, trace) for lane, rate in self._rates.items()
        }
        if COMPUTE in trace.lanes:
            self._competing = CompetingLoad(compute_core(), trace)
        self._zero_s = time.perf_counter()
        if self._competing is not None:
            self._competing.follow(self._zero_s)

    def _now_s(self) -> float:
        return time.perf_counter() - self._zero_s

    def launch(
        self,
        lane: str,
        work: Work,
        after: Sequence[CpuHandle] = (),
        resolve: Resolve | None = None,
        done: Done | None = None,
    ) -> CpuHandle:
        handle = CpuHandle(lane)
        self._launched.append(handle)
        self._queues[lane].put((work, after, resolve, done, handle))
        return handle

    def copy(
        self,
        destination: Tensor,
        source: Tensor,
        pageable: bool = False,  # noqa: ARG002 - nothing is pinned here
    ) -> None:
        self.copy_all([(destination, source)])

    def copy_all(self, copies: Sequence[tuple[Tensor, Tensor]]) -> None:
        transfer = self.transfer()
        for destination, source in copies:
            if not transfer.paced:
                destination.copy_(source)
                continue
            into = destination.view(-1).view(torch.uint8)
            out_of = source.view(-1).view(torch.uint8)
            for first in range(0, into.numel(), CHUNK_BYTES):
                chunk = slice(first, first + CHUNK_BYTES)
                into[chunk].copy_(out_of[chunk])
                transfer.passed(into[chunk].numel())

    def transfer(self) -> Transfer:
        return Transfer(self._paces.get(getattr(self._local, "lane", "")))

    def finish(self) -> None:
        until_s = time.monotonic() + FINISH_TIMEOUT_S
        for handle in self._launched:
            wait_for(handle.done, until_s, handle.lane)
        if self._competing is not None:
            self._competing.end()
            self._competing = None
        failure, self._failure = self._failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # its traceback holds this frame: a cycle that keeps the buffers

    def times_s(self, handles: Sequence[CpuHandle]) -> list[tuple[float, float]]:
        return [(handle.start_s, handle.end_s) for handle in handles]

    def worked_s(self, handles: Sequence[CpuHandle]) -> list[float]:
        return [handle.worked_s for handle in handles]

    def environment(self) -> dict[str, Any]:
        return {
            **host_environment(),
            "device": "cpu: compute on one thread, links as paced copies in host memory",
            "link_bytes_per_s": self.link_bytes_per_s,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """End the threads of the lanes.

        Raises:
            DoesNotFit: the work ran out of memory.
        """
        for jobs in self._queues.values():
            jobs.put(None)
        for thread in self._threads:
            thread.join(JOIN_TIMEOUT_S)
        for failure in exc:
            if isinstance(failure, MemoryError) or "DefaultCPUAllocator" in str(failure):
                raise DoesNotFit(
                    "this cpu device ran out of memory: weights, both caches and "
                    "activations share the host's; lower --batch or --prompt, or choose a smaller "
                    "model or --dtype."
                ) from None

    def _work(self, lane: str, jobs: queue.SimpleQueue[Job | None]) -> None:
        torch.set_num_threads(1)
        _set_core_affinity(lane)
        self._local.lane = lane
        with torch.inference_mode():
            while (job := jobs.get()) is not None:
                handle = job[-1]
                try:
                    self._run(*job)
                except BaseException as failure:  # handed to the thread that waits in finish
                    self._failure = failure
                del job  # whoever waits may count on the memory of finished work being free
                handle.done.set()

    def _run(
        self,
        work: Work,
        after: Sequence[CpuHandle],
        resolve: Resolve | None,
        done: Done | None,
        handle: CpuHandle,
    ) -> None:
        """Run one work item after its dependencies."""
        for earlier in after:
            earlier.done.wait()
        if not self._resolves(handle, resolve):
            return
        worked_s = time.thread_time()
        work()
        handle.worked_s = time.thread_time() - worked_s
        handle.end_s = self._now_s()
        if done is not None:
            done(handle.end_s - handle.start_s)

    def _resolves(self, handle: CpuHandle, resolve: Resolve | None) -> bool:
        """Record the start of the work; returns whether it runs or is skipped."""
        while True:
            with self._resolving:
                handle.start_s = handle.end_s = self._now_s()
                runs = self._failure is None and (resolve is None or resolve())
            if runs is not None:
                return runs
            time.sleep(ASK_AGAIN_S)


def _set_core_affinity(lane: str) -> None:
    """Pin the calling thread: compute to the last core, copies to the others.

    A copy on the compute core would evict its caches, which a copy engine of a GPU does not do.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    others = os.sched_getaffinity(0) - {compute_core()}
    if others:
        os.sched_setaffinity(0, {compute_core()} if lane == COMPUTE else others)


def compute_core() -> int:
    """Core of the compute lane: the last core that this process may use."""
    return max(os.sched_getaffinity(0))
