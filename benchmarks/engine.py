"""Tasks per second of each engine, and how the time of the fast one grows with the graph.

    python benchmarks/engine.py [--repeats 5] [--json]

Both engines run the same graphs and task times in turn; every value is a median. `ratio` and the
two speeds are those of the case in which the fast engine gains least. Also timed is the whole way
from a TaskGraph to a Timeline: the first call, which makes arrays of the graph, and a second call
on the same graph. `exponent` is the slope of log(seconds) over log(tasks) from 10^3 to 10^6 tasks,
`bytes_per_task` the size of the arrays of the largest graph. The first call in a process compiles,
or loads the code that an earlier process compiled.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from math import log
from statistics import linear_regression, median

from common import options, report, timed

from planner.decode.lower import lower, replicate
from planner.restore import behind_link
from planner.restore.lower import two_ended_graph
from sim import HardwareProfile, TaskGraph, Workload, find_hardware, find_model, simulate
from sim.engine.fast.job import FastJob
from sim.engine.launch import launch_times
from sim.engine.reference import ReferenceRun
from sim.engine.sharing import Uncontended
from sim.graph.jobs import RestoreRequest
from sim.machine.availability import ALWAYS, Availability, Step
from sim.machine.links import Interference, Uplink

MODEL = find_model("opt-6.7b")
MACHINE = find_hardware("kvpr-a100")
BOTH_WAYS = replace(
    MACHINE,
    interference=(
        Interference("h2d", "d2h", 0.81, "datasheet"),
        Interference("d2h", "h2d", 0.81, "datasheet"),
    ),
)
SWITCH = replace(BOTH_WAYS, uplinks=(Uplink("switch", (0, 1), 32e9, 32e9),))
TRACE = Availability(tuple(Step(0.25 * at, (("net", 0.5 + at % 2),)) for at in range(1, 9)))
SIZES = (1_000, 10_000, 100_000, 1_000_000)
FIRST_CALL = """
import time
from dataclasses import replace
from planner.decode.lower import lower
from sim import Workload, find_hardware, find_model, simulate
from sim.machine.links import Interference
slowed = Interference("h2d", "d2h", 0.81, "datasheet")
machine = replace(find_hardware("kvpr-a100"), interference=(slowed,))
graph = lower("row", find_model("opt-125m"), Workload(1, 8, 1), [[4] * 12])
start = time.perf_counter()
simulate(graph, machine, "fast")
print(time.perf_counter() - start)
"""


def decode(tasks: int) -> TaskGraph:
    """A decode with about `tasks` tasks that recomputes half of its prompt."""
    one = lower("row", MODEL, Workload(32, 512, 1), [[256] * MODEL.n_layers])
    steps = max(1, round(tasks / len(one.tasks)))
    return lower("row", MODEL, Workload(32, 512, steps), [[256] * MODEL.n_layers] * steps)


def unlike_pair(tasks: int) -> TaskGraph:
    """Two decoders that differ in their last task, so that both have to be simulated."""
    both = replicate(decode(tasks // 2), 2)
    return replace(both, tasks=both.tasks[:-1])


def two_ends(tasks: int) -> TaskGraph:
    """A restore with about `tasks` tasks: compute, read and load, by claims, for each token."""
    cached = tasks // 3
    request = RestoreRequest(
        prompt_tokens=cached + 1,
        cached_tokens=cached,
        tier="net",
        chunk_tokens=1,
        io_chunk_tokens=1,
    )
    return two_ended_graph(MODEL, request)


def compared(
    graph: TaskGraph, machine: HardwareProfile, repeats: int, trace: Availability = ALWAYS
) -> dict[str, float]:
    """Tasks a second of both engines on one graph."""
    uncontended, seen = Uncontended.on(machine, graph)
    durations_s = list(map(uncontended.seconds, graph.tasks))
    launched_s, dispatch = launch_times(graph, uncontended.costs), uncontended.costs.dispatch
    job = FastJob.of(graph, machine, trace)
    ways = {
        "simpy_tasks_per_s": lambda: ReferenceRun(
            graph, durations_s, launched_s, dispatch, seen, trace, uncontended
        ).timeline(),
        "fast_tasks_per_s": job.run,
        "simpy_whole_tasks_per_s": lambda: simulate(graph, machine, "simpy", trace),
        "fast_whole_again_tasks_per_s": lambda: simulate(graph, machine, "fast", trace),
    }
    seconds: dict[str, list[float]] = {name: [] for name in (*ways, "fast_whole_tasks_per_s")}
    for _ in range(repeats):
        for name, way in ways.items():
            seconds[name].append(timed(way))
        without_arrays = partial(simulate, replace(graph), machine, "fast", trace)
        seconds["fast_whole_tasks_per_s"].append(timed(without_arrays))
    return {name: len(graph.tasks) / median(values) for name, values in seconds.items()}


def growth(repeats: int) -> tuple[dict[int, float], float, float]:
    """Seconds by number of tasks, their exponent, and bytes per task of the largest graph."""
    seconds: dict[int, float] = {}
    bytes_per_task = 0.0
    for size in SIZES:
        job = FastJob.of(decode(size), BOTH_WAYS)
        job.run()
        n_tasks = job.runs.size
        seconds[n_tasks] = median(timed(job.run) for _ in range(repeats))
        bytes_per_task = job.nbytes / n_tasks
    slope = linear_regression(list(map(log, seconds)), list(map(log, seconds.values()))).slope
    return seconds, slope, bytes_per_task


def first_calls() -> tuple[float, float]:
    """Seconds of the first call in a process: with nothing compiled, and after that process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", FIRST_CALL]
        there = {**os.environ, "NUMBA_CACHE_DIR": folder}
        compiling, loading = [
            subprocess.run(command, env=there, check=True, capture_output=True)  # noqa: S603
            for _ in range(2)
        ]
    return float(compiling.stdout), float(loading.stdout)


