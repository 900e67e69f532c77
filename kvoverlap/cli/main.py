"""The `kvoverlap` command: its verbs and its exit status.

0: success. 1: a gate failed. 2: an expected failure, one sentence on stderr. 3: a defect.
130: interrupted by Ctrl-C.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from cyclopts import App, CycloptsError, Parameter

from kvoverlap.cli.output import err, fail, out
from sim.errors import KvOverlapError
from sim.files import VERSION

GARBAGE_THRESHOLD = 200_000
"""A long job has a million small objects that live until the end. Garbage collection among them
took a seventh of the planning time."""

UNWRITABLE = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EDQUOT)
"""Errors of a standard output whose reader or disk space is gone."""

EXTRA_OF = {
    **dict.fromkeys(("torch", "numpy", "safetensors", "tokenizers", "xxhash"), "hw"),
    **dict.fromkeys(("aiconfigurator_core", "pyarrow", "yaml"), "silicon"),
}
"""The extra that installs a package which a verb imports."""

VERBS = {
    "accuracy": (
        "accuracy:accuracy",
        "Predict every recording again and show the error of every case.",
    ),
    "advise": (
        "advise:advise_verb",
        "Recommend what to do with a KV cache: keep it, load, recompute, or split.",
    ),
    "compare": (
        "timelines:compare_verb",
        "Compare a predicted and a measured timeline of the same graph, task by task.",
    ),
    "doctor": (
        "doctor:doctor",
        "Check this machine before you trust a number measured on it.",
    ),
    "generate": (
        "generate:generate",
        "Continue prompts with a real model, greedily, under a plan.",
    ),
    "hardware": (
        "catalogue:hardware_app",
        "List shipped machines, devices and links, or show every figure of one.",
    ),
    "models": (
        "catalogue:models",
        "List the shipped models by family, or show what one model takes.",
    ),
    "peers": (
        "peers:peers",
        "Compare other systems with our plans on one job: step time, GB/s, tokens.",
    ),
    "plan": (
        "plan:plan",
        "Decide what to keep, load and recompute, and predict how long decoding takes.",
    ),
    "profile": (
        "devices:profile",
        "Measure this machine and write a hardware profile to plan with.",
    ),
    "record": (
        "record:record",
        "Record this machine: measure held-out plans, restores and other systems.",
    ),
    "reproduce": (
        "reproduce:reproduce",
        "Predict published two-ended restores, row by row, and show the error.",
    ),
    "restore": (
        "restore:restore",
        "Decide how to restore a cached prefix, and predict the time to the first token.",
    ),
    "run": (
        "devices:run",
        "Run a plan on a device with real tensors and measure when each task ran.",
    ),
    "simulate": (
        "timelines:simulate_verb",
        "Predict the timeline of a plan: when every load, recomputation and layer runs.",
    ),
    "sweep": (
        "sweep:sweep",
        "Plan every point of a study, in parallel, and write one table.",
    ),
    "trace": (
        "trace:trace",
        "Measure overlap in the trace of any program: copies, kernels, idle time.",
    ),
    "traffic": (
        "traffic:traffic",
        "Show what a KV cache brings under the requests of a trace, or generate one.",
    ),
    "validate": (
        "validate:validate",
        "Measure the prediction errors on this machine: the whole loop in one command.",
    ),
}
"""Module in `kvoverlap.cli` and function of each verb, and its line in `kvoverlap --help`.

Only the module of the verb that runs is imported. A test compares the lines with the functions'
docstrings.
"""


def shown_default(value: Any) -> str | None:
    """Default as help shows it; None hides a default that says nothing."""
    return None if value is None or value is False or value == () else str(value)


def command_line(arguments: Sequence[str]) -> App:
    """The parser of `arguments`, which loads the verb that they name."""
    app = App(
        name="kvoverlap",
        help=(
            "Decide what to load and what to recompute when a KV cache does not fit the GPU.\n\n"
            "It predicts the timeline, runs the identical plan, and compares the two."
        ),
        version=VERSION,
        help_epilogue=(
            "Start with `kvoverlap validate`: the whole loop on this machine. Then plan ->\n"
            "simulate -> run -> compare; each reads the file that the previous one wrote."
        ),
        help_format="plaintext",
        default_parameter=Parameter(negative="", show_default=shown_default),
        console=out,
        error_console=err,
        suppress_keyboard_interrupt=False,
    )
    for verb, (place, line) in VERBS.items():
        # A line given here would replace the whole description of the verb in its own help.
        short = {} if verb in arguments else {"help": line}
        app.command(f"kvoverlap.cli.{place}", name=verb, **short)
    return app


def main(
    arguments: Sequence[str] | None = None, interrupted: Callable[[], bool] = lambda: False
) -> int:
    """Run the command line; returns the exit status.

    Args:
        interrupted: whether Ctrl-C was pressed; some libraries turn it into an error of their own.
    """
    gc.set_threshold(GARBAGE_THRESHOLD)
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        result = command_line(given)(
            given, exit_on_error=False, print_error=False, result_action="return_value"
        )
        sys.stdout.flush()
    except CycloptsError as error:
        fail(" ".join(str(error).split()) + " Try `kvoverlap --help`.")
        return 2
    except KvOverlapError as error:
        fail(str(error))
        return 2
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_OF:
            raise
        fail(
            f"{package.replace('_', '-')} is not installed; this verb needs it: pip install "
            f"'kvoverlap[{EXTRA_OF[package]}]'."
        )
        return 2
    except KeyboardInterrupt:
        fail("interrupted.")
        return 130
    except Exception as error:
        if interrupted():
            fail("interrupted.")
            return 130
        if os.environ.get("KVOVERLAP_TRACEBACK"):
            raise
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            return _discard_output(error)
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            fail(f"{error.filename} is too long for the name of a file.")
            return 2
        fail(
            f"this is a defect in kvoverlap: {type(error).__name__}: {error}. Set "
            "KVOVERLAP_TRACEBACK=1 to see where, and report it."
        )
        return 3
    return result if isinstance(result, int) else 0


def _discard_output(error: OSError) -> int:
    """End quietly if the reader of stdout has gone, with a sentence if its disk is full."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno != errno.EPIPE:
        fail(f"cannot write standard output: {error.strerror}; write it to another place.")
    return 2


if __name__ == "__main__":
    sys.exit(main())
