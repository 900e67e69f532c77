"""`kvoverlap doctor`: check whether measurements on this machine can be trusted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from kvoverlap.cli.options import OutputFile
from kvoverlap.cli.output import annotate, print_json, progress, say
from kvoverlap.cli.output import out as standard_output
from measure.doctor_decodes import number_checks
from sim.files import write_json

if TYPE_CHECKING:
    from hw.doctor import Check

WIDTH = 100
"""Columns of the table; longer texts wrap."""

COLOURS = {"passed": "green", "warned": "yellow", "failed": "red"}


def doctor(
    *, device: str = "auto", quick: bool = False, out: OutputFile | None = None, json: bool = False
) -> int:
    """Check this machine before you trust a number measured on it.

    It checks libraries, device, clocks, link, host, page-locking, attention
    backends, copies, overlap, burst against sustained matmuls, steadiness and disk.
    Tiny decodes of every schedule and policy, with quantised and partly resident
    caches, and tiny restores are compared with their resident references. It takes
    at most 90 seconds. The exit status is 1 if a check failed; warnings do not
    change it.

    For example:
      kvoverlap doctor
      kvoverlap doctor --device cuda --out doctor.json
      kvoverlap doctor --device cpu --quick --json

    Parameters
    ----------
    device
        auto, cpu or cuda.
    quick
        Measure for about a tenth of the time; more of the timing checks will warn.
    out
        Write the result here as JSON too.
    json
        Print JSON instead of a table.
    """
    from hw import resolve_device

    kind = resolve_device(device)
    started_s = time.monotonic()
    checks = run_checks(kind, quick)
    report: dict[str, Any] = {
        "device": kind,
        "seconds": round(time.monotonic() - started_s, 1),
        "checks": [asdict(check) for check in checks],
    }
    if out is not None:
        write_json(out, "doctor", report)
    if json:
        print_json(report)
    else:
        print_checks(kind, report["seconds"], checks)
    failed = [check for check in checks if check.status == "failed"]
    for check in failed:
        annotate(f"doctor: {check.name}", check.measured)
    return 1 if failed else 0


def run_checks(kind: str, quick: bool = False) -> list[Check]:
    """All checks of a device, with progress on stderr."""
    from hw.doctor import QUICK, Durations, examine

    with progress("doctor") as steps:
        return examine(kind, QUICK if quick else Durations(), number_checks, steps)


def print_checks(kind: str, seconds: float, checks: Sequence[Check]) -> None:
    """A table of the measurements, then the advice, then the count of each status."""
    from rich.markup import escape
    from rich.table import Table

    console = standard_output.console()
    grid = Table(
        title=f"This machine as a {kind} device",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        width=WIDTH,
    )
    grid.add_column("check", no_wrap=True)
    grid.add_column("status", no_wrap=True)
    grid.add_column("measured", overflow="fold", ratio=1)
    for check in checks:
        colour = COLOURS[check.status]
        grid.add_row(check.name, f"[{colour}]{check.status}[/{colour}]", escape(check.measured))
    console.print(grid, soft_wrap=False, width=WIDTH)
    advised = [check for check in checks if check.advice]
    if advised:
        say("\nAdvice")
    for check in advised:
        console.print(escape(f"{check.name}: {check.advice}"), soft_wrap=False, width=WIDTH)
    counts = {status: sum(check.status == status for check in checks) for status in COLOURS}
    say("\n" + ", ".join(f"{n} {status}" for status, n in counts.items()) + f" in {seconds:g} s")
