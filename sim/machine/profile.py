"""A machine as the cost model sees it: rates, measured curves, links, memory, topology."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from sim.errors import BadInput
from sim.files import STRICT_KEYS, parse, read_json, write_json
from sim.lanes import COPY_LANES, HOST
from sim.machine.all_reduce import AllReduce
from sim.machine.curves import Curve, Grid, RaggedGrid
from sim.machine.experts import ExpertsTable
from sim.machine.links import Dispatch, Interference, Links, Uplink, check_positive
from sim.machine.prefill import Restore, check_head_sizes
from sim.machine.provenance import (
    Efficiency,
    Samples,
    Source,
    SourcedValue,
    TableErrors,
    weakest,
)
from sim.machine.sparse import SparseHeads
from sim.machine.states import StateTable
from sim.machine.utilisation import UtilisationTable
from sim.model.spec import DTYPE_BYTES

Table = TypeVar("Table")


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

    `utilisation` holds for the shapes that have no table of their own, one table by the bits of a
    weight. Without either a shape costs `max(flops / flops_per_s, bytes / bytes_per_s)`.
    `experts` holds for the fused kernels of a layer's experts, one table by the bits of a weight.
    `flops_8bit_per_s` and `flops_4bit_per_s` are the rates at which both operands have 8 or 4 bits;
    None where the device has no such units.
    """

    __pydantic_config__ = STRICT_KEYS

    source: Source
    flops_per_s: float
    bytes_per_s: float | None = None
    tables: tuple[GemmTable, ...] = ()
    note: str = ""
    utilisation: tuple[UtilisationTable, ...] = ()
    experts: tuple[ExpertsTable, ...] = ()
    flops_8bit_per_s: float | None = None
    flops_4bit_per_s: float | None = None

    def __post_init__(self) -> None:
        check_positive(
            "gemm",
            flops_per_s=self.flops_per_s,
            bytes_per_s=self.bytes_per_s,
            flops_8bit_per_s=self.flops_8bit_per_s,
            flops_4bit_per_s=self.flops_4bit_per_s,
        )

    def rate(self, operand_bits: int) -> float:
        """FLOP/s of products whose two operands have so many bits, or of the next wider ones."""
        rates = {4: self.flops_4bit_per_s, 8: self.flops_8bit_per_s}
        wide_enough = (rate for bits, rate in rates.items() if bits >= operand_bits and rate)
        return next(wide_enough, self.flops_per_s)

    def roofline_s(
        self,
        m: int,
        n: int,
        k: int,
        element_bytes: int,
        weight_bits: float,
        operand_bits: int = 16,
    ) -> float:
        """`max(flops / rate, bytes / bytes_per_s)` of `[m, k] x [k, n]`.

        Args:
            element_bytes: of an element of the operand [m, k] and of the result.
            weight_bits: of an element of [k, n] in memory.
            operand_bits: of both operands when they are multiplied.
        """
        seconds = 2 * m * n * k / self.rate(operand_bits)
        if self.bytes_per_s is not None:
            n_bytes = n * k * weight_bits / 8 + m * (n + k) * element_bytes
            seconds = max(seconds, n_bytes / self.bytes_per_s)
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
class KvHeads:
    """Measured seconds of one decode attention over (KV heads of all sequences, context).

    The query heads of a group share their reads, and sequences run in parallel like KV heads, so
    one table holds for every batch and head count.
    """

    __pydantic_config__ = STRICT_KEYS

    head_dim: int
    fan: RaggedGrid

    def __post_init__(self) -> None:
        check_head_sizes("attention.heads", head_dim=self.head_dim)


@dataclass(frozen=True, slots=True)
class LatentHeads:
    """Measured seconds of one decode attention over latents (MLA), over (batch, context).

    Args:
        n_heads: query heads, which all read the same latents.
        latent_size: elements of a token's latent and rotary key.
    """

    __pydantic_config__ = STRICT_KEYS

    n_heads: int
    latent_size: int
    fan: RaggedGrid

    def __post_init__(self) -> None:
        check_head_sizes("attention.latent", n_heads=self.n_heads, latent_size=self.latent_size)


