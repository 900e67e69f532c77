"""All-reduce between the GPUs that share a model (tensor parallelism).

An all-reduce is one of a layer's kernels and occupies the compute lane: serving runtimes launch it
in order with the others, on the same stream. Copies between host and GPU go on meanwhile. What an
all-reduce over PCIe takes from them is not modelled.
"""

from __future__ import annotations

from dataclasses import dataclass

from sim.errors import BadInput
from sim.files import STRICT_KEYS
from sim.machine.curves import Curve
from sim.machine.links import Links, check_positive
from sim.machine.provenance import Source, weakest

PCIE_STEP_S = 10e-6
"""Latency of one copy from GPU to GPU over PCIe, as aiconfigurator-core 0.12.0 assumes it in the
files of its systems (`p2p_latency`)."""


@dataclass(frozen=True, slots=True)
class AllReduceTable:
    """Measured seconds of an all-reduce between `gpus` GPUs, over the bytes of the tensor."""

    __pydantic_config__ = STRICT_KEYS

    gpus: int
    curve: Curve

    def __post_init__(self) -> None:
        if self.gpus < 2:
            raise BadInput(f"all_reduce.gpus(={self.gpus}) must be at least 2.")


@dataclass(frozen=True, slots=True)
class AllReduce:
    """The time to sum one tensor over all GPUs, on each of them.

    Numbers of GPUs without a table cost what a ring takes: 2 (n - 1) steps of `step_s` each, and
    2 (n - 1) / n of the tensor over the link of a GPU to the others. In a mesh each GPU sends one
    n-th to all others at once, twice: 2 steps, and 2 / n of the tensor over each link.

    Args:
        bytes_per_s: rate of that link in each direction.
        mesh: whether a GPU has a link of that rate to each other GPU.
    """

    __pydantic_config__ = STRICT_KEYS

    source: Source
    bytes_per_s: float
    step_s: float
    tables: tuple[AllReduceTable, ...] = ()
    note: str = ""
    mesh: bool = False

    def __post_init__(self) -> None:
        check_positive("all_reduce", bytes_per_s=self.bytes_per_s, step_s=self.step_s)

    @classmethod
    def over_pcie(cls, links: Links) -> AllReduce:
        """A ring over the links to the host, for devices without links between GPUs."""
        rate = min(links.h2d.bytes_per_s, links.d2h.bytes_per_s)
        source = weakest(links.h2d.source, links.d2h.source, "fitted")
        return cls(source, rate, PCIE_STEP_S, note="a ring over the links to the host")

    def seconds(self, gpus: int, n_bytes: float) -> tuple[float, Source, bool]:
        """Seconds for a tensor of `n_bytes`, their source, and whether the size was measured."""
        for table in self.tables:
            if table.gpus == gpus:
                seconds, inside = table.curve.at(n_bytes)
                return seconds, self.source, inside
        steps = 2 if self.mesh else 2 * (gpus - 1)
        seconds = steps * (self.step_s + n_bytes / gpus / self.bytes_per_s)
        return seconds, weakest(self.source, "fitted"), not self.tables
