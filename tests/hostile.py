"""Extreme values of every option of every verb: `python tests/hostile.py` runs all of them,
`python tests/hostile.py plan` those of one verb.

Each case is one command line with one wrong or extreme value, run in this process with a time
limit. Its exit status must be 0, 1 or 2, status 2 comes with one sentence, and the working folder
holds only outputs that the command line names.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from kvoverlap.cli.main import main

CPU_LIMIT_S, LIMIT_S = 20, 120
"""Seconds until a command line counts as endless; the second for one that waits."""

VALUES = (
    *("", " ", "-1", "0", "0.5", "1e30", "nan", "-inf", "1e-300", "9" * 400, "1,,2", "1K2"),
    *("nonsense", "true", "{}", "\u0661\u0662", "\uff11\uff12", "a\nb", "a\0b", "../..", "=", "'"),
)
JOB = "--model opt-125m --hardware h100 --prompt 64"
OPTIONS = {
    f"plan {JOB} --batch 2": "model dtype hardware set gpu-memory host-memory batch prompt kv-bits "
    "gen n-batches policy schedule gpus engine",
    f"restore {JOB}": "model dtype hardware set gpu-memory host-memory prompt cached tier chunk "
    "io-chunk cached-data gpu-share kv-bits policy availability others engine",
    f"advise {JOB} --batch 2": "set gpu-memory host-memory batch prompt kv-bits slo-ms engine",
    "sweep pcie-crossover --dry-run": "executor address jobs",
    "simulate absent.json": "engine plan-out trace output",
    "compare absent.json absent.json": "gate",
    "run absent.json": "device repeats seed cache availability",
    "accuracy": "recordings",
    "reproduce absent.csv": "engine output",
    "profile --output p.json --model absent --device absent": "output model device link",
    "record --out r --models absent --device absent --minutes 0.001": "out models scenario minutes "
    "repeats seed device link pack",
    "validate --out v --model absent --device absent": "out model scenario batches prompts gen "
    "n-batches schedule kv-bits repeats seed device link gate",
    "doctor --device absent": "device out",
    "peers --model absent --device absent --batch 1 --prompt 8 --gen 1": "model hardware batch "
    "prompt gen repeats seed device",
    "traffic --generate 9 --output t.jsonl": "generate rate burstiness turns think agents "
    "system-prompts system-tokens new-tokens output-tokens seed output",
    "traffic absent.jsonl --hit-rates": "block-tokens blocks sizes eviction model dtype kv-bits",
    "traffic absent.jsonl --model opt-125m --hardware h100": "sizes host-cache ssd-cache net-cache "
    "policy load-order cache-eviction store instances routing chunk io-chunk max-batch kv-bits "
    "ttft-slo tpot-slo gpu-hour gb-month tp set gpu-memory",
    "generate --weights absent --max-new-tokens 2 --prompt a": "weights max-new-tokens prompt "
    "prompt-ids plan policy hardware dtype device link warm-ups output trace",
}
"""A command line, and its options that take each of `VALUES`. Of the verbs that measure, another
option is wrong too, so that nothing is measured."""


def cases() -> Iterator[list[str]]:
    """Every command line; the wrong value replaces the valid one."""
    for start, options in OPTIONS.items():
        for option in options.split():
            for value in VALUES:
                words = start.split()
                if f"--{option}" in words:
                    at = words.index(f"--{option}")
                    del words[at : at + 2]
                yield [*words, f"--{option}={value}"]


def fault(words: list[str]) -> str | None:
    """What is wrong with the answer to a command line; None if nothing is."""

    def late(*_: object) -> None:
        raise TimeoutError(f"no end in {CPU_LIMIT_S} s of CPU or {LIMIT_S} s")

    said, shown = io.StringIO(), io.StringIO()
    before = set(os.listdir())
    for kind in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(kind, late)
    signal.alarm(LIMIT_S)
    signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S)
    try:
        with redirect_stderr(said), redirect_stdout(shown):
            status = main(words)
    except BaseException as error:
        return f"raises {type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
    errors = [line for line in said.getvalue().splitlines() if line.startswith("error: ")]
    if status not in (0, 1, 2):
        return f"status {status}: {said.getvalue()}"
    if status == 2 and (len(errors) != 1 or "Traceback" in said.getvalue()):
        return f"no single sentence: {said.getvalue()}"
    left = set(os.listdir()) - before
    return f"leaves {left}" if left and status else None


def faults(chosen: list[list[str]]) -> list[str]:
    """The faults of some command lines, run in an empty folder."""
    found = []
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        for words in chosen:
            if (wrong := fault(words)) is not None:
                found.append(f"{' '.join(words)[:200]!r}: {wrong[:300]}")
    return found


if __name__ == "__main__":
    verbs = sys.argv[1:]
    every = [words for words in cases() if not verbs or words[0] in verbs]
    begun_s = time.monotonic()
    wrong = faults(every)
    took = f"{len(every)} cases, {len(wrong)} faults, {time.monotonic() - begun_s:.0f} s"
    sys.stdout.write("\n".join([*wrong, took, ""]))
    sys.exit(bool(wrong))
