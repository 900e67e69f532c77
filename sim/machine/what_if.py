"""What-if changes of a machine, named as in `--set` and in studies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sim.errors import BadInput, NotMeasured
from sim.lanes import COPY_LANES
from sim.machine.profile import HardwareProfile
from sim.model.spec import DTYPE_BYTES, ModelSpec

HOST_READS = "host reads"

RATES: dict[str, tuple[str, Callable[[HardwareProfile], float]]] = {
    "link.bandwidth": ("link", lambda hardware: hardware.links.h2d.bytes_per_s),
    "link.h2d.bandwidth": ("h2d", lambda hardware: hardware.links.h2d.bytes_per_s),
    "link.d2h.bandwidth": ("d2h", lambda hardware: hardware.links.d2h.bytes_per_s),
    "host.bandwidth": ("host", lambda hardware: hardware.links.of("host").bytes_per_s),
    "compute.flops": ("flops", lambda hardware: hardware.gemm.flops_per_s),
    "hbm.bandwidth": ("hbm", lambda hardware: hardware.attention.bytes_per_s),
    "uplink.bandwidth": (
        "uplink",
        lambda hardware: min((one.h2d_bytes_per_s for one in hardware.uplinks), default=0.0),
    ),
    "host.reads": (HOST_READS, lambda _: 0.0),
}
"""Rates by name: the part of the machine and its present rate. Of several uplinks the slowest
counts, and the others are changed in proportion. `host.reads` is what CPUs read of host memory
meanwhile, which slows copies down where the rate of host memory is known."""


def rate_unit(key: str) -> str:
    """Unit of one of `RATES`, per second."""
    return "FLOP" if key == "compute.flops" else "B"


def with_rate(hardware: HardwareProfile, key: str, rate: float) -> HardwareProfile:
    """The machine with one of `RATES` set, in bytes/s or operations/s.

    Raises:
        NotMeasured: the profile has no rate for that part.
    """
    part, present = RATES[key]
    if hardware.memory.unified and part in ("link", *COPY_LANES):
        raise NotMeasured(
            f"CPU and GPU of {hardware.name} share one memory: it has no link to change; leave "
            f"{key} out."
        )
    if part == HOST_READS:
        return with_host_reads(hardware, rate)
    now = present(hardware)
    if not now:
        raise NotMeasured(f"{hardware.name} has no {part} to change; leave {key} out.")
    return hardware.with_faster(part, rate / now)


def with_host_reads(hardware: HardwareProfile, reads_bytes_per_s: float) -> HardwareProfile:
    """The machine whose CPUs read host memory at a rate: copies get the rest of its rate.

    Raises:
        NotMeasured: the rate of host memory is not known.
        BadInput: the CPUs leave nothing.
    """
    dram = hardware.host_dram
    if dram is None:
        raise NotMeasured(
            f"the rate of host memory of {hardware.name} is not known; leave host.reads out or "
            "choose a link that has it, such as pcie5-x16-workstation."
        )
    left = dram.value - reads_bytes_per_s
    if left <= 0:
        raise BadInput(
            f"host.reads(={reads_bytes_per_s / 1e9:g}GB/s) must be below the "
            f"{dram.value / 1e9:g} GB/s of host memory of {hardware.name}."
        )
    for lane in COPY_LANES:
        rate = hardware.links.of(lane).bytes_per_s
        if rate > left:
            hardware = hardware.with_faster(lane, left / rate)
    return replace(hardware, host_dram=replace(dram, value=left))


def with_copies(
    hardware: HardwareProfile, kind: str, asked_by: str = "--copies"
) -> HardwareProfile:
    """The machine whose copies are all of one of `COPY_KINDS`.

    Args:
        asked_by: who wants such copies, for the message.

    Raises:
        NotMeasured: the figures of such copies are not known.
    """
    links = hardware.links
    both = {
        one.both_ways_rate
        for lane in COPY_LANES
        for one in links.of(lane).kinds
        if one.kind == kind and one.both_ways_rate is not None
    }
    interference = hardware.interference
    if both:
        interference = tuple(
            replace(one, rate=min(both)) if {one.lane, one.while_busy} == set(COPY_LANES) else one
            for one in interference
        )
    whose = f"{asked_by}: the link of {hardware.name}"
    changed = {lane: links.of(lane).of_kind(kind, whose) for lane in COPY_LANES}
    return replace(hardware, links=replace(links, **changed), interference=interference)


def with_memory(
    hardware: HardwareProfile, device_bytes: float | None = None, host_bytes: float | None = None
) -> HardwareProfile:
    """The machine with other memory sizes, of the device for jobs; None leaves one as it is."""
    memory = hardware.memory
    if memory.unified:
        device_bytes = host_bytes = device_bytes or host_bytes
    if device_bytes is not None:
        memory = replace(memory, device_bytes=device_bytes, device_reserve_bytes=0.0)
    if host_bytes is not None:
        memory = replace(memory, host_bytes=host_bytes)
    return replace(hardware, memory=memory)


def in_dtype_of(model: ModelSpec, hardware: HardwareProfile, chosen: bool) -> ModelSpec:
    """The model with the dtype of the profile, if their element sizes differ.

    Args:
        chosen: whether the user chose the model's dtype, which is then an error instead.

    Raises:
        BadInput: the chosen dtype has another size than the profile's.
    """
    if DTYPE_BYTES[model.dtype] == DTYPE_BYTES[hardware.dtype]:
        return model
    if chosen:
        raise BadInput(
            f"--dtype {model.dtype}: profile {hardware.name} holds for {hardware.dtype}; leave "
            "--dtype out or use a profile measured with it."
        )
    return replace(model, dtype=hardware.dtype)
