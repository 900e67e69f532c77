"""A machine as the cost model sees it: rates, measured curves, links, memory, topology."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from sim.curves import Curve, Grid
from sim.errors import BadInput, NotMeasured
from sim.files import STRICT_KEYS, parse, read_json, write_json
from sim.graph import COPY_LANES, HOST, LANES
from sim.model_spec import DTYPE_BYTES
from sim.samples import Samples

Source = Literal["measured", "fitted", "datasheet"]
SOURCES: tuple[Source, ...] = ("measured", "fitted", "datasheet")
"""Where a number comes from, strongest first; a sum is as strong as its weakest term."""


def weakest(*sources: Source) -> Source:
    return max(sources, key=SOURCES.index)


def _positive(where: str, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not 0 < value < float("inf"):
            raise BadInput(f"{where}.{name}(={value}) must be > 0 and finite.")


@dataclass(frozen=True, slots=True)
class GemmTable:
    """Measured seconds of `[m, k] x [k, n]` over m for one weight shape."""

    __pydantic_config__ = STRICT_KEYS

    n: int
    k: int
    curve: Curve


@dataclass(frozen=True, slots=True)
class Gemm:
    """Matrix products: rates for any shape, tables for the shapes that were measured.

    A shape without a table costs `max(flops / flops_per_s, bytes / bytes_per_s)`.
    """

    __pydantic_config__ = STRICT_KEYS

    source: Source
    flops_per_s: float
    bytes_per_s: float | None = None
    tables: tuple[GemmTable, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        _positive("gemm", flops_per_s=self.flops_per_s, bytes_per_s=self.bytes_per_s)

    def roofline_s(self, m: int, n: int, k: int, element_bytes: int) -> float:
        """`max(flops / flops_per_s, bytes / bytes_per_s)` of `[m, k] x [k, n]`."""
        seconds = 2 * m * n * k / self.flops_per_s
        if self.bytes_per_s is not None:
            elements = n * k + m * (n + k)
            seconds = max(seconds, elements * element_bytes / self.bytes_per_s)
        return seconds


@dataclass(frozen=True, slots=True)
class AttentionTable:
    """Measured seconds of one decode attention over (batch, context) for one head shape."""

    __pydantic_config__ = STRICT_KEYS

    n_heads: int
    n_kv_heads: int
    head_dim: int
    grid: Grid


@dataclass(frozen=True, slots=True)
class Attention:
    """Decode attention: reads all K and V once; head shapes without a table cost bytes / rate."""

    __pydantic_config__ = STRICT_KEYS

    source: Source
    bytes_per_s: float
    tables: tuple[AttentionTable, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        _positive("attention", bytes_per_s=self.bytes_per_s)


@dataclass(frozen=True, slots=True)
class Elementwise:
    """Norms, residuals, rotary embedding, activations: a memory rate or a curve over bytes."""

    __pydantic_config__ = STRICT_KEYS

    source: Source
    bytes_per_s: float
    curve: Curve | None = None
    note: str = ""

    def __post_init__(self) -> None:
        _positive("elementwise", bytes_per_s=self.bytes_per_s)


@dataclass(frozen=True, slots=True)
class Link:
    """One copy direction: `latency_s + bytes / bytes_per_s`, or a curve over bytes.

    `paced_bytes_per_s` is set where the link is emulated: copies are real, and slowed down to
    this rate.
    """

    __pydantic_config__ = STRICT_KEYS

    source: Source
    bytes_per_s: float
    latency_s: float = 0.0
    curve: Curve | None = None
    paced_bytes_per_s: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        _positive("link", bytes_per_s=self.bytes_per_s, paced_bytes_per_s=self.paced_bytes_per_s)
        if not 0 <= self.latency_s < float("inf"):
            raise BadInput(f"link.latency_s(={self.latency_s}) must be at least 0.")


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
        """The figures of a lane that copies; raises NotMeasured where there are none."""
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
    """What it costs to hand work to the device and from one lane to another.

    The host spends `task_s` on every task and `kernel_s` on each kernel it launches or `copy_s` on
    its copy; a host that falls behind delays the lanes. A lane starts its next task `gap_s` after
    the one before, and `handover_s` after the end of a task of another lane that it waited for.
    Lanes are held for `head_start_s` while the host already issues.
    """

    __pydantic_config__ = STRICT_KEYS

    source: Source
    task_s: float = 0.0
    kernel_s: float = 0.0
    copy_s: float = 0.0
    gap_s: float = 0.0
    handover_s: float = 0.0
    head_start_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("task_s", "kernel_s", "copy_s", "gap_s", "handover_s", "head_start_s"):
            if not 0 <= getattr(self, name) < 1:
                raise BadInput(f"dispatch.{name}(={getattr(self, name)}) must be in [0, 1) s.")


@dataclass(frozen=True, slots=True)
class Uplink:
    """A shared path, such as a PCIe switch's, that bounds the sum of its devices' copies."""

    __pydantic_config__ = STRICT_KEYS

    name: str
    devices: tuple[int, ...]
    h2d_bytes_per_s: float
    d2h_bytes_per_s: float

    def __post_init__(self) -> None:
        _positive(
            f"uplink {self.name}",
            h2d_bytes_per_s=self.h2d_bytes_per_s,
            d2h_bytes_per_s=self.d2h_bytes_per_s,
        )


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that a decode job may use on the device and on the host."""

    __pydantic_config__ = STRICT_KEYS

    source: Source
    device_bytes: float
    host_bytes: float

    def __post_init__(self) -> None:
        _positive("memory", device_bytes=self.device_bytes, host_bytes=self.host_bytes)


