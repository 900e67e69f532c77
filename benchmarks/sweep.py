"""Time of a sweep of 10,000 decode points, and the parallel efficiency of its processes.

    python benchmarks/sweep.py [--points 10000] [--jobs 2] [--json]

A point is an `lp` plan and the simulation of one decode step. The time includes the start of the
processes, the checkpoints and the final table. `parallel_efficiency` is the rate of all processes
over `jobs` times the rate of one. The single process is warm and computes a representative tenth of
the points before and after the sweep; the processes of the sweep start cold.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
from common import options, report

from planner.sweep import Study, local, run_sweep

MODELS = ("opt-6.7b", "opt-13b", "opt-30b", "llama-2-7b", "llama-3.1-8b")


def study(points: int, part: str) -> Study:
    """About `points` combinations of models, links, batches and prompts.

    Args:
        part: a filter that selects a part of them.
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
    chosen = options(__doc__, points=10_000, jobs=2)
    everything, tenth = "batch > 0", "prompt in (517, 1517)"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        timed(study(chosen.points, "batch == 64 and prompt == 2000"), 1, folder)  # loads, compiles
        before_s, few = timed(study(chosen.points, tenth), 1, folder)
        seconds, table = timed(study(chosen.points, everything), chosen.jobs, folder)
        after_s, _ = timed(study(chosen.points, tenth), 1, folder)
    points = table.num_rows
    one_rate = 2 * few.num_rows / (before_s + after_s)
    solved = Counter(table.column("solved_by").to_pylist())
    found = {
        "points": points,
        "seconds": seconds,
        "parallel_efficiency": points / seconds / chosen.jobs / one_rate,
        "jobs": chosen.jobs,
        "cores": os.cpu_count(),
        "points_per_s": points / seconds,
        "points_per_s_of_one_process": one_rate,
        "solved_by": dict(solved),
        "errors": sum(map(bool, table.column("error").to_pylist())),
    }
    report(
        found,
        chosen.json,
        f"{points:,} decode points in {seconds:.1f} s by {chosen.jobs} processes, "
        f"{found['points_per_s']:,.0f} points/s; one process {one_rate:,.0f} points/s: efficiency "
        f"{found['parallel_efficiency']:.0%}",
        ", ".join(f"{count:,} by {who}" for who, count in solved.items()) + " of the plans",
    )


if __name__ == "__main__":
    main()
