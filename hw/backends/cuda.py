"""An NVIDIA GPU: lanes are streams, dependencies are events, times are device times.

Host memory of the copy lanes is pinned. The host does not synchronise while it launches work.
Kernels allocate temporaries from the pool of the compute stream. A pair of events on the stream of
the lane times each operation; the first is recorded after the stream's waits, so that it marks the
start of the operation and not of the waiting.

The launching thread itself does copies within the host, after it has waited for their
dependencies. Their events go to a stream that holds nothing else, where an event completes as soon
as it is recorded. So the device's clock times them too, a few microseconds late at either end.

In a run in turn, a thread of each lane launches a work item when its dependencies are done. The
host then knows which lane claims first.
"""

from __future__ import annotations

import mmap
import queue
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from math import prod
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
from hw.backends.pacing import Pace, Transfer
from hw.environment import cuda_environment, host_environment, host_memory_bytes
from sim.errors import BadInput, DoesNotFit
from sim.lanes import HOST, LANES, TIER_LANES
from sim.machine.availability import ALWAYS, Availability


def cuda_available() -> bool:
    return torch.cuda.is_available()


def _timed_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


@dataclass(slots=True)
class CudaHandle:
    """Events on the lane's stream.

    Args:
        launched: in a run in turn, set when both events are recorded or the work has failed.
    """

    lane: str
    start: torch.cuda.Event = field(default_factory=_timed_event)
    end: torch.cuda.Event = field(default_factory=_timed_event)
    launched: threading.Event | None = None
    skipped: bool = False


class _Pages(mmap.mmap):
    """Anonymous pages, owned by the tensor on them and unlocked when it is freed."""


HOLD_CYCLES = 10_000_000
"""Device cycles (about 5 ms) of the hold at the start of a run, in which the host launches ahead.

Without it the host's launch rate would limit short kernels. The hold ends by itself: a launch queue
has about a thousand entries, and a device that waited for a host with a full queue would deadlock.
"""

LAUNCH_CYCLES = 80_000
"""Device cycles (about 40 us) of one launch on a slow host."""


