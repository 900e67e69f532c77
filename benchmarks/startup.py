"""Wall and CPU time of commands as processes, medians of some runs in turn.

    python benchmarks/startup.py [--repeats 5] [--json]

`python` is a process that does nothing, for comparison on a slow or busy machine. A run that is not
counted compiles the modules first, as an installation does.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from statistics import median

from common import counted, options, report

COMMAND = [sys.executable, "-m", "kvoverlap"]
LINES = (
    "--help",
    "models",
    "plan --model opt-13b --hardware kvpr-a100 --batch 32 --prompt 1K",
    "restore --model llama-3.1-8b --hardware h100 --prompt 16K",
    "advise --model llama-3.1-8b --hardware h100 --batch 8 --prompt 8K",
)
CASES = {
    "python": [sys.executable, "-c", ""],
    **{line.split()[0]: [*COMMAND, *line.split()] for line in LINES},
}


ENVIRONMENT = {name: os.environ[name] for name in os.environ if name != "PYTHONDONTWRITEBYTECODE"}


def run(command: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of one process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(  # noqa: S603
        command,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
    )
    wall_s, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    chosen = options(__doc__, repeats=5)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for command in CASES.values():
        run(command)
    for _ in counted(chosen.repeats):
        for name, command in CASES.items():
            times[name].append(run(command))
    found = {
        name: {
            "wall_s": round(median(wall_s for wall_s, _ in runs), 3),
            "cpu_s": round(median(cpu_s for _, cpu_s in runs), 3),
        }
        for name, runs in times.items()
    }
    lines = [
        f"{name:8} {one['wall_s']:.2f} s ({one['cpu_s']:.2f} s CPU)" for name, one in found.items()
    ]
    report(found, chosen.json, *lines)


if __name__ == "__main__":
    main()