@dataclass(frozen=True, slots=True)
class HardwareProfile:
    """One device with its host and links; every block says where its numbers come from.

    `dtype` is the element type the compute figures hold for. `device_kind` names the backend
    that can run plans made for it (`cpu`, `cuda`), or `none` for paper and datasheet profiles.
    `samples` are what its tables are the medians of, where they were kept. Nothing is priced by
    them: they do not tell two profiles apart, and only the profile's own file holds them.
    """

    __pydantic_config__ = STRICT_KEYS

    name: str
    description: str
    device_kind: Literal["cpu", "cuda", "none"]
    dtype: str
    memory: Memory
    gemm: Gemm
    attention: Attention
    elementwise: Elementwise
    links: Links
    dispatch: Dispatch
    interference: tuple[Interference, ...] = ()
    uplinks: tuple[Uplink, ...] = ()
    environment: dict[str, Any] | None = None
    samples: tuple[Samples, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_BYTES:
            raise BadInput(f"dtype(={self.dtype!r}) must be one of {', '.join(DTYPE_BYTES)}.")

    @property
    def source(self) -> Source:
        """The weakest source of any block."""
        links = (self.links.h2d, self.links.d2h, self.links.host)
        return weakest(
            self.gemm.source,
            self.attention.source,
            self.elementwise.source,
            *(link.source for link in links if link is not None),
        )

    def to_dict(self) -> dict[str, Any]:
        """The profile as plans and recordings hold it: without samples."""
        content = asdict(replace(self, samples=()))
        del content["samples"]
        if self.links.host is None:
            del content["links"]["host"]
        return {key: value for key, value in content.items() if value is not None}

    @classmethod
    def from_dict(cls, data: Any, where: str) -> HardwareProfile:
        """Rebuild a profile; `where` names the file in errors."""
        return parse(cls, data, where)

    def save(self, path: Path | str) -> None:
        content = self.to_dict()
        if self.samples:
            content["samples"] = [asdict(one) for one in self.samples]
        write_json(path, "hardware-profile", content)

    @classmethod
    def load(cls, path: Path | str) -> HardwareProfile:
        """Read a profile file.

        Raises:
            BadFile: unreadable, of another kind, or with an unknown, absent or invalid key.
        """
        return cls.from_dict(read_json(path, "hardware-profile"), str(path))

    def with_faster(self, part: str, factor: float) -> HardwareProfile:
        """The same machine with one part `factor` times as fast, for what-if questions.

        Where that changes times that were sampled, the samples are left out.

        A measured matrix product keeps its distance from the roofline
        `max(flops / flops_per_s, bytes / bytes_per_s)`, whose two sides `flops` and `hbm` move.

        Args:
            part: `h2d`, `d2h`, `link` (both directions), `host` (copies within it), `uplink` (all
                that are shared), `flops`, `hbm` (device memory), `compute` (flops and hbm), or
                `memory`, whose size grows.
            factor: speed multiple, or multiple of the size, above 0.
        """
        _positive(part, factor=factor)
        if part in ("compute", "flops", "hbm"):
            hbm = 1.0 if part == "flops" else factor
            return replace(
                self,
                samples=(),
                gemm=_faster_gemm(
                    self.gemm, 1.0 if part == "hbm" else factor, hbm, DTYPE_BYTES[self.dtype]
                ),
                attention=replace(
                    self.attention,
                    bytes_per_s=self.attention.bytes_per_s * hbm,
                    tables=tuple(
                        replace(table, grid=_faster_grid(table.grid, hbm))
                        for table in self.attention.tables
                    ),
                ),
                elementwise=replace(
                    self.elementwise,
                    bytes_per_s=self.elementwise.bytes_per_s * hbm,
                    curve=self.elementwise.curve and _faster(self.elementwise.curve, hbm),
                ),
            )
        if part == "memory":
            size = self.memory.device_bytes * factor
            return replace(self, memory=replace(self.memory, device_bytes=size))
        if part == "uplink":
            return replace(self, uplinks=tuple(_faster_uplink(one, factor) for one in self.uplinks))
        lanes = {"link": COPY_LANES}.get(part, (part,))
        if not {*lanes} <= {*COPY_LANES, HOST}:
            raise BadInput(
                f"part(={part!r}) must be one of h2d, d2h, link, host, uplink, flops, hbm, "
                "compute, memory."
            )
        return replace(
            self,
            samples=(),
            links=replace(
                self.links,
                **{lane: _faster_link(self.links.of(lane), factor) for lane in lanes},
            ),
        )


def _faster_gemm(gemm: Gemm, flops: float, hbm: float, element_bytes: int) -> Gemm:
    after = replace(
        gemm,
        flops_per_s=gemm.flops_per_s * flops,
        bytes_per_s=gemm.bytes_per_s and gemm.bytes_per_s * hbm,
    )

    def move(table: GemmTable) -> GemmTable:
        seconds = tuple(
            value
            * after.roofline_s(int(m), table.n, table.k, element_bytes)
            / gemm.roofline_s(int(m), table.n, table.k, element_bytes)
            for m, value in zip(table.curve.work, table.curve.seconds, strict=True)
        )
        return replace(table, curve=replace(table.curve, seconds=seconds))

    return replace(after, tables=tuple(map(move, gemm.tables)))


def _faster_grid(grid: Grid, factor: float) -> Grid:
    return replace(
        grid, seconds=tuple(tuple(value / factor for value in row) for row in grid.seconds)
    )


def _faster(curve: Curve, factor: float) -> Curve:
    return replace(curve, seconds=tuple(value / factor for value in curve.seconds))


def _faster_beyond_start(curve: Curve, factor: float) -> Curve:
    """A link's latency, which its smallest copy shows, does not shrink with its bandwidth."""
    start_s = min(curve.seconds)
    return replace(
        curve, seconds=tuple(start_s + (value - start_s) / factor for value in curve.seconds)
    )


def _faster_uplink(uplink: Uplink, factor: float) -> Uplink:
    return replace(
        uplink,
        h2d_bytes_per_s=uplink.h2d_bytes_per_s * factor,
        d2h_bytes_per_s=uplink.d2h_bytes_per_s * factor,
    )


def _faster_link(link: Link, factor: float) -> Link:
    return replace(
        link,
        bytes_per_s=link.bytes_per_s * factor,
        curve=link.curve and _faster_beyond_start(link.curve, factor),
        paced_bytes_per_s=link.paced_bytes_per_s and link.paced_bytes_per_s * factor,
    )
