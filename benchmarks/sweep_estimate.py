"""What `sweep` says how long it will take, and how long it takes, for the shipped studies.

    python benchmarks/sweep_estimate.py [--jobs 2] [--studies restore-tiers,cache-size] [--json]

`--dry-run` and the sweep are processes of their own, as a user starts them. On a machine that is
not quiet both are slow, but not by the same factor: repeat there.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import options, report

COMMAND = [sys.executable, "-m", "kvoverlap", "sweep"]
STUDIES = "mha-gqa,pcie-crossover,memory-size,restore-tiers,cache-size"
"""Decode, on composed machines; restore, on whole ones; traffic, on a composed one."""


def answer(*arguments: str) -> dict[str, Any]:
    """What one process answers."""
    done = subprocess.run(  # noqa: S603
        [*COMMAND, *arguments, "--json"], check=True, capture_output=True, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    chosen = options(__doc__, jobs=2, studies=STUDIES)
    found, lines = {}, []
    for study in chosen.studies.split(","):
        for jobs in sorted({1, chosen.jobs}):
            setting = (study, "--jobs", str(jobs))
            expected_s = answer(*setting, "--dry-run")["seconds"]
            with tempfile.TemporaryDirectory() as folder:
                taken_s = answer(*setting, "-o", str(Path(folder) / "out.parquet"))["seconds"]
            found[f"{study}, {jobs}"] = {"expected_s": expected_s, "taken_s": taken_s}
            lines.append(
                f"{study:15} {jobs} processes: expected {expected_s:6.1f} s, took {taken_s:6.1f} s,"
                f" {100 * (expected_s / taken_s - 1):+.0f} %"
            )
    report(found, chosen.json, *lines)


if __name__ == "__main__":
    main()
