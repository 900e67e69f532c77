"""An NVIDIA GPU: lanes are streams, dependencies are events, times are device times.

Host memory of the copy lanes is pinned, nothing is synchronised while work is issued, and kernels
take their temporaries from the compute stream's own pool. Every operation is timed by a pair of
events on its own stream, the first recorded after the stream's waits so that it marks the start of
the operation and not of the waiting.

Copies within the host are done by the thread that issues, after it has waited for what they wait
for. Their events go to a stream that holds nothing else, so that each completes as soon as it is
recorded: they too are read off the device's clock, a few microseconds late at either end.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Self

import torch
from torch import Tensor

from hw.backends.base import Memory
from hw.environment import cuda_environment, host_environment, host_memory_bytes
from sim.errors import DoesNotFit
from sim.graph import HOST, LANES


def cuda_available() -> bool:
    return torch.cuda.is_available()


@dataclass(frozen=True, slots=True)
class CudaMarker:
    start: torch.cuda.Event
    end: torch.cuda.Event


class _Pages(mmap.mmap):
    """Anonymous pages; the tensor on them keeps them alive, and their end unlocks them."""


HOLD_CYCLES = 10_000_000
"""Device cycles (about 5 ms) that every run is held for while the host already issues work.

Without it short work would be timed at the speed of the host that issues it. It must end by
itself: a launch queue holds about a thousand entries, and a host that waits for room in it while
the device waits for the host would never return.
"""


class CudaBackend:
    """The current CUDA device."""

    kind = "cuda"

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self._streams = {lane: torch.cuda.Stream(self.device) for lane in LANES}
        self._zero = torch.cuda.Event(enable_timing=True)

    def host_empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Pinned memory of exactly this size; torch's own rounds it up to a power of two.

        Raises:
            DoesNotFit: the system will not lock that many pages.
        """
        n_bytes = prod(shape) * dtype.itemsize
        if n_bytes == 0:
            return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)
        pages = _Pages(-1, n_bytes)
        flat = torch.frombuffer(pages, dtype=dtype, count=prod(shape))
        status = torch.cuda.cudart().cudaHostRegister(flat.data_ptr(), n_bytes, 0)
        if int(status) != 0:
            raise DoesNotFit(
                f"{n_bytes / 2**30:.1f} GiB of host memory cannot be pinned (CUDA error "
                f"{int(status)}); lower --batch or --prompt, or raise the limit of `ulimit -l`."
            )
        weakref.finalize(pages, torch.cuda.cudart().cudaHostUnregister, flat.data_ptr())
        return flat.view(tuple(shape))

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

    def begin(self) -> None:
        """All streams start behind one event, time zero, which comes after the hold."""
        torch.cuda.synchronize(self.device)
        first = next(iter(self._streams.values()))
        with torch.cuda.stream(first):
            torch.cuda._sleep(HOLD_CYCLES)
        self._zero.record(first)
        for stream in self._streams.values():
            stream.wait_event(self._zero)

    def issue(
        self, lane: str, work: Callable[[], object], after: Sequence[CudaMarker] = ()
    ) -> CudaMarker:
        stream = self._streams[lane]
        if lane == HOST:
            for event in (self._zero, *(earlier.end for earlier in after)):
                event.synchronize()
        marker = CudaMarker(
            torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        )
        with torch.cuda.stream(stream), torch.inference_mode():
            for earlier in after:
                stream.wait_event(earlier.end)
            marker.start.record(stream)
            work()
            marker.end.record(stream)
        return marker

    def copy(self, destination: Tensor, source: Tensor, pageable: bool = False) -> None:
        host = source if source.device.type == "cpu" else destination
        if not pageable and not host.is_pinned():
            raise RuntimeError("a copy lane was given pageable host memory")
        destination.copy_(source, non_blocking=not pageable)

    def finish(self) -> None:
        torch.cuda.synchronize(self.device)

    def times_s(self, markers: Sequence[CudaMarker]) -> list[tuple[float, float]]:
        return [
            (
                max(0.0, self._zero.elapsed_time(marker.start) / 1e3),
                max(0.0, self._zero.elapsed_time(marker.end) / 1e3),
            )
            for marker in markers
        ]

    def environment(self) -> dict[str, Any]:
        return {**host_environment(), **cuda_environment(self.device)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Wait for the device and give its cached memory back.

        Raises:
            DoesNotFit: device or host memory ran out in the work done here.
        """
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
