"""A device from its vendor's data sheet: a TOML file of about ten lines.

The shipped devices without measured tables are such files in `data/hardware/compute`; anybody can
write one for a machine of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sim.errors import BadFile, BadInput
from sim.files import STRICT_KEYS, decode_toml, naming_file, parse
from sim.machine.all_reduce import AllReduce
from sim.machine.components import ComputePart, LinkPart
from sim.machine.curves import Curve
from sim.machine.links import Dispatch, Link, Links
from sim.machine.prefill import Prefill
from sim.machine.profile import Attention, Elementwise, Gemm
from sim.machine.provenance import Efficiency, SourcedValue
from sim.units import parse_bytes, parse_rate

SUFFIX = ".toml"
"""Files of this kind hold a data sheet; other profiles are JSON."""

DTYPE = "bfloat16"
"""Element type of the 16-bit rates."""

PREFILL_FRAC = 0.83
"""Rate of prefill attention over that of matmuls: the median of the devices with tables."""

PASS_S = 3e-6
"""Least time of an element-wise kernel, as aiconfigurator-core 0.12.0 takes it for its devices."""

GPU_LINK_STEP_S = 2.5e-6
"""Latency of one step of an all-reduce over links between GPUs: the median of the devices with
tables."""

EXAMPLES = {
    "memory": "24GiB",
    "host_memory": "64GiB",
    "memory_bandwidth": "1008GB/s",
    "flops": "165.2TFLOP/s",
    "flops_8bit": "330.3TFLOP/s",
    "flops_4bit": "1676TFLOP/s",
    "gpu_link": "450GB/s",
}
"""The keys that are sizes and rates, each with a value."""


@dataclass(frozen=True, slots=True)
class DataSheet:
    """The content of the file: sizes and peak rates as text with a unit.

    Args:
        name: by default the name of the file.
        memory, memory_bandwidth: of the device.
        flops, flops_8bit, flops_4bit: dense matmuls (no sparsity) with operands of 16, 8 and 4
            bits, accumulated in 32 bits.
        link: name of a link, path of a link file, rate of pinned copies such as 25GB/s, or
            `unified` if CPU and GPU share the memory.
        source: title and date of the data sheet.
        compute_efficiency, memory_efficiency: parts of the peak rates that kernels reach.
        efficiency_source: where these two come from.
        host_memory: of the host; by default that of the link.
        gpu_link: rate of a GPU to the others in each direction; by default GPUs exchange data over
            their links to the host.
        gpu_mesh: whether a GPU has a link of that rate to each other GPU.
    """

    __pydantic_config__ = STRICT_KEYS

    memory: str
    memory_bandwidth: str
    flops: str
    link: str
    source: str
    compute_efficiency: float = 0.77
    memory_efficiency: float = 0.85
    efficiency_source: str = "assumed"
    name: str = ""
    description: str = ""
    flops_8bit: str | None = None
    flops_4bit: str | None = None
    host_memory: str | None = None
    gpu_link: str | None = None
    gpu_mesh: bool = False

    @classmethod
    def load(cls, path: Path | str) -> ComputePart:
        """The device that a file describes.

        Raises:
            BadFile: unreadable, or with an unknown, absent or invalid key; names it.
        """
        content = decode_toml(path)
        for key, example in EXAMPLES.items():
            value = content.get(key, example)
            if not isinstance(value, str) or not value[-1:].isalpha():
                raise BadFile(
                    f'{path}: {key}(={value!r}) must be text with a unit, such as "{example}".'
                )
        with naming_file(str(path)):
            return parse(cls, content, str(path))._part(Path(path).stem)

    def _part(self, stem: str) -> ComputePart:
        reached = Efficiency(
            self.compute_efficiency, self.memory_efficiency, self.efficiency_source
        )

        def flops_per_s(key: str) -> float | None:
            text = getattr(self, key)
            return None if text is None else reached.compute * parse_rate(key, text, "FLOP")

        flops = reached.compute * parse_rate("flops", self.flops, "FLOP")
        bytes_per_s = reached.memory * parse_rate("memory_bandwidth", self.memory_bandwidth)
        read = f"{self.memory_bandwidth} x {reached.memory:g}; {self.source}"
        memory = SourcedValue("datasheet", parse_bytes("memory", self.memory), self.source)
        host = None
        if self.host_memory is not None:
            host = SourcedValue("datasheet", parse_bytes("host_memory", self.host_memory))
        return ComputePart(
            name=self.name or stem,
            description=self.description or self.source,
            dtype=DTYPE,
            usual_link=self.link,
            memory_bytes=memory,
            host_memory_bytes=host,
            gemm=Gemm(
                "datasheet",
                flops,
                bytes_per_s,
                note=f"{self.flops} x {reached.compute:g}; {self.source}",
                flops_8bit_per_s=flops_per_s("flops_8bit"),
                flops_4bit_per_s=flops_per_s("flops_4bit"),
            ),
            attention=Attention("datasheet", bytes_per_s, note=read),
            elementwise=Elementwise(
                "datasheet",
                bytes_per_s,
                Curve.launched(PASS_S, bytes_per_s),
                note=f"{read}; {PASS_S * 1e6:g} us for each kernel",
            ),
            prefill=Prefill(
                SourcedValue(
                    "datasheet",
                    PREFILL_FRAC * flops,
                    f"{PREFILL_FRAC} of the matmul rate, the median of the measured devices",
                ),
                SourcedValue("datasheet", 0.0, "a data sheet does not tell an engine's own time"),
            ),
            efficiency=reached,
            all_reduce=self._all_reduce(),
        )

    def _all_reduce(self) -> AllReduce | None:
        if self.gpu_link is None:
            if self.gpu_mesh:
                raise BadInput("gpu_mesh(=true) needs gpu_link, the rate of one of its links.")
            return None
        rate = parse_rate("gpu_link", self.gpu_link)
        return AllReduce("datasheet", rate, GPU_LINK_STEP_S, note=self.source, mesh=self.gpu_mesh)


def plain_link(rate: str) -> LinkPart:
    """A link of one rate in both directions, to a host of 64 GiB; launches as on PCIe.

    Raises:
        BadInput: not a rate.
    """
    link = Link("datasheet", parse_rate("link", rate), 2.5e-6, note="as given")
    return LinkPart(
        name=rate,
        description=f"a link of {rate}",
        host_memory_bytes=SourcedValue("datasheet", 64 * 2.0**30, "assumed"),
        links=Links(link, link),
        dispatch=Dispatch("fitted", kernel_s=5e-6, copy_s=5e-6),
    )
