"""An NVIDIA GPU: lanes are streams, dependencies are events, times are device times.

Host memory of the copy lanes is pinned, nothing is synchronised while work is launched, and kernels
take their temporaries from the compute stream's own pool. Every operation is timed by a pair of
events on its own stream, the first recorded after the stream's waits so that it marks the start of
the operation and not of the waiting.

Copies within the host are done by the thread that launches, after it has waited for what they wait
for. Their events go to a stream that holds nothing else, so that each completes as soon as it is
recorded: they too are read off the device's clock, a few microseconds late at either end.

In a run in turn every lane has a thread that hands over one piece of work after another, each when
what it waits for is done: only then can the host know who claims first.
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
    Memory,
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
        launched: of a run in turn: set once both events are recorded, or the work has failed.
    """

    lane: str
    start: torch.cuda.Event = field(default_factory=_timed_event)
    end: torch.cuda.Event = field(default_factory=_timed_event)
    launched: threading.Event | None = None
    left_out: bool = False


class _Pages(mmap.mmap):
    """Anonymous pages; the tensor on them keeps them alive, and their end unlocks them."""


HOLD_CYCLES = 10_000_000
"""Device cycles (about 5 ms) that every run is held for while the host already launches work.

Without it short work would be timed at the speed of the host that launches it. It must end by
itself: a launch queue holds about a thousand entries, and a host that waits for room in it while
the device waits for the host would never return.
"""

LAUNCH_CYCLES = 80_000
"""Device cycles (about 40 us) that a slow host needs for one launch."""


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
        self._issued: list[CudaHandle] = []
        self._failure: BaseException | None = None
        self._resolving = threading.Lock()
        self._mine = threading.local()
        # cuDNN attention builds a plan for each new shape, which takes up to half a second.
        torch.backends.cuda.enable_cudnn_sdp(False)

    def host_empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Pinned memory of exactly this size; torch's own rounds it up to a power of two.

        The pages are private, so that the system can make them huge ones, and all threads of torch
        write them once: pinning pages that are there already takes a third of the time.

        Raises:
            DoesNotFit: the system will not lock that many pages.
        """
        n_bytes = prod(shape) * dtype.itemsize
        if n_bytes == 0:
            return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)
        pages = _Pages(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # a kernel without huge pages takes small ones
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
        """Clear the error of a failed call, which the next kernel would report as its own."""
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
        """All streams start behind one event, time zero, which comes after the hold."""
        if trace.lanes:
            raise BadInput(
                "a trace takes part of this GPU or its link away, which cannot be done here; "
                "run it with --device cpu."
            )
        self._in_turn, self._issued, self._failure = in_turn, [], None
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
        work: Callable[[], object],
        after: Sequence[CudaHandle] = (),
        resolve: Callable[[], bool | None] | None = None,
        done: Callable[[float], object] | None = None,
    ) -> CudaHandle:
        handle = CudaHandle(lane)
        if self._in_turn:
            handle.launched = threading.Event()
            self._issued.append(handle)
            turn = partial(self._take_turn, work, after, resolve, done, handle)
            self._queue(lane).put(turn)
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

    def _take_turn(
        self,
        work: Callable[[], object],
        after: Sequence[CudaHandle],
        resolve: Callable[[], bool | None] | None,
        done: Callable[[float], object] | None,
        handle: CudaHandle,
    ) -> None:
        """Wait for what comes before, resolve, work, and wait until that is done."""
        stream = self._streams[handle.lane]
        try:
            for earlier in after:
                if earlier.launched is not None:
                    earlier.launched.wait()
                if not earlier.left_out:
                    earlier.end.synchronize()
            if not self._resolves(resolve, handle):
                handle.left_out = True
                return
            with torch.cuda.stream(stream), torch.inference_mode():
                work()
            handle.end.record(stream)
            handle.end.synchronize()
            if done is not None:
                done(handle.start.elapsed_time(handle.end) / 1e3)
        except BaseException as failure:  # handed to the thread that waits in finish
            self._failure = failure
            handle.left_out = True
        finally:
            if handle.launched is not None:
                handle.launched.set()

    def _resolves(self, resolve: Callable[[], bool | None] | None, handle: CudaHandle) -> bool:
        """Record the start of work whose turn has come; whether there is anything to do.

        The lock makes the recorded starts keep the order of the claims of all lanes.
        """
        stream = self._streams[handle.lane]
        while True:
            with self._resolving:
                handle.start.record(stream)
                handle.start.synchronize()
                goes = self._failure is None and (resolve is None or resolve())
            if goes is not None:
                return goes
            time.sleep(ASK_AGAIN_S)

    def _queue(self, lane: str) -> queue.SimpleQueue[Callable[[], None] | None]:
        """The turns of a lane, with the thread that gives them."""
        if lane not in self._queues:
            self._queues[lane] = queue.SimpleQueue()
            thread = threading.Thread(
                target=self._give_turns, args=(lane,), name=f"lane-{lane}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        return self._queues[lane]

    def _give_turns(self, lane: str) -> None:
        torch.cuda.set_device(self.device)
        self._mine.lane = lane
        while (turn := self._queues[lane].get()) is not None:
            turn()
            del turn  # the idle thread must not keep the buffers of the last run alive

    def copy(self, destination: Tensor, source: Tensor, pageable: bool = False) -> None:
        host = source if source.device.type == "cpu" else destination
        if not pageable and not host.is_pinned():
            raise RuntimeError("a copy lane was given pageable host memory")
        destination.copy_(source, non_blocking=not pageable)

    def copy_all(self, parts: Sequence[tuple[Tensor, Tensor]]) -> None:
        for destination, source in parts:
            self.copy(destination, source)

    def transfer(self) -> Transfer:
        return Transfer(self._paces.get(getattr(self._mine, "lane", "")))

    def finish(self) -> None:
        until_s = time.monotonic() + FINISH_TIMEOUT_S
        for handle in self._issued:
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
            if not handle.left_out:
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
        """Wait for the device and give its cached memory back.

        Raises:
            DoesNotFit: device or host memory ran out in the work done here.
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
                f"{where} ran out of memory at work; lower --batch or --prompt, or choose a "
                "smaller model or --dtype."
            ) from None
