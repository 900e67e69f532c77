"""Links of a machine: copy directions, shared paths, interference, launch costs."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

from sim.errors import BadInput, NotMeasured
from sim.files import STRICT_KEYS
from sim.lanes import LANES
from sim.machine.curves import Curve
from sim.machine.provenance import Source


def check_positive(where: str, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not 0 < value < float("inf"):
            raise BadInput(f"{where}.{name}(={value}) must be > 0 and finite.")


COPY_KINDS = ("kernel", "pageable", "far")
"""Kinds of copies other than those by a copy engine from pinned memory of the near NUMA node.

kernel    by a kernel that reads pinned host memory and writes device memory, or the reverse
pageable  by a copy engine from pageable memory, which the driver stages
far       by a copy engine from pinned memory of another NUMA node than the device's
"""


@dataclass(frozen=True, slots=True)
class CopyKind:
    """One direction's copies of one of `COPY_KINDS`: `latency_s + bytes / bytes_per_s` for each.

    Args:
        both_ways_rate: part of its speed while the other direction is busy with such copies too;
            None for that of the copy engines.
    """

    __pydantic_config__ = STRICT_KEYS

    kind: Literal["kernel", "pageable", "far"]
    source: Source
    bytes_per_s: float
    latency_s: float = 0.0
    both_ways_rate: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        check_positive(
            f"link.kinds.{self.kind}",
            bytes_per_s=self.bytes_per_s,
            both_ways_rate=self.both_ways_rate,
        )
        if not 0 <= self.latency_s < float("inf"):
            raise BadInput(f"link.kinds.{self.kind}.latency_s(={self.latency_s}) must be >= 0.")


@dataclass(frozen=True, slots=True)
class Link:
    """One copy direction: `latency_s + bytes / bytes_per_s` for each copy, or a curve over bytes.

    `paced_bytes_per_s` is set where the link is emulated: copies are real, and slowed down to
    this rate.

    Args:
        kinds: the constants of other kinds of copies, where they are known.
        block_bytes: a transfer is cut into copies of this size and a rest; None for one copy.
    """

    __pydantic_config__ = STRICT_KEYS

    source: Source
    bytes_per_s: float
    latency_s: float = 0.0
    curve: Curve | None = None
    paced_bytes_per_s: float | None = None
    note: str = ""
    kinds: tuple[CopyKind, ...] = ()
    block_bytes: float | None = None

    def __post_init__(self) -> None:
        check_positive(
            "link",
            bytes_per_s=self.bytes_per_s,
            paced_bytes_per_s=self.paced_bytes_per_s,
            block_bytes=self.block_bytes,
        )
        if not 0 <= self.latency_s < float("inf"):
            raise BadInput(f"link.latency_s(={self.latency_s}) must be at least 0.")

    def copy_s(self, n_bytes: float) -> tuple[float, bool]:
        """Seconds of a transfer, and whether copies of that size were measured or need not be.

        The transfer is one copy, or the sum of its blocks and a rest.
        """
        if self.block_bytes is None or n_bytes <= self.block_bytes:
            return self._one_copy_s(n_bytes)
        blocks, rest = divmod(n_bytes, self.block_bytes)
        block_s, inside = self._one_copy_s(self.block_bytes)
        if not rest:
            return blocks * block_s, inside
        rest_s, rest_inside = self._one_copy_s(rest)
        return blocks * block_s + rest_s, inside and rest_inside

    def _one_copy_s(self, n_bytes: float) -> tuple[float, bool]:
        if self.curve is not None:
            return self.curve.at(n_bytes)
        return self.latency_s + n_bytes / self.bytes_per_s, True

    def of_kind(self, kind: str, whose: str = "the link") -> Link:
        """The link as copies of one of `COPY_KINDS` find it.

        Args:
            whose: begins the message.

        Raises:
            NotMeasured: the constants of such copies are not known.
        """
        for one in self.kinds:
            if one.kind == kind:
                return replace(
                    self,
                    source=one.source,
                    bytes_per_s=one.bytes_per_s,
                    latency_s=one.latency_s,
                    curve=None,
                    note=one.note,
                    kinds=(),
                )
        known = ", ".join(one.kind for one in self.kinds) or "none"
        raise NotMeasured(
            f"{whose} has no figures of {kind} copies (other kinds that it has: {known}); choose "
            "another link, such as pcie5-x16."
        )

    def faster(self, factor: float) -> Link:
        """The link with its bandwidth multiplied; its latency stays."""
        return replace(
            self,
            bytes_per_s=self.bytes_per_s * factor,
            curve=self.curve and _faster_beyond_start(self.curve, factor),
            paced_bytes_per_s=self.paced_bytes_per_s and self.paced_bytes_per_s * factor,
            kinds=tuple(replace(one, bytes_per_s=one.bytes_per_s * factor) for one in self.kinds),
        )


@dataclass(frozen=True, slots=True)
class Links:
    """Host to device, device to host and, where it was measured, within the host: what the thread
    that launches the kernels copies from pageable into pinned memory.
    """

    __pydantic_config__ = STRICT_KEYS

    h2d: Link
    d2h: Link
    host: Link | None = None

    def of(self, lane: str) -> Link:
        """The link of a copy lane; raises NotMeasured if the profile has none."""
        link: Link | None = getattr(self, lane)
        if link is None:
            raise NotMeasured(
                "the hardware profile has no links.host, the rate of copies from pageable into "
                "pinned host memory that policy flexgen waits for; measure it: `kvoverlap profile`."
            )
        return link


@dataclass(frozen=True, slots=True)
class Interference:
    """`lane` proceeds at `rate` of its own speed while `while_busy` of the same device works.

    The both-ways factor of a PCIe link is `lane="h2d", while_busy="d2h"` and its mirror.
    """

    __pydantic_config__ = STRICT_KEYS

    lane: str
    while_busy: str
    rate: float
    source: Source

    def __post_init__(self) -> None:
        for lane in (self.lane, self.while_busy):
            if lane not in LANES:
                raise BadInput(f"interference: lane {lane!r} must be one of {', '.join(LANES)}.")
        if not 0 < self.rate <= 1:
            raise BadInput(f"interference.rate(={self.rate}) must be in (0, 1].")


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Host time to launch tasks, and pauses between tasks on the device, in seconds.

    Args:
        task_s: host time for each task (events, bookkeeping).
        kernel_s: host time for each kernel launch of a compute task.
        copy_s: host time for each copy launch.
        gap_s: pause between two tasks of one lane.
        handover_s: pause between the end of a task and the start of a task of another lane that
            waited for it.
        head_start_s: time at the start of a run during which the host launches ahead while all
            lanes wait.
        turn_s: pause before a task that the host launches only when its dependencies are done, as
            in a restore with claims; 0 means `gap_s` and `handover_s`.
        compute_task_s, copy_task_s: device time of a task in addition to its kernels or its copy.
        start_s: time before the first task, in which a serving runtime prepares the job.
    """

    __pydantic_config__ = STRICT_KEYS

    source: Source
    task_s: float = 0.0
    kernel_s: float = 0.0
    copy_s: float = 0.0
    gap_s: float = 0.0
    handover_s: float = 0.0
    head_start_s: float = 0.0
    turn_s: float = 0.0
    compute_task_s: float = 0.0
    copy_task_s: float = 0.0
    start_s: float = 0.0

    def __post_init__(self) -> None:
        for name in (one.name for one in fields(self) if one.name != "source"):
            if not 0 <= getattr(self, name) < 1:
                raise BadInput(f"dispatch.{name}(={getattr(self, name)}) must be in [0, 1) s.")

    def in_turn(self) -> Dispatch:
        """The same costs for work that is launched only when its turn comes."""
        return self if not self.turn_s else replace(self, gap_s=self.turn_s, handover_s=self.turn_s)


@dataclass(frozen=True, slots=True)
class Uplink:
    """A shared path, such as a PCIe switch's, that bounds the sum of its devices' copies."""

    __pydantic_config__ = STRICT_KEYS

    name: str
    devices: tuple[int, ...]
    h2d_bytes_per_s: float
    d2h_bytes_per_s: float

    def __post_init__(self) -> None:
        check_positive(
            f"uplink {self.name}",
            h2d_bytes_per_s=self.h2d_bytes_per_s,
            d2h_bytes_per_s=self.d2h_bytes_per_s,
        )

    def faster(self, factor: float) -> Uplink:
        """The path with both directions' bandwidths multiplied."""
        return replace(
            self,
            h2d_bytes_per_s=self.h2d_bytes_per_s * factor,
            d2h_bytes_per_s=self.d2h_bytes_per_s * factor,
        )


def _faster_beyond_start(curve: Curve, factor: float) -> Curve:
    """A link's latency, which its smallest copy shows, does not shrink with its bandwidth."""
    start_s = min(curve.seconds)
    return replace(
        curve, seconds=tuple(start_s + (value - start_s) / factor for value in curve.seconds)
    )
