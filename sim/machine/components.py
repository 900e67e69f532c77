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
from sim.machine.links import Dispatch, Interference, Links, Uplink
from sim.machine.prefill import Prefill, Restore, Tier
from sim.machine.profile import Attention, Elementwise, Gemm, HardwareProfile, Memory
from sim.machine.provenance import SourcedValue, TableErrors, weakest

JOIN = "+"
"""Between the two names of a composed machine."""

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
        dispatch: what the host spends on launching work.
    """

    __pydantic_config__ = STRICT_KEYS

    name: str
    description: str
    host_memory_bytes: SourcedValue
    links: Links
    dispatch: Dispatch
    interference: tuple[Interference, ...] = ()
    uplinks: tuple[Uplink, ...] = ()
    tiers: tuple[Tier, ...] = ()
    lookup_s: SourcedValue | None = None

    @classmethod
    def load(cls, path: Path | str) -> LinkPart:
        """Read a link part.

        Raises:
            BadFile: unreadable, of another kind, or with an unknown, absent or invalid key.
        """
        return parse(cls, read_json(path, "link-part"), str(path))


def compose(compute: ComputePart, link: LinkPart) -> HardwareProfile:
    """The machine made of a device and a host."""
    return HardwareProfile(
        name=f"{compute.name}{JOIN}{link.name}",
        description=f"{compute.description}; {link.description}",
        device_kind="none",
        dtype=compute.dtype,
        memory=Memory(
            weakest(compute.memory_bytes.source, link.host_memory_bytes.source),
            compute.memory_bytes.value,
            link.host_memory_bytes.value,
            RESERVE_BYTES,
        ),
        gemm=compute.gemm,
        attention=compute.attention,
        elementwise=compute.elementwise,
        links=link.links,
        dispatch=link.dispatch,
        interference=link.interference,
        uplinks=link.uplinks,
        environment=compute.environment,
        restore=Restore(compute.prefill, link.tiers, link.lookup_s),
        checks=compute.checks,
        all_reduce=compute.all_reduce,
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
