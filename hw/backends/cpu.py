"""This machine as a device: compute on one thread, links as paced byte copies on others.

Tensors, copies, overlap and waiting are real; only the speed of the link is chosen. It shows that
a plan computes the right numbers in the predicted order and time. It predicts nothing about PCIe.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from hw.backends.base import Memory
from hw.environment import host_environment, host_memory_bytes
from sim.errors import DoesNotFit
from sim.graph import COMPUTE, LANES

CHUNK_BYTES = 512 * 1024
"""Bytes copied at memory speed before the pace is kept by sleeping."""


@dataclass(slots=True)
class CpuMarker:
    done: threading.Event = field(default_factory=threading.Event)
    start_s: float = 0.0
    end_s: float = 0.0


Job = tuple[Callable[[], object], Sequence[CpuMarker], CpuMarker]


class CpuBackend:
    """Lanes are threads with a queue each.

    Args:
        link_bytes_per_s: pace of each copy direction; None copies as fast as memory allows.
    """

    kind = "cpu"

    def __init__(self, link_bytes_per_s: float | None) -> None:
        self.device = torch.device("cpu")
        self.link_bytes_per_s = link_bytes_per_s
        self._queues: dict[str, queue.SimpleQueue[Job | None]] = {
            lane: queue.SimpleQueue() for lane in LANES
        }
        self._threads = [
            threading.Thread(target=self._work, args=(lane, jobs), name=f"lane-{lane}", daemon=True)
            for lane, jobs in self._queues.items()
        ]
        self._last: list[CpuMarker] = []
        self._failure: BaseException | None = None
        self._zero_s = time.perf_counter()
        for thread in self._threads:
            thread.start()

    def host_empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype)

    def device_empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype)

    def memory(self) -> Memory:
        """Host memory, half for either side: both live in it."""
        half = host_memory_bytes() // 2
        return Memory(half, half)

    def head_start_s(self) -> float:
        return 0.0

    def begin(self) -> None:
        self._last = []
        self._failure = None
        self._zero_s = time.perf_counter()

    def issue(
        self, lane: str, work: Callable[[], object], after: Sequence[CpuMarker] = ()
    ) -> CpuMarker:
        marker = CpuMarker()
        self._last.append(marker)
        self._queues[lane].put((work, after, marker))
        return marker

    def copy(
        self,
        destination: Tensor,
        source: Tensor,
        pageable: bool = False,  # noqa: ARG002 - nothing is pinned here
    ) -> None:
        pace = self.link_bytes_per_s
        if pace is None:
            destination.copy_(source)
            return
        into = destination.view(-1).view(torch.uint8)
        out_of = source.view(-1).view(torch.uint8)
        begun_s = time.perf_counter()
        total = into.numel()
        for first in range(0, total, CHUNK_BYTES):
            last = min(first + CHUNK_BYTES, total)
            into[first:last].copy_(out_of[first:last])
            ahead_s = begun_s + last / pace - time.perf_counter()
            if ahead_s > 0:
                time.sleep(ahead_s)

    def finish(self) -> None:
        for marker in self._last:
            marker.done.wait()
        if self._failure is not None:
            raise self._failure

    def times_s(self, markers: Sequence[CpuMarker]) -> list[tuple[float, float]]:
        return [(marker.start_s, marker.end_s) for marker in markers]

    def environment(self) -> dict[str, Any]:
        return {
            **host_environment(),
            "device": "cpu: compute on one thread, links as paced copies in host memory",
            "link_bytes_per_s": self.link_bytes_per_s,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """End the lanes.

        Raises:
            DoesNotFit: memory ran out in the work done here.
        """
        for jobs in self._queues.values():
            jobs.put(None)
        for thread in self._threads:
            thread.join()
        for failure in exc:
            if isinstance(failure, MemoryError) or "DefaultCPUAllocator" in str(failure):
                raise DoesNotFit(
                    "this cpu device ran out of memory at work: weights, both caches and "
                    "activations share the host's; lower --batch or --prompt, or choose a smaller "
                    "model or --dtype."
                ) from None

    def _work(self, lane: str, jobs: queue.SimpleQueue[Job | None]) -> None:
        torch.set_num_threads(1)
        _keep_to_own_cores(lane)
        with torch.inference_mode():
            while (job := jobs.get()) is not None:
                work, after, marker = job
                for earlier in after:
                    earlier.done.wait()
                marker.start_s = time.perf_counter() - self._zero_s
                if self._failure is None:
                    try:
                        work()
                    except BaseException as failure:  # handed to the thread that waits in finish
                        self._failure = failure
                marker.end_s = time.perf_counter() - self._zero_s
                marker.done.set()


def _keep_to_own_cores(lane: str) -> None:
    """Give the calling thread the last core if it computes, the others if it copies.

    A copy that lands on the compute core takes its caches with it, which no device does.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    *others, last = sorted(os.sched_getaffinity(0))
    if others:
        os.sched_setaffinity(0, {last} if lane == COMPUTE else set(others))