def main() -> None:
    chosen = options(__doc__, repeats=5)
    graph = decode(10_000)
    cases = {
        "nothing shared": compared(graph, MACHINE, chosen.repeats),
        "both directions slow each other": compared(graph, BOTH_WAYS, chosen.repeats),
        "two GPUs behind a switch": compared(unlike_pair(10_000), SWITCH, chosen.repeats),
        "claims, a tier and a trace": compared(
            two_ends(3_000), behind_link(BOTH_WAYS, 4e9), chosen.repeats, TRACE
        ),
    }
    for case in cases.values():
        case["ratio"] = case["fast_tasks_per_s"] / case["simpy_tasks_per_s"]
    least = min(cases.values(), key=lambda case: case["ratio"])
    seconds, exponent, bytes_per_task = growth(chosen.repeats)
    compiling_s, loading_s = first_calls()
    found = {
        "simpy_tasks_per_s": least["simpy_tasks_per_s"],
        "fast_tasks_per_s": least["fast_tasks_per_s"],
        "ratio": least["ratio"],
        "exponent": exponent,
        "bytes_per_task": bytes_per_task,
        "first_call_compiling_s": compiling_s,
        "first_call_s": loading_s,
        "seconds_by_tasks": seconds,
        "cases": cases,
    }
    lines = [
        f"{name}: engine only, SimPy {case['simpy_tasks_per_s']:,.0f} tasks/s, fast "
        f"{case['fast_tasks_per_s']:,.0f}, {case['ratio']:,.0f} x; TaskGraph to Timeline, "
        f"SimPy {case['simpy_whole_tasks_per_s']:,.0f}, fast "
        f"{case['fast_whole_tasks_per_s']:,.0f}, again on the same graph "
        f"{case['fast_whole_again_tasks_per_s']:,.0f}"
        for name, case in cases.items()
    ]
    grown = ", ".join(f"{1e3 * took:,.2f} ms for {size:,}" for size, took in seconds.items())
    report(
        found,
        chosen.json,
        *lines,
        f"growth: {grown}: exponent {exponent:.2f}; {bytes_per_task:.0f} bytes per task",
        f"first call in a process: {loading_s:.2f} s, {compiling_s:.2f} s where it compiles",
    )


if __name__ == "__main__":
    main()
