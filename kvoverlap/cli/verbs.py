"""The verbs of the command line, and what `kvoverlap --help` prints about them."""

from __future__ import annotations

import textwrap

ABOUT = (
    "Decide what to load and what to recompute when a KV cache does not fit the GPU.\n\n"
    "It predicts the timeline, runs the identical plan, and compares the two."
)
EPILOGUE = (
    "Start with `kvoverlap validate`: the whole loop on this machine. Then plan ->\n"
    "simulate -> run -> compare; each reads the file that the previous one wrote."
)

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

FLAGS = {
    "--help (-h)": "Display this message and exit.",
    "--version": "Display application version.",
}


def overview(columns: int) -> str:
    """All verbs in a frame, like the help of each verb."""
    entries = {verb: line for verb, (_, line) in VERBS.items()} | FLAGS
    name_width = max(map(len, entries))
    text_width = max(20, columns - name_width - 6)
    lines = []
    for name, line in entries.items():
        first, *others = textwrap.wrap(line, text_width, break_on_hyphens=False)
        lines.append(f"{name:{name_width}}  {first}")
        lines += [" " * (name_width + 2) + other for other in others]
    inside = name_width + text_width + 2
    frame = [
        f"╭─ Commands {'─' * (inside - 9)}╮",
        *(f"│ {line:{inside}} │" for line in lines),
        f"╰{'─' * (inside + 2)}╯",
    ]
    return "\n".join(["Usage: kvoverlap COMMAND", "", ABOUT, "", *frame, "", EPILOGUE])