@dataclass(frozen=True, slots=True)
class Attention:
    """Decode attention: reads all K and V once; head shapes without a table cost bytes / rate.

    `heads` holds for the head shapes without a table of their own, `latent` for latent attention,
    `sparse` for latent attention with an index, `states` for linear attention.
    """

    __pydantic_config__ = STRICT_KEYS

    source: Source
    bytes_per_s: float
    tables: tuple[AttentionTable, ...] = ()
    note: str = ""
    heads: tuple[KvHeads, ...] = ()
    latent: tuple[LatentHeads, ...] = ()
    states: tuple[StateTable, ...] = ()
    sparse: tuple[SparseHeads, ...] = ()

    def __post_init__(self) -> None:
        check_positive("attention", bytes_per_s=self.bytes_per_s)

    def faster(self, factor: float) -> Attention:
        """Every time divided by `factor`."""
        if factor == 1.0:
            return self
        shorter = 1.0 / factor
        return replace(
            self,
            bytes_per_s=self.bytes_per_s * factor,
            tables=tuple(replace(one, grid=one.grid.scaled(shorter)) for one in self.tables),
            heads=tuple(replace(one, fan=one.fan.scaled(shorter)) for one in self.heads),
            latent=tuple(replace(one, fan=one.fan.scaled(shorter)) for one in self.latent),
            states=tuple(one.scaled(shorter) for one in self.states),
            sparse=tuple(replace(one, fan=one.fan.scaled(shorter)) for one in self.sparse),
        )


@dataclass(frozen=True, slots=True)
class QuantisationTable:
    """Measured seconds of `quantise` or `dequantise` over elements of K and V."""

    __pydantic_config__ = STRICT_KEYS

    op: str
    bits: int
    curve: Curve


