"""A machine in one line: rates, memory, link, and where the figures come from."""

from __future__ import annotations

from sim.machine.profile import HardwareProfile


def describe_machine(hardware: HardwareProfile) -> str:
    """Rates and sizes of a machine, its description, and whether it was measured with kvoverlap."""
    link = f"link {_gb_per_s(hardware.links.h2d.bytes_per_s)}"
    if hardware.memory.unified:
        link = "no link"
    parts = (
        f"{hardware.gemm.flops_per_s / 1e12:,.3g} TFLOP/s",
        f"memory {_gb_per_s(hardware.attention.bytes_per_s)}",
        f"{hardware.memory.job_device_bytes / 2**30:,.3g} GiB",
        link,
    )
    measured = "measured" if hardware.device_kind in ("cpu", "cuda") else "never measured"
    return f"{', '.join(parts)}. {hardware.description}. It was {measured} with kvoverlap."


def _gb_per_s(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:,.4g} GB/s"
