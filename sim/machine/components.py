"""A machine composed of a device and a host with its links.

One device is sold in many hosts, so device and links are separate files, and
`h100-sxm+pcie5-x16` names the machine made of both.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sim.errors import BadInput
from sim.files import STRICT_KEYS, parse, read_json, write_json
from sim.machine.all_reduce import AllReduce
from sim.machine.links import Dispatch, Interference, Link, Links, Uplink
from sim.machine.prefill import Prefill, Restore, Tier
from sim.machine.profile import Attention, Elementwise, Gemm, HardwareProfile, Memory
from sim.machine.provenance import Efficiency, SourcedValue, TableErrors, weakest

JOIN = "+"
"""Between the two names of a composed machine."""

UNIFIED = "unified"
"""The link of devices that share one memory with their CPU, which is none."""

RESERVE_BYTES = 2.0**30
"""Of a device's memory what the driver's context and the libraries' workspaces take."""


@dataclass(frozen=True, slots=True)
class ComputePart:
    """A device without its host: how fast it computes and how much it holds.

    Args:
        dtype: element type that the rates and tables hold for.
        usual_link: name of the link part that it is mostly sold with.
        environment: origin of the measurements: package, system, engine, versions.
        checks: how well the tables predict their own points.
        efficiency: parts of a data sheet's peak rates that went into the rates.
        host_memory_bytes: of the host it sits in; by default that of the link.
        all_reduce: between devices of this kind; None if only the host links them.
    """

    __pydantic_config__ = STRICT_KEYS

    name: str
    description: str
    dtype: str
    usual_link: str
    memory_bytes: SourcedValue
    gemm: Gemm
    attention: Attention
    elementwise: Elementwise
    prefill: Prefill | None = None
    environment: dict[str, Any] | None = None
    checks: tuple[TableErrors, ...] = field(default=(), compare=False, repr=False)
    efficiency: Efficiency | None = None
    host_memory_bytes: SourcedValue | None = None
    all_reduce: AllReduce | None = None

    def save(self, path: Path | str) -> None:
        write_json(path, "compute-part", asdict(self))

    @classmethod
    def load(cls, path: Path | str) -> ComputePart:
        """Read a compute part.

        Raises:
            BadFile: unreadable, of another kind, or with an unknown, absent or invalid key.
        """
        return parse(cls, read_json(path, "compute-part"), str(path))


@dataclass(frozen=True, slots=True)
class LinkPart:
    """A host as one of its devices sees it: links, shared paths, memory, tiers behind it.

    Args:
        links, host_memory_bytes: None for `unified`, where CPU and GPU share one memory.
        dispatch: what the host spends on launching work.
        host_dram: bytes/s of host memory that copies and CPU readers share, where it is known.
    """

    __pydantic_config__ = STRICT_KEYS

    name: str
    description: str
    host_memory_bytes: SourcedValue | None
    links: Links | None
    dispatch: Dispatch
    interference: tuple[Interference, ...] = ()
    uplinks: tuple[Uplink, ...] = ()
    tiers: tuple[Tier, ...] = ()
    lookup_s: SourcedValue | None = None
    host_dram: SourcedValue | None = None

    @classmethod
    def load(cls, path: Path | str) -> LinkPart:
        """Read a link part.

        Raises:
            BadFile: unreadable, of another kind, or with an unknown, absent or invalid key.
        """
        return parse(cls, read_json(path, "link-part"), str(path))


def compose(compute: ComputePart, link: LinkPart) -> HardwareProfile:
    """The machine made of a device and a host.

    Raises:
        BadInput: a device that shares its memory with the CPU has a link, or another has none.
    """
    unified = link.links is None
    if unified != (compute.usual_link == UNIFIED):
        shares = "has a memory of its own" if unified else "shares one memory with its CPU"
        raise BadInput(
            f"hardware {compute.name}{JOIN}{link.name}: {compute.name} {shares}; name it as "
            f"{compute.name if not unified else f'{compute.name}{JOIN}{compute.usual_link}'}."
        )
    host_memory = compute.host_memory_bytes or link.host_memory_bytes or compute.memory_bytes
    within = Link("datasheet", compute.attention.bytes_per_s, note="CPU and GPU share one memory")
    return HardwareProfile(
        name=compute.name if unified else f"{compute.name}{JOIN}{link.name}",
        description=f"{compute.description}; {link.description}",
        device_kind="none",
        dtype=compute.dtype,
        memory=Memory(
            weakest(compute.memory_bytes.source, host_memory.source),
            compute.memory_bytes.value,
            host_memory.value,
            RESERVE_BYTES,
            unified,
        ),
        gemm=compute.gemm,
        attention=compute.attention,
        elementwise=compute.elementwise,
        links=link.links or Links(within, within),
        dispatch=link.dispatch,
        interference=link.interference,
        uplinks=link.uplinks,
        environment=compute.environment,
        restore=Restore(compute.prefill, link.tiers, link.lookup_s),
        checks=compute.checks,
        efficiency=compute.efficiency,
        all_reduce=compute.all_reduce,
        host_dram=link.host_dram,
    )


def split_name(name: str) -> tuple[str, str]:
    """The names of a machine's two parts.

    Raises:
        BadInput: one of them is empty.
    """
    compute, _, link = name.rpartition(JOIN)
    if not compute or not link:
        raise BadInput(f"hardware {name!r} must be COMPUTE{JOIN}LINK, as h100-sxm{JOIN}pcie5-x16.")
    return compute, link
