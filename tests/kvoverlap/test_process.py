"""The command as a process: interrupts, closed and full outputs, exit statuses."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import kvoverlap

COMMAND = (sys.executable, "-m", "kvoverlap")
PLAN = ["plan", "--model", "opt-125m", "--hardware", "kvpr-a100", "--batch", "2", "--prompt", "64"]
LIST = ["models"]
MOMENTS_S = (*(at / 40 for at in range(12)), 0.7)
"""When Ctrl-C is pressed: all through the first 0.3 s of a process, and while it plans."""


@pytest.mark.parametrize("after_s", MOMENTS_S)
def test_ctrl_c_at_any_moment_ends_with_130_and_no_traceback(after_s):
    many_steps = [*PLAN[:-1], "1500", "--gen", "400"]
    process = subprocess.Popen(
        [*COMMAND, *many_steps],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background
    )
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    if process.returncode != 130:  # Python itself was still starting
        assert process.returncode in (1, -signal.SIGINT)
        assert str(Path(kvoverlap.__file__).parent) not in stderr
    else:
        assert "Traceback" not in stderr


def test_nothing_is_imported_before_ctrl_c_is_expected():
    check = (
        "import sys; before = set(sys.modules); import kvoverlap.__main__;"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["__future__", "kvoverlap", "kvoverlap.__main__"]


@pytest.mark.parametrize(
    ("shell", "verb", "status", "says"),
    [
        ("{} >&-", LIST, 0, ""),
        ("{} > /dev/full", LIST, 2, "cannot write standard output: No space left on device"),
        ("{} --json > /dev/full", LIST, 2, "cannot write standard output: No space left on device"),
        ("set -o pipefail; {} --json | true", LIST, 2, ""),
        ("{} -o /dev/stdout > /dev/null", PLAN, 0, ""),
    ],
)
def test_a_closed_or_full_output_ends_in_one_sentence_at_most(shell, verb, status, says):
    line = shell.format(" ".join([*COMMAND, *verb]))
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert says in done.stderr
    assert len(done.stderr.splitlines()) <= (1 if says else 0) + done.stderr.count("note:")


SMALL = ["--model", "opt-125m", "--hardware", "kvpr-a100", "--prompt", "64"]
FILES = {"gzip", "tomllib", "pydantic", "rich", "torch", "pyarrow", "numba"}
LP = {"pulp", "highspy", "numpy"}
OTHER_VERBS = {"hw", "measure", "planner.sweep", "sim.service", "sim.traces"}
DEVICES = {"kvoverlap.cli.device_options"}


@pytest.mark.parametrize(
    ("line", "unneeded"),
    [
        (["--help"], FILES | LP | {"simpy", "cyclopts", "planner", "sim.model.spec"}),
        (["models"], FILES | LP | {"simpy", "cyclopts", "planner", "statistics"}),
        (
            ["restore", *SMALL],
            FILES | LP | OTHER_VERBS | DEVICES | {"planner.decode", "statistics"},
        ),
        (
            ["plan", *SMALL, "--batch", "2"],
            FILES | OTHER_VERBS | DEVICES | {"simpy", "planner.restore.plan", "planner.advice"},
        ),
        (["advise", *SMALL, "--batch", "2"], {"torch", "pyarrow", "pydantic", "rich", "numba"}),
    ],
)
def test_a_verb_loads_only_what_it_needs(line, unneeded):
    check = (
        f"import sys; from kvoverlap.cli.main import main; main({line});"
        f"print('loaded', *{unneeded} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "loaded"
