"""`kvoverlap validate` alone and with a competing process that comes and goes.

    python benchmarks/noisy_neighbour.py [--runs 3] [--minutes 2.5] [--seed 0] [--json]

The competing process works for 20 to 50 % of a core for some seconds and pauses for some, on a
schedule that a seed fixes. The doctor measures the machine's steadiness just before each run.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from common import options, report

from sim.units import percent

VALIDATE = (sys.executable, "-m", "kvoverlap", "validate", "--device", "cpu", "--json")
COMPETE = "--compete"
PERIOD_S = 0.1
"""The competing process works for a part of each period and sleeps for the rest."""

SHARES = (0.2, 0.5)
"""Range of the fraction of a core that it takes."""

EPISODE_S = (2.0, 8.0)
"""Range of the lengths of its work and of its pauses."""


def compete(seed: int, parent: int) -> None:
    """Come and go until the parent process has ended."""
    chance = random.Random(seed)  # noqa: S311 - a schedule
    while os.getppid() == parent:
        share = chance.uniform(*SHARES)
        until_s = time.monotonic() + chance.uniform(*EPISODE_S)
        while time.monotonic() < until_s and os.getppid() == parent:
            busy_until_s = time.monotonic() + share * PERIOD_S
            while time.monotonic() < busy_until_s:
                pass
            time.sleep((1 - share) * PERIOD_S)
        time.sleep(chance.uniform(*EPISODE_S))


@contextmanager
def neighbour(seed: int) -> Iterator[None]:
    """The competing process, while the context lasts."""
    command = [sys.executable, __file__, COMPETE, str(seed), str(os.getpid())]
    process = subprocess.Popen(command)  # noqa: S603 - no outside input
    try:
        yield
    finally:
        process.kill()
        process.wait()


def validate(minutes: str) -> dict[str, Any]:
    """The report of one run, with the seconds to its first result and to its end."""
    begun_s = time.monotonic()
    first_s = float("nan")
    command = [*VALIDATE, "--minutes", minutes]
    # The report is longer than a pipe holds, and is written while stderr is still being read.
    with (
        tempfile.TemporaryFile("w+") as answer_file,
        subprocess.Popen(  # noqa: S603 - no outside input
            command, stdout=answer_file, stderr=subprocess.PIPE, text=True
        ) as process,
    ):
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("note:") and "measured" in line and first_s != first_s:
                first_s = time.monotonic() - begun_s
        process.wait()
        answer_file.seek(0)
        answer = answer_file.read()
    if not answer:
        sys.exit("".join(said))
    report = json.loads(answer)
    return {**report, "first_line_s": first_s, "total_s": time.monotonic() - begun_s}


def steadiness() -> str:
    """What the doctor says about equal work now."""
    from hw.backends import open_backend
    from hw.doctor.check import QUICK
    from hw.doctor.compute import check_steadiness

    with open_backend("cpu") as backend:
        return check_steadiness(backend, QUICK).measured


def line(run: dict[str, Any]) -> str:
    """One run in a few lines."""
    regrets = ", ".join(
        f"{shape} {percent(one['frac'], signed=True)} against {one['other']} (noise "
        f"{percent(one['noise_frac'])})"
        for shape, one in run["lp_corrected_regrets"].items()
    )
    return (
        f"{run['name']}: first line {run['first_line_s']:.0f} s, all {run['total_s']:.0f} s; raw "
        f"median {percent(run['median_abs_error_frac'])}, worst "
        f"{percent(run['max_abs_error_frac'])}; corrected median "
        f"{percent(run['median_abs_corrected_error_frac'])}, worst "
        f"{percent(run['max_abs_corrected_error_frac'])}; overlap worst "
        f"{run['max_corrected_overlap_error_points']:.1f} points; judged {run['judged_cases']} of "
        f"{len(run['cases'])}; others had {percent(1 - run['median_core_share'])} of the core\n"
        f"  lp: {regrets}\n  doctor before: {run['steadiness']}"
        + (f"\n  {run['unsteady']}" if run["unsteady"] else "")
    )


def main() -> None:
    """Measure alone, then with the neighbour, and print every run."""
    how = options(__doc__, runs=3, minutes="2.5", seed=0)
    runs = []
    for name in ("alone", "with a neighbour"):
        for number in range(how.runs):
            before = steadiness()
            with nullcontext() if name == "alone" else neighbour(how.seed + number):
                run = validate(how.minutes)
            runs.append({**run, "name": f"{name} {number + 1}", "steadiness": before})
            print(line(runs[-1]), file=sys.stderr, flush=True)
    report({"runs": runs}, how.json, *map(line, runs))


if __name__ == "__main__":
    if sys.argv[1:2] == [COMPETE]:
        compete(int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
