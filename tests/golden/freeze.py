"""Frozen answers of the command line: written on purpose, compared in every test run.

`python tests/golden/freeze.py` rewrites every golden file, `python tests/golden/freeze.py help`
only help.txt. Read the `git diff` before you commit it: it shows what changed for users.
`tests/kvoverlap/test_golden.py` computes the same answers and compares them with the files.

    commands.txt                          the command lines; those of graphs.json are built below
    inputs/                               short models, traces and studies that they name
    plan.json, restore.json, advise.json  what `--json` prints
    graphs.json                           graph hash and time of every schedule and policy, besides
                                          the hashes in plan.json and restore.json
    simulate.json                         timelines of plan files that an earlier version wrote
    sweep.json                            rows and summary of two studies
    accuracy.json                         `accuracy --gate` of the shipped recordings
    help.txt                              `--help` of every verb, at a fixed width

A line of a JSON file is one command line and its answer. Numbers have 12 significant digits.
Versions, run times and output paths are left out. The command lines run in this folder.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow.parquet as pq

WIDTH = "160"
HERE = Path(__file__).parent
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""Escapes that a console writes if it was made on a terminal."""

if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[1]))
    os.environ["COLUMNS"] = WIDTH

# The only import from the project: every answer comes from the command line.
from kvoverlap.cli.main import main  # noqa: E402

Answer = Any
"""What JSON can hold."""

POLICIES = ["lp", "kvpr", "load-all", "recompute-all", "fixed:100", "resident", "hf-offloaded"]
RESTORE_POLICIES = ["compute-only", "load-only", "two-ended", "lp", "layer-wise", "joint"]


def listed_commands() -> dict[str, list[str]]:
    """Command lines of commands.txt, by verb; those that ask for help are under `help`."""
    commands: dict[str, list[str]] = {}
    for line in (HERE / "commands.txt").read_text(encoding="utf-8").splitlines():
        verb = "help" if line.endswith("--help") else line.partition(" ")[0]
        commands.setdefault(verb, []).append(line)
    return commands


def graph_commands() -> list[str]:
    """Command lines whose graphs are frozen: every schedule and policy, on several models."""
    mha, kvpr = "--model inputs/mha.json", "--hardware kvpr-a100 --batch 16 --prompt 300"
    h100 = "--hardware h100 --batch 4 --prompt 600"
    shared = "--hardware 2xa100-80g --batch 8 --prompt 300 --gpus 2"
    cpu = "--model inputs/small.json --hardware cpu-xeon-opt-125m --batch 4 --prompt 200"
    plans = [
        (f"{mha} {kvpr} --gen 2", POLICIES),
        (f"{mha} {kvpr} --schedule column --n-batches 2", POLICIES[:6]),
        (f"{mha} {kvpr} --kv-bits 4", ["lp", "recompute-all"]),
        (f"{mha} {kvpr} --gpu-memory 2.8GiB", ["lp"]),
        (f"{mha} {kvpr} --gpu-memory 2GiB --schedule column --n-batches 2", ["lp"]),
        (f"--model inputs/gqa.json {shared}", ["lp", "recompute-all"]),
        (f"--model inputs/window.json {h100}", POLICIES),
        (f"--model inputs/mla.json {h100}", ["lp", "recompute-all", "resident"]),
        (cpu, ["lp", "flexgen", "hf-offloaded"]),
    ]
    gqa = "--model inputs/gqa.json --hardware kvpr-a100 --prompt 4K"
    kvpr_tier = "--hardware kvpr-a100 --prompt 2K --tier 9GB/s --io-chunk 100"
    restores = [
        (f"{gqa} --tier 2GB/s", RESTORE_POLICIES),
        (f"{gqa} --cached 3K --gpu-share 0.5", ["two-ended", "lp"]),
        (f"{mha} {kvpr_tier} --cached-data kv+x", RESTORE_POLICIES),
    ]
    jobs = [(f"plan {job}", policies) for job, policies in plans]
    jobs += [(f"restore {job}", policies) for job, policies in restores]
    return [f"{job} --policy {policy}" for job, policies in jobs for policy in policies]


@contextmanager
def fixed_terminal(folder: Path) -> Iterator[None]:
    """Run in a folder, at one width, with no sign of a terminal or of GitHub Actions."""
    with chdir(folder), patch.dict(os.environ, {"COLUMNS": WIDTH}):
        for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
            os.environ.pop(name, None)
        yield