class CudaBackend:
    """The current CUDA device.

    Args:
        tier_bytes_per_s: pace of the lanes behind host memory that are emulated.
    """

    kind = "cuda"

    def __init__(self, tier_bytes_per_s: Mapping[str, float] | None = None) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        lanes = (*LANES, *TIER_LANES)
        self._streams = {lane: torch.cuda.Stream(self.device) for lane in lanes}
        self._outside = torch.cuda.current_stream(self.device)
        self._zero = torch.cuda.Event(enable_timing=True)
        self._paces = {
            lane: Pace(lane, rate, time.perf_counter)
            for lane, rate in (tier_bytes_per_s or {}).items()
        }
        self._in_turn = False
        self._queues: dict[str, queue.SimpleQueue[Callable[[], None] | None]] = {}
        self._threads: list[threading.Thread] = []
        self._launched: list[CudaHandle] = []
        self._failure: BaseException | None = None
        self._resolving = threading.Lock()
        self._local = threading.local()
        # cuDNN attention builds a plan for each new shape, which takes up to half a second.
        torch.backends.cuda.enable_cudnn_sdp(False)

    def host_empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Pinned memory of exactly this size, where torch's own rounds up to a power of two.

        Private pages can be huge pages. All threads of torch write them once first, because pinning
        pages that are already mapped takes a third of the time.

        Raises:
            DoesNotFit: the system refuses to lock that many pages.
        """
        n_bytes = prod(shape) * dtype.itemsize
        if n_bytes == 0:
            return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)
        pages = _Pages(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # a kernel without huge pages uses small ones
            pages.madvise(mmap.MADV_HUGEPAGE)
        flat = torch.frombuffer(pages, dtype=dtype, count=prod(shape))
        flat.zero_()
        status = torch.cuda.cudart().cudaHostRegister(flat.data_ptr(), n_bytes, 0)
        if int(status) != 0:
            self._drain_error()
            raise DoesNotFit(
                f"{n_bytes / 2**30:.1f} GiB of host memory cannot be pinned (CUDA error "
                f"{int(status)}); lower --batch or --prompt, or raise the limit of `ulimit -l`."
            )
        weakref.finalize(pages, torch.cuda.cudart().cudaHostUnregister, flat.data_ptr())
        return flat.view(tuple(shape))

    def _drain_error(self) -> None:
        """Clear the error of a failed call, which the next kernel launch would report."""
        with suppress(RuntimeError):
            torch.empty(1, device=self.device).fill_(0.0)

    def device_empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype, device=self.device)

    def memory(self) -> Memory:
        free, _ = torch.cuda.mem_get_info(self.device)
        cached = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return Memory(free + cached, host_memory_bytes())

    def head_start_s(self) -> float:
        """Measured length of the hold."""
        start = torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(self.device)
        first = next(iter(self._streams.values()))
        with torch.cuda.stream(first):
            start.record(first)
            torch.cuda._sleep(HOLD_CYCLES)
            self._zero.record(first)
        torch.cuda.synchronize(self.device)
        return start.elapsed_time(self._zero) / 1e3

    def begin(self, trace: Availability = ALWAYS, in_turn: bool = False, launches: int = 0) -> None:
        """All streams wait for one event, time zero, which is recorded after the hold."""
        if trace.lanes:
            raise BadInput(
                "a trace takes part of this GPU or its link away, which cannot be done here; "
                "run it with --device cpu."
            )
        self._in_turn, self._launched, self._failure = in_turn, [], None
        torch.cuda.synchronize(self.device)
        first = next(iter(self._streams.values()))
        with torch.cuda.stream(first):
            torch.cuda._sleep(max(HOLD_CYCLES, launches * LAUNCH_CYCLES))
        self._zero.record(first)
        for stream in self._streams.values():
            stream.wait_event(self._zero)

    def launch(
        self,
        lane: str,
        work: Work,
        after: Sequence[CudaHandle] = (),
        resolve: Resolve | None = None,
        done: Done | None = None,
    ) -> CudaHandle:
        handle = CudaHandle(lane)
        if self._in_turn:
            handle.launched = threading.Event()
            self._launched.append(handle)
            turn = partial(self._run_in_turn, work, after, resolve, done, handle)
            self._lane_queue(lane).put(turn)
            return handle
        if lane in (HOST, *TIER_LANES):
            for event in (self._zero, *(earlier.end for earlier in after)):
                event.synchronize()
        stream = self._streams[lane]
        torch.cuda.set_stream(stream)  # cheaper for the host than the context manager
        try:
            with torch.inference_mode():
                for earlier in after:
                    if earlier.lane != lane:  # one stream keeps its own order
                        stream.wait_event(earlier.end)
                handle.start.record(stream)
                work()
                handle.end.record(stream)
        finally:
            torch.cuda.set_stream(self._outside)
        return handle

    def _run_in_turn(
        self,
        work: Work,
        after: Sequence[CudaHandle],
        resolve: Resolve | None,
        done: Done | None,
        handle: CudaHandle,
    ) -> None:
        """Wait for the dependencies, resolve, run the work and wait until it is done."""
        stream = self._streams[handle.lane]
        try:
            for earlier in after:
                if earlier.launched is not None:
                    earlier.launched.wait()
                if not earlier.skipped:
                    earlier.end.synchronize()
            if not self._resolves(resolve, handle):
                handle.skipped = True
                return
            with torch.cuda.stream(stream), torch.inference_mode():
                work()
            handle.end.record(stream)
            handle.end.synchronize()
            if done is not None:
                done(handle.start.elapsed_time(handle.end) / 1e3)
        except BaseException as failure:  # handed to the thread that waits in finish
            self._failure = failure
            handle.skipped = True
        finally:
            if handle.launched is not None:
                handle.launched.set()

    def _resolves(self, resolve: Resolve | None, handle: CudaHandle) -> bool:
        """Record the start of the work; returns whether it runs or is skipped.

        The lock gives the recorded starts the order of the claims of all lanes.
        """
        stream = self._streams[handle.lane]
        while True:
            with self._resolving:
                handle.start.record(stream)
                handle.start.synchronize()
                runs = self._failure is None and (resolve is None or resolve())
            if runs is not None:
                return runs
            time.sleep(ASK_AGAIN_S)

    def _lane_queue(self, lane: str) -> queue.SimpleQueue[Callable[[], None] | None]:
        """Queue of a lane; the thread that empties it starts on first use."""
        if lane not in self._queues:
            self._queues[lane] = queue.SimpleQueue()
            thread = threading.Thread(
                target=self._run_lane, args=(lane,), name=f"lane-{lane}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        return self._queues[lane]

    def _run_lane(self, lane: str) -> None:
        torch.cuda.set_device(self.device)
        self._local.lane = lane
        while (turn := self._queues[lane].get()) is not None:
            turn()
            del turn  # the idle thread must not keep the buffers of the last run alive

    def copy(self, destination: Tensor, source: Tensor, pageable: bool = False) -> None:
        host = source if source.device.type == "cpu" else destination
        if not pageable and not host.is_pinned():
            raise RuntimeError("a copy lane was given pageable host memory")
        destination.copy_(source, non_blocking=not pageable)

    def copy_all(self, copies: Sequence[tuple[Tensor, Tensor]]) -> None:
        for destination, source in copies:
            self.copy(destination, source)

    def transfer(self) -> Transfer:
        return Transfer(self._paces.get(getattr(self._local, "lane", "")))

    def finish(self) -> None:
        until_s = time.monotonic() + FINISH_TIMEOUT_S
        for handle in self._launched:
            if handle.launched is not None:
                wait_for(handle.launched, until_s, handle.lane)
        torch.cuda.synchronize(self.device)
        failure, self._failure = self._failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # its traceback holds this frame: a cycle that keeps the buffers

    def times_s(self, handles: Sequence[CudaHandle]) -> list[tuple[float, float]]:
        times = []
        for handle in handles:
            start_s = max(0.0, self._zero.elapsed_time(handle.start) / 1e3)
            end_s = start_s
            if not handle.skipped:
                end_s = max(start_s, self._zero.elapsed_time(handle.end) / 1e3)
            times.append((start_s, end_s))
        return times

    def worked_s(self, handles: Sequence[CudaHandle]) -> list[float]:
        return [end_s - start_s for start_s, end_s in self.times_s(handles)]

    def environment(self) -> dict[str, Any]:
        return {**host_environment(), **cuda_environment(self.device)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Wait for the device and free its cached memory.

        Raises:
            DoesNotFit: the work ran out of device or host memory.
        """
        for jobs in self._queues.values():
            jobs.put(None)
        for thread in self._threads:
            thread.join(JOIN_TIMEOUT_S)
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        for failure in exc:
            if isinstance(failure, torch.OutOfMemoryError):
                where = f"this GPU of {torch.cuda.mem_get_info(self.device)[1] / 2**30:.1f} GiB"
            elif isinstance(failure, MemoryError) or "DefaultCPUAllocator" in str(failure):
                where = "the host"
            else:
                continue
            raise DoesNotFit(
                f"{where} ran out of memory; lower --batch or --prompt, or choose a "
                "smaller model or --dtype."
            ) from None
