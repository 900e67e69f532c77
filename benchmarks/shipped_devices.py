"""Regenerate the devices in data/hardware/compute from the installed aiconfigurator-core.

Each is the output of `kvoverlap hardware import aiconfigurator` for the system and engine below.
The 40 GB A100 has no measurements: it is the 80 GB one with slower memory, and has the same
utilisation.

Usage: python benchmarks/shipped_devices.py [FOLDER]
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from kvoverlap.cli.import_profile import checked
from kvoverlap.cli.output import say
from kvoverlap.cli.table_errors import print_table_errors
from sim.catalog import DATA, find_link
from sim.machine.aiconfigurator import SystemTables, derive_part
from sim.machine.components import ComputePart, compose
from sim.machine.provenance import SourcedValue, weakest

SHIPPED = {
    "a100-sxm-80g": ("a100_sxm", "vllm", "pcie4-x16"),
    "arc-pro-b60": ("b60", "vllm", "pcie4-x16"),
    "b200": ("b200_sxm", "vllm", "pcie5-x16"),
    "b300": ("b300_sxm", "vllm", "pcie6-x16"),
    "gb200": ("gb200", "vllm", "nvlink-c2c"),
    "gb300": ("gb300", "vllm", "nvlink-c2c"),
    "h100-sxm": ("h100_sxm", "vllm", "pcie5-x16"),
    "h200": ("h200_sxm", "vllm", "pcie5-x16"),
    "l40s": ("l40s", "vllm", "pcie4-x16"),
    "rtx-pro-6000": ("rtx_pro_6000_server", "vllm", "pcie5-x16"),
}
A100_40G_BYTES, A100_40G_BYTES_PER_S = 40 * 2**30, 1555e9
"""NVIDIA A100 40 GB datasheet."""


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA / "hardware" / "compute"
    for name, (system, engine, link) in SHIPPED.items():
        part = checked(derive_part(SystemTables.find(system, engine), name, link))
        part.save(folder / f"{name}.json")
        say(f"\n{part.name}: {part.description}")
        print_table_errors(part.checks)
        if name == "a100-sxm-80g":
            a100_40g(part).save(folder / "a100-sxm-40g.json")


def a100_40g(part: ComputePart) -> ComputePart:
    """The 80 GB A100 with the memory of the 40 GB one."""
    peak_bytes_per_s = part.gemm.utilisation[0].bytes_per_s
    machine = compose(part, find_link(part.usual_link))
    slower = machine.with_faster("hbm", A100_40G_BYTES_PER_S / peak_bytes_per_s)
    note = "taken over from the 80 GB A100, its memory times stretched to 1,555 GB/s; "
    return replace(
        part,
        name="a100-sxm-40g",
        description=f"A100-SXM4-40GB, not timed itself: utilisation of {part.description}",
        memory_bytes=SourcedValue("datasheet", A100_40G_BYTES, "NVIDIA A100 40 GB datasheet"),
        gemm=replace(slower.gemm, source="fitted", note=note + slower.gemm.note),
        attention=replace(slower.attention, source="fitted", note=note + slower.attention.note),
        elementwise=replace(
            slower.elementwise,
            source=weakest("fitted", slower.elementwise.source),
            note=note + slower.elementwise.note,
        ),
        checks=(),
    )


if __name__ == "__main__":
    main()