@dataclass(frozen=True, slots=True)
class Elementwise:
    """Norms, residuals, rotary embedding, activations: a memory rate or a curve over bytes.

    `tables` are of quantising and dequantising K and V, whose passes go at rates of their own.
    `copies` is the curve of plain copies within device memory, where they were measured.
    """

    __pydantic_config__ = STRICT_KEYS

    source: Source
    bytes_per_s: float
    curve: Curve | None = None
    note: str = ""
    tables: tuple[QuantisationTable, ...] = ()
    copies: Curve | None = None

    def __post_init__(self) -> None:
        check_positive("elementwise", bytes_per_s=self.bytes_per_s)

    def faster(self, factor: float) -> Elementwise:
        """Every time divided by `factor`."""
        if factor == 1.0:
            return self
        return replace(
            self,
            bytes_per_s=self.bytes_per_s * factor,
            curve=self.curve and _faster(self.curve, factor),
            copies=self.copies and _faster(self.copies, factor),
            tables=tuple(
                replace(table, curve=_faster(table.curve, factor)) for table in self.tables
            ),
        )


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of the device and of the host.

    Args:
        device_bytes, host_bytes: all there is; measured, what was free.
        device_reserve_bytes: memory that no job may use: the driver's context, the libraries'
            workspaces and gaps between allocations. Nothing where free memory was measured.
        unified: CPU and GPU share one memory, so that nothing is copied between them.
    """

    __pydantic_config__ = STRICT_KEYS

    source: Source
    device_bytes: float
    host_bytes: float
    device_reserve_bytes: float = 0.0
    unified: bool = False

    def __post_init__(self) -> None:
        check_positive("memory", device_bytes=self.device_bytes, host_bytes=self.host_bytes)
        if not 0 <= self.device_reserve_bytes < self.device_bytes:
            raise BadInput(
                f"memory: device_reserve_bytes(={self.device_reserve_bytes:g}) must be at least 0 "
                f"and below device_bytes(={self.device_bytes:g})."
            )

    @property
    def job_device_bytes(self) -> float:
        """Device memory that a job may use."""
        return self.device_bytes - self.device_reserve_bytes


@dataclass(frozen=True, slots=True)
class HardwareProfile:
    """One device with its host and links; every block says where its numbers come from.

    `dtype` is the element type that the compute tables hold for. `device_kind` names the backend
    that can run plans made for it (`cpu`, `cuda`), or `none` for paper and datasheet profiles.
    `samples` are what its tables were made of, where they were kept. Nothing is priced by them:
    they do not tell two profiles apart, and only the profile's own file holds them, and so do
    `checks`, how well the tables of published timings predict their own points.
    `efficiency` is the part of the peak rates that went into the rates of a data sheet.
    `restore` is what restoring a cached prefix needs besides. `all_reduce` is of GPUs that are
    linked to each other; None for GPUs that are only linked to the host. `host_dram` is the rate in
    bytes/s that copies and CPU readers of host memory share, where it is known.
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
    restore: Restore | None = None
    checks: tuple[TableErrors, ...] = field(default=(), compare=False, repr=False)
    efficiency: Efficiency | None = None
    all_reduce: AllReduce | None = None
    host_dram: SourcedValue | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_BYTES:
            raise BadInput(f"dtype(={self.dtype!r}) must be one of {', '.join(DTYPE_BYTES)}.")
        names = [uplink.name for uplink in self.uplinks]
        if len(set(names)) < len(names):
            raise BadInput(f"uplinks(={', '.join(names)}) must have a name of their own each.")

    @property
    def source(self) -> Source:
        """The weakest source of any block."""
        links = (self.links.h2d, self.links.d2h, self.links.host)
        return weakest(
            self.gemm.source,
            self.attention.source,
            self.elementwise.source,
            *(link.source for link in links if link is not None),
            *(self.restore.sources if self.restore else ()),
        )

    @property
    def efficiency_note(self) -> str:
        """A clause on the stated efficiency of a data sheet's rates; empty without one."""
        return "" if self.efficiency is None else f", at {self.efficiency}"

    @property
    def no_link_note(self) -> str:
        """A sentence for machines whose CPU and GPU share one memory; empty for others."""
        if not self.memory.unified:
            return ""
        return f"GPU and CPU share one memory on {self.name}: there is no link to wait for."

    def check_gpus(self, gpus: int) -> None:
        """Refuse a number of GPUs below 1, or more than its shared uplinks or its memory serve.

        Without shared uplinks every GPU has a link of its own, and any number is possible.
        """
        if gpus < 1:
            raise BadInput(f"gpus(={gpus}) must be at least 1.")
        if gpus > 1 and self.memory.unified:
            raise BadInput(
                f"gpus(={gpus}): {self.name} has one GPU, which shares its memory with the CPU; "
                "leave --gpus and --tp at 1."
            )
        served = {device for uplink in self.uplinks for device in uplink.devices}
        if served and gpus > len(served):
            raise BadInput(
                f"gpus(={gpus}): the shared uplinks of {self.name} serve {len(served)} GPUs; lower "
                "--gpus or --tp, or choose a machine with more."
            )

    def to_dict(self) -> dict[str, Any]:
        """The profile as plans and recordings hold it: without samples and checks."""
        content = asdict(replace(self, samples=(), checks=()))
        del content["samples"], content["checks"]
        if self.links.host is None:
            del content["links"]["host"]
        for link in content["links"].values():
            if not link["kinds"]:
                del link["kinds"]
            if link["block_bytes"] is None:
                del link["block_bytes"]
        if not self.dispatch.start_s:
            del content["dispatch"]["start_s"]
        if not self.memory.unified:
            del content["memory"]["unified"]
        if not self.attention.sparse:
            del content["attention"]["sparse"]
        if self.restore is not None and self.restore.prefill is not None:
            prefill = content["restore"]["prefill"]
            for heads in prefill["heads"]:
                if heads["v_head_dim"] is None:
                    del heads["v_head_dim"]
            if prefill["sparse"] is None:
                del prefill["sparse"]
        if self.elementwise.copies is None:
            del content["elementwise"]["copies"]
        if self.all_reduce is not None and not self.all_reduce.mesh:
            del content["all_reduce"]["mesh"]
        for name in ("flops_8bit_per_s", "flops_4bit_per_s"):
            if content["gemm"][name] is None:
                del content["gemm"][name]
        return {key: value for key, value in content.items() if value is not None}

    @classmethod
    def from_dict(cls, data: Any, where: str) -> HardwareProfile:
        """Rebuild a profile; `where` names the file in errors."""
        return parse(cls, data, where)

    def save(self, path: Path | str) -> None:
        content = self.to_dict()
        if self.samples:
            content["samples"] = [asdict(one) for one in self.samples]
        if self.checks:
            content["checks"] = [asdict(one) for one in self.checks]
        write_json(path, "hardware-profile", content)

    @classmethod
    def load(cls, path: Path | str) -> HardwareProfile:
        """Read a profile file.

        Raises:
            BadFile: unreadable, of another kind, or with an unknown, absent or invalid key.
        """
        return cls.from_dict(read_json(path, "hardware-profile"), str(path))

    def with_tables_of(self, other: HardwareProfile) -> HardwareProfile:
        """This profile with the tables of another profile of the same machine; its own come first.

        Everything that is not a table, such as links, stays as it is here.
        """
        restore = self.restore or other.restore
        if restore is not None and other.restore is not None:
            restore = restore.with_tables_of(other.restore)
        return replace(
            self,
            gemm=replace(
                self.gemm,
                flops_per_s=max(self.gemm.flops_per_s, other.gemm.flops_per_s),
                tables=_first_of_each(
                    [*self.gemm.tables, *other.gemm.tables], lambda table: (table.n, table.k)
                ),
            ),
            attention=replace(
                self.attention,
                tables=_first_of_each(
                    [*self.attention.tables, *other.attention.tables],
                    lambda table: (table.n_heads, table.n_kv_heads, table.head_dim),
                ),
            ),
            elementwise=replace(
                self.elementwise,
                tables=_first_of_each(
                    [*self.elementwise.tables, *other.elementwise.tables],
                    lambda table: (table.op, table.bits),
                ),
            ),
            restore=restore,
            samples=_first_of_each([*self.samples, *other.samples], lambda one: one.point),
        )

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
        check_positive(part, factor=factor)
        if part in ("compute", "flops", "hbm"):
            hbm = 1.0 if part == "flops" else factor
            return replace(
                self,
                samples=(),
                checks=(),
                gemm=_faster_gemm(
                    self.gemm, 1.0 if part == "hbm" else factor, hbm, DTYPE_BYTES[self.dtype]
                ),
                attention=self.attention.faster(hbm),
                elementwise=self.elementwise.faster(hbm),
                restore=self.restore
                and self.restore.faster_attention(1.0 if part == "hbm" else factor),
            )
        if part == "memory":
            size = self.memory.device_bytes * factor
            return replace(self, memory=replace(self.memory, device_bytes=size))
        if part == "uplink":
            return replace(self, uplinks=tuple(one.faster(factor) for one in self.uplinks))
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
                **{lane: self.links.of(lane).faster(factor) for lane in lanes},
            ),
        )


