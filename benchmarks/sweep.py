"""How long a sweep of 10,000 decode points takes, and what a second process is worth.

    python benchmarks/sweep.py [--points 10000] [--jobs 2] [--json]

A point is a plan by the LP's policy and the simulation of one decode step. The sweep runs as the
command runs it, with start of the processes, part files and the final table. `parallel_efficiency`
is the rate of all processes over `jobs` times the rate of one. That one answers a tenth of the
points, spread like the whole, before and after, and is warm, where the others start anew.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa

from planner.sweep import Study, local, run_sweep

MODELS = ("opt-6.7b", "opt-13b", "opt-30b", "llama-2-7b", "llama-3.1-8b")


def study(points: int, part: str) -> Study:
    """Models, links, batches and prompts in all combinations, about `points` of them.

    Args:
        part: a filter, so that a part of the questions is spread like the whole.
    """
    links = max(1, round(points / (len(MODELS) * 10 * 20)))
    rates = [f"{20 + 400 * at / links:.6g}GB/s" for at in range(links)]
    return Study.of(
        {
            "fixed": {"hardware": "kvpr-a100", "gpu_memory": "1000GB", "keep": False},
            "grid": {
                "model": list(MODELS),
                "link.bandwidth": rates,
                "batch": [1, 2, 4, 8, 12, 16, 24, 32, 48, 64],
                "prompt": [100 * at + 17 for at in range(1, 20)] + [2000],
            },
            "where": {"part": part},
        }
    )


def timed(questions: Study, jobs: int, folder: Path) -> tuple[float, pa.Table]:
    """Seconds of a whole sweep, and its table."""
    start_s = time.perf_counter()
    swept = run_sweep(questions, folder / f"{time.time_ns()}.parquet", local(jobs), jobs)
    return time.perf_counter() - start_s, swept.table


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--points", type=int, default=10_000)
    arguments.add_argument("--jobs", type=int, default=2)
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()
    everything, tenth = "batch > 0", "prompt in (517, 1517)"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        timed(study(options.points, "batch == 64 and prompt == 2000"), 1, folder)  # loads, compiles
        before_s, few = timed(study(options.points, tenth), 1, folder)
        seconds, table = timed(study(options.points, everything), options.jobs, folder)
        after_s, _ = timed(study(options.points, tenth), 1, folder)
    points = table.num_rows
    one_rate = 2 * few.num_rows / (before_s + after_s)
    solved = Counter(table.column("solved_by").to_pylist())
    found = {
        "points": points,
        "seconds": seconds,
        "parallel_efficiency": points / seconds / options.jobs / one_rate,
        "jobs": options.jobs,
        "cores": os.cpu_count(),
        "points_per_s": points / seconds,
        "points_per_s_of_one_process": one_rate,
        "solved_by": dict(solved),
        "errors": sum(map(bool, table.column("error").to_pylist())),
    }
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print(
        f"{points:,} decode points in {seconds:.1f} s by {options.jobs} processes, "
        f"{found['points_per_s']:,.0f} points/s; one process {one_rate:,.0f} points/s: efficiency "
        f"{found['parallel_efficiency']:.0%}"
    )
    print(", ".join(f"{count:,} by {who}" for who, count in solved.items()), "of the plans")


if __name__ == "__main__":
    main()
