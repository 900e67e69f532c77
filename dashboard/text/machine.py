"""Machines as cards and as a table: rates, memory, link, and where the figures come from."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from dashboard.data.machines import Machine
from dashboard.text.comparison import escaped
from sim.errors import KvOverlapError
from sim.machine.profile import HardwareProfile


def machine_card(hardware: HardwareProfile) -> str:
    """Rates, memory and link of a machine, its source and who measured it, as Markdown lines."""
    link = _gb_per_s(hardware.links.h2d.bytes_per_s)
    memory = f"{hardware.memory.device_bytes / 2**30:,.3g} GiB"
    rows = {
        "Matrix products": f"{hardware.gemm.flops_per_s / 1e12:,.3g} TFLOP/s",
        "GPU memory": f"{memory}, {_gb_per_s(hardware.attention.bytes_per_s)}",
        "Link": "none: CPU and GPU share one memory" if hardware.memory.unified else link,
        "Source": escaped(hardware.description),
        "Measured": escaped(measured(hardware)),
    }
    return "  \n".join(f"**{name}:** {text}" for name, text in rows.items())


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
        "memory GiB": hardware.memory.device_bytes / 2**30,
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