def _first_of_each(tables: Sequence[Table], key: Callable[[Table], object]) -> tuple[Table, ...]:
    """The first table of each shape."""
    found: dict[object, Table] = {}
    for table in tables:
        found.setdefault(key(table), table)
    return tuple(found.values())


def _faster_gemm(gemm: Gemm, flops: float, hbm: float, element_bytes: int) -> Gemm:
    after = replace(
        gemm,
        flops_per_s=gemm.flops_per_s * flops,
        flops_8bit_per_s=gemm.flops_8bit_per_s and gemm.flops_8bit_per_s * flops,
        flops_4bit_per_s=gemm.flops_4bit_per_s and gemm.flops_4bit_per_s * flops,
        bytes_per_s=gemm.bytes_per_s and gemm.bytes_per_s * hbm,
    )

    def move(table: GemmTable) -> GemmTable:
        seconds = tuple(
            value
            * after.roofline_s(int(m), table.n, table.k, element_bytes, 8 * element_bytes)
            / gemm.roofline_s(int(m), table.n, table.k, element_bytes, 8 * element_bytes)
            for m, value in zip(table.curve.work, table.curve.seconds, strict=True)
        )
        return replace(table, curve=replace(table.curve, seconds=seconds))

    return replace(
        after,
        tables=tuple(map(move, gemm.tables)),
        utilisation=tuple(one.faster(flops, hbm) for one in gemm.utilisation),
        experts=tuple(one.faster(flops, hbm) for one in gemm.experts),
    )


def _faster(curve: Curve, factor: float) -> Curve:
    return replace(curve, seconds=tuple(value / factor for value in curve.seconds))
