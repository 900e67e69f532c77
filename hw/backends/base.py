"""What the executor and the profiler need of a device."""

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
"""Pause before work that could not be resolved is asked again."""

FINISH_TIMEOUT_S = 300.0
"""A run whose work has not ended by then is given up: its device or one of its lanes hangs."""

JOIN_TIMEOUT_S = 10.0
"""How long a closing backend waits for a lane's thread, which hangs if its work does."""

Handle = Any
"""The start and end of one piece of launched work; only the backend that made it looks inside."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes a job may use."""

    device_bytes: int
    host_bytes: int


def wait_for(done: threading.Event, until_s: float, lane: str) -> None:
    """Wait for the end of one piece of work.

    Args:
        until_s: moment on `time.monotonic()` at which to give up.

    Raises:
        DeviceUnavailable: it has not ended by then.
    """
    if not done.wait(max(0.0, until_s - time.monotonic())):
        raise DeviceUnavailable(
            f"lane {lane!r} has not ended its work within {FINISH_TIMEOUT_S:g} s; the device "
            "hangs. End other processes that use it, or run a smaller job."
        )


class Backend(Protocol):
    """A device whose lanes run launched work first in, first out.

    Work launched on different lanes runs at the same time unless `after` says otherwise.
    """

    kind: str
    device: torch.device

    def host_empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Uninitialised host memory that the copy lanes can read and write asynchronously."""

    def device_empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Uninitialised device memory."""

    def memory(self) -> Memory:
        """Bytes free now."""

    def begin(self, trace: Availability = ALWAYS, in_turn: bool = False, launches: int = 0) -> None:
        """Start a run: time zero of the handles that follow.

        Args:
            launches: kernels and copies of a sample whose time must not depend on the host; a
                device holds its lanes until that many have been launched.
            trace: how much of each lane there is over time; a device may have all of it only.
            in_turn: work is handed to the device when its turn has come, and not before, so that
                what it does can be resolved then.

        Raises:
            BadInput: this device cannot take away what the trace does.
        """

    def head_start_s(self) -> float:
        """Seconds between `begin` and time zero, in which work can be launched but none runs."""

    def launch(
        self,
        lane: str,
        work: Callable[[], object],
        after: Sequence[Handle] = (),
        resolve: Callable[[], bool | None] | None = None,
        done: Callable[[float], object] | None = None,
    ) -> Handle:
        """Queue `work` on `lane`, to start once `after` and all earlier work of the lane is done.

        `work` enqueues device operations; it must not wait for the device. On lane `host` it is
        work of the host's own, and this call may last until it is done.

        Args:
            resolve: called when the turn of the work has come, in one step with noting its start:
                of two works on any lanes the one that is resolved first starts first. Where it
                returns False the work is left out and takes no time; where it returns None that is
                not decided yet, and it is asked again. Only for runs in turn.
            done: called with the seconds that it took when the work is done, before what waits for
                it starts. Only for runs in turn.
        """

    def copy(self, destination: Tensor, source: Tensor, pageable: bool = False) -> None:
        """Copy between host and device; to be called by work on a copy lane.

        Args:
            pageable: the host side is not from `host_empty`; a device may make the host wait then.
        """

    def copy_all(self, parts: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Copies between host and device, destination first, as one transfer of the lane."""

    def transfer(self) -> Transfer:
        """A transfer that work on a tier's lane makes within the host, and may have to pace."""

    def finish(self) -> None:
        """Wait until all launched work is done; raises what a piece of work raised.

        Raises:
            DeviceUnavailable: a lane has not ended its work within `FINISH_TIMEOUT_S`.
        """

    def times_s(self, handles: Sequence[Handle]) -> list[tuple[float, float]]:
        """Start and end of finished work, in seconds since `begin`."""

    def worked_s(self, handles: Sequence[Handle]) -> list[float]:
        """Seconds for which each finished work had its device, less than it took where it shared.

        A device that cannot tell says that it had it all the time.
        """

    def environment(self) -> dict[str, Any]:
        """What a reader needs to judge or repeat a measurement made here."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...
