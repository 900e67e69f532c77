"""A machine in one line: rates, memory, link, and where the figures come from."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from dashboard.data.machines import Machine
from sim.errors import KvOverlapError
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


def machine_table(machines: Sequence[Machine]) -> pd.DataFrame:
    """A row for each machine: rates, memory, link, source, and whether it was measured.

    A machine whose file cannot be read has an empty row with the reason as its description.
    """
    return pd.DataFrame([{"machine": machine.label, **_row(machine)} for machine in machines])


def _row(machine: Machine) -> dict[str, object]:
    try:
        hardware = machine.load()
    except KvOverlapError as error:
        return {"description": str(error)}
    link = None if hardware.memory.unified else hardware.links.h2d.bytes_per_s / 1e9
    return {
        "TFLOP/s": hardware.gemm.flops_per_s / 1e12,
        "memory GB/s": hardware.attention.bytes_per_s / 1e9,
        "memory GiB": hardware.memory.job_device_bytes / 2**30,
        "link GB/s": link,
        "measured": measured(hardware),
        "description": hardware.description,
    }


def measured(hardware: HardwareProfile) -> str:
    """Who measured a machine: kvoverlap, the package of its operator timings, or nobody."""
    if hardware.device_kind in ("cpu", "cuda"):
        return "with kvoverlap"
    package = (hardware.environment or {}).get("package")
    return f"operators, by {package}" if package else "no: datasheets and papers"


def _gb_per_s(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:,.4g} GB/s"
