"""Time and memory of `kvoverlap trace` on a generated trace in the layout that Kineto writes.

    python benchmarks/large_trace.py [--events 1000000] [--json]

A third of the events are kernels and copies, a third their launches, a third operators of the host.
The limit for a million events is 20 s and 1 GiB. It is judged by CPU time, which is the wall time
of one thread on an idle machine. Reading the file with `json.load` is timed too.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TextIO

from common import options, report

LIMIT_S, LIMIT_BYTES = 20.0, 2**30
NAME = (
    "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>, "
    "at::detail::Array<char*, 1> >(int, at::native::FillFunctor<float>, at::detail::Array<char*, "
    "1>)"
)
HOST = '"pid": 4242, "tid": 4242'
SHAPE = (
    '"queued": 0, "context": 1, "registers per thread": 32, "shared memory": 0, "blocks per SM": '
    '1.5, "warps per SM": 12.0, "grid": [128, 1, 1], "block": [256, 1, 1], "est. achieved '
    'occupancy %": 75'
)
STEP_WORK, COPY_EVERY = 500, 10


def write_trace(file: TextIO, n_events: int) -> None:
    """Steps of kernels with a copy after every ninth of them."""
    file.write('{\n "schemaVersion": 1, "deviceProperties": [{"id": 0, "name": "GPU"}],\n')
    file.write(' "traceEvents": [\n')
    for at in range(n_events // 3):
        start = 1000 + 3.25 * at
        if at % STEP_WORK == 0:
            file.write(
                f'  {{"ph": "X", "cat": "user_annotation", "name": "ProfilerStep#{at}", {HOST},\n'
                f'    "ts": {start:.3f}, "dur": {3.25 * STEP_WORK}, "args": {{}}}},\n'
            )
        file.write(
            f'  {{\n    "ph": "X", "cat": "cpu_op", "name": "aten::mm", {HOST},\n'
            f'    "ts": {start:.3f}, "dur": 2.5,\n    "args": {{\n      "External id": {at}, '
            f'"Ev Idx": {at}, "Concrete Inputs": ["", "", ""]\n    }}\n  }},\n'
            f'  {{\n    "ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", {HOST},\n'
            f'    "ts": {start:.3f}, "dur": 1.5,\n    "args": {{\n      "External id": {at}, '
            f'"cbid": 211, "correlation": {at}\n    }}\n  }},\n'
        )
        is_copy = at % COPY_EVERY == 0
        category, name = (
            ("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)")
            if is_copy
            else (
                "kernel",
                NAME,
            )
        )
        stream, more = (13, f'"bytes": {2**20 * (1 + at % 7)}') if is_copy else (7, SHAPE)
        file.write(
            f'  {{\n    "ph": "X", "cat": "{category}", "name": "{name}", "pid": 0, "tid": '
            f'{stream},\n    "ts": {start + 5:.3f}, "dur": {9.5 if is_copy else 3.2},\n    "args": '
            f'{{\n      "External id": {at}, "device": 0, "stream": {stream}, "correlation": {at}, '
            f"{more}\n    }}\n  }},\n"
        )
    file.write('  {"ph": "M", "name": "process_name", "pid": 0, "args": {}}\n ]\n}\n')


def measured(command: list[str]) -> tuple[float, float, int]:
    """Wall and CPU seconds and the peak bytes of a process."""
    start = time.perf_counter()
    pid = os.posix_spawn(command[0], command, os.environ, file_actions=SILENT)
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed with status {status}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, 1024 * usage.ru_maxrss


SILENT = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2)]
LOAD = "import json, sys; json.load(open(sys.argv[1]))"


def main() -> None:
    chosen = options(__doc__, events=1_000_000)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        with path.open("w", encoding="utf-8") as file:
            write_trace(file, chosen.events)
        size = path.stat().st_size
        ours = [sys.executable, "-m", "kvoverlap", "trace", str(path), "--json"]
        cases = {
            "kvoverlap trace": measured(ours),
            "json.load": measured([sys.executable, "-c", LOAD, str(path)]),
        }
    found = {
        name: {"wall_s": round(wall_s, 2), "cpu_s": round(cpu_s, 2), "peak_bytes": peak}
        for name, (wall_s, cpu_s, peak) in cases.items()
    }
    _, cpu_s, peak = cases["kvoverlap trace"]
    passed = cpu_s < LIMIT_S and peak < LIMIT_BYTES
    lines = [f"{chosen.events:,} events, {size / 1e6:,.0f} MB"]
    lines += [
        f"{name:16} {wall:.1f} s ({cpu:.1f} s CPU), {used / 2**20:,.0f} MiB"
        for name, (wall, cpu, used) in cases.items()
    ]
    lines.append(f"limit {LIMIT_S:.0f} s CPU and 1,024 MiB: {'met' if passed else 'MISSED'}")
    report(
        {"events": chosen.events, "file_bytes": size, "passed": passed, **found},
        chosen.json,
        *lines,
    )


if __name__ == "__main__":
    main()
