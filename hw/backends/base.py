"""The device protocol that the executor and the profiler use."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from hw.backends.pacing import Transfer
from sim.errors import DeviceUnavailable
from sim.machine.availability import ALWAYS, Availability

ASK_AGAIN_S = 5e-4
"""Pause before `resolve` is called again after it returned None."""

FINISH_TIMEOUT_S = 300.0
"""Longest wait for the work of a run; after it the device counts as hanging."""

JOIN_TIMEOUT_S = 10.0
"""Longest wait for the thread of each lane when a backend closes."""

Handle = Any
"""Start and end of one launched work item; only the backend that made it reads it."""

Work = Callable[[], object]
Resolve = Callable[[], bool | None]
Done = Callable[[float], object]


@dataclass(frozen=True, slots=True)
class Memory:
    """Device and host memory that a job can use, in bytes."""

    device_bytes: int
    host_bytes: int


def wait_for(done: threading.Event, until_s: float, lane: str) -> None:
    """Wait until one work item has ended.

    Args:
        until_s: deadline on the clock `time.monotonic()`.

    Raises:
        DeviceUnavailable: the deadline has passed.
    """
    if not done.wait(max(0.0, until_s - time.monotonic())):
        raise DeviceUnavailable(
            f"lane {lane!r} has not ended its work within {FINISH_TIMEOUT_S:g} s; the device "
            "hangs. End other processes that use it, or run a smaller job."
        )


class Backend(Protocol):
    """A device whose lanes run launched work in FIFO order.

    Work on different lanes runs concurrently unless `after` orders it.
    """

    kind: str
    device: torch.device

    def host_empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Uninitialised host memory that the copy lanes can read and write asynchronously."""

    def device_empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Uninitialised device memory."""

    def memory(self) -> Memory:
        """Memory that is free now."""

    def begin(self, trace: Availability = ALWAYS, in_turn: bool = False, launches: int = 0) -> None:
        """Start a run and set time zero of its handles.

        Args:
            trace: share of each lane that is available over time.
            in_turn: launch each work item only when its dependencies and the earlier work of its
                lane are done, so that `resolve` can decide then what it does.
            launches: kernels and copies of a sample; the device holds its lanes until the host has
                launched that many, so that the host does not slow the sample.

        Raises:
            BadInput: this device cannot reduce a lane as the trace asks.
        """

    def head_start_s(self) -> float:
        """Seconds between `begin` and time zero, in which work is queued but does not run."""

    def launch(
        self,
        lane: str,
        work: Work,
        after: Sequence[Handle] = (),
        resolve: Resolve | None = None,
        done: Done | None = None,
    ) -> Handle:
        """Queue `work` on `lane`, to start once `after` and all earlier work of the lane is done.

        `work` enqueues device operations and must not wait for the device. On lane `host` it runs
        on the host, and this call can last until it is done.

        Args:
            resolve: called when the work can start, atomically with the recording of its start
                time, so that claims have the order of the start times on all lanes. False skips
                the work, which then takes no time. None means undecided: it is called again. Only
                for runs in turn.
            done: called with the duration in seconds when the work is done, before its dependents
                start. Only for runs in turn.
        """

    def copy(self, destination: Tensor, source: Tensor, pageable: bool = False) -> None:
        """Copy between host and device; called by work on a copy lane.

        Args:
            pageable: the host tensor is not from `host_empty`; the copy can then block the host.
        """

    def copy_all(self, copies: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Copy (destination, source) pairs between host and device as one transfer."""

    def transfer(self) -> Transfer:
        """A transfer within the host on a tier's lane, paced if the lane has a pace."""

    def finish(self) -> None:
        """Wait until all launched work is done, and raise the exception of work that failed.

        Raises:
            DeviceUnavailable: the work of a lane exceeds `FINISH_TIMEOUT_S`.
        """

    def times_s(self, handles: Sequence[Handle]) -> list[tuple[float, float]]:
        """Start and end of finished work, in seconds since `begin`."""

    def worked_s(self, handles: Sequence[Handle]) -> list[float]:
        """Seconds of processor time that each finished work item had.

        It is less than the duration if the processor was shared, and equal to it on a device that
        cannot measure sharing.
        """

    def environment(self) -> dict[str, Any]:
        """Hardware, versions and settings that a measurement depends on."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...