def call(command: str, folder: Path = HERE) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of one command line, run in a folder."""
    out, err = io.StringIO(), io.StringIO()
    with fixed_terminal(folder), redirect_stdout(out), redirect_stderr(err):
        status = main(command.split())
    return status, COLOURS.sub("", out.getvalue()), COLOURS.sub("", err.getvalue())


def json_answer(command: str) -> Answer:
    """What `--json` prints; with the exit status if that is not 0, and the message if refused."""
    status, out, err = call(f"{command} --json")
    answer = json.loads(out) if out else " ".join(err.split())
    return {"exit_status": status, "answer": answer} if status else answer


def graph_answer(command: str) -> Answer:
    """Hash of the graph and its predicted time."""
    found = json_answer(command)
    kept = ("graph_sha256", "makespan_s", "ttft_s")
    return {key: found[key] for key in kept if key in found} or found


def sweep_answer(command: str) -> Answer:
    """Summary and rows of a study, swept in this process."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "out.parquet"
        found = json_answer(f"{command} -o {table} --jobs 1")
        rows = pq.read_table(table).to_pylist()
    summary = {key: found[key] for key in found if key not in ("output", "seconds")}
    columns = [key for key in rows[0] if key not in ("kvoverlap_version", "study_sha256")]
    return {
        "summary": summary,
        "columns": columns,
        "rows": [[row[key] for key in columns] for row in rows],
    }


def help_answer(command: str) -> Answer:
    status, out, err = call(command)
    return out if status == 0 else f"exit status {status}\n{out}{err}"


Golden = dict[str, tuple[Callable[[str], Answer], list[str]]]

ANSWERS: dict[str, Callable[[str], Answer]] = {
    "graphs": graph_answer,
    "sweep": sweep_answer,
    "help": help_answer,
}
"""Golden files that hold something else than what `--json` prints."""

GOLDEN: Golden = {
    name: (ANSWERS.get(name, json_answer), commands)
    for name, commands in {**listed_commands(), "graphs": graph_commands()}.items()
}
"""For each golden file, the function that answers its command lines, and the command lines."""


def path_of(name: str) -> Path:
    return HERE / ("help.txt" if name == "help" else f"{name}.json")


def rounded(answer: Answer) -> Answer:
    """An answer with 12 significant digits, so that another machine writes the same file."""
    if isinstance(answer, float):
        return float(f"{answer:.12g}")
    if isinstance(answer, dict):
        return {key: rounded(one) for key, one in answer.items()}
    if isinstance(answer, list):
        return [rounded(one) for one in answer]
    return answer


def freeze(name: str) -> None:
    """Compute one golden file's answers and write them."""
    answer, commands = GOLDEN[name]
    answers = {command: rounded(answer(command)) for command in commands}
    if name == "help":
        text = "".join(f"$ kvoverlap {command}\n{one}" for command, one in answers.items())
    else:
        rows = (f"{json.dumps(command)}: {json.dumps(one)}" for command, one in answers.items())
        text = "{\n" + ",\n".join(rows) + "\n}\n"
    path_of(name).write_text(text, encoding="utf-8")


@cache
def frozen(name: str) -> dict[str, Answer]:
    """Answers of one golden file, by command line."""
    text = path_of(name).read_text(encoding="utf-8")
    if name != "help":
        return dict(json.loads(text))
    _, *parts = re.split(r"^\$ kvoverlap (.*)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def differences(before: Answer, now: Answer, where: str = "") -> list[str]:
    """Where two answers differ: numbers by more than 1e-9 of their value, all else at all."""
    if isinstance(before, dict) and isinstance(now, dict):
        found = [f"{where}.{key}: gone" for key in before if key not in now]
        found += [f"{where}.{key}: new" for key in now if key not in before]
        pairs = ((f"{where}.{key}", before[key], now[key]) for key in before if key in now)
    elif isinstance(before, list) and isinstance(now, list):
        found = [] if len(before) == len(now) else [f"{where}: {len(before)} -> {len(now)} long"]
        pairs = (
            (f"{where}[{at}]", *both) for at, both in enumerate(zip(before, now, strict=False))
        )
    else:
        return [] if same(before, now) else [f"{where}: {before!r} -> {now!r}"]
    return found + [one for place, *both in pairs for one in differences(*both, place)]


def same(before: Answer, now: Answer) -> bool:
    if isinstance(before, float) and isinstance(now, float):
        return math.isclose(before, now, rel_tol=1e-9, abs_tol=1e-12)
    return type(before) is type(now) and bool(before == now)


if __name__ == "__main__":
    for name in sys.argv[1:] or GOLDEN:
        freeze(name)
