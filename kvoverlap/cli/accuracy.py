"""`kvoverlap accuracy`: predict every recording again, and gate on the errors."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kvoverlap.cli.options import Json, OutputFile
from kvoverlap.cli.output import annotate, markdown_table, print_json, progress, say, table
from kvoverlap.cli.published import print_published, published_markdown
from planner.published import assess_published
from planner.published.accuracy import PublishedAccuracy
from sim.catalog import RECORDINGS, find_hardware
from sim.errors import BadInput
from sim.files import write_bytes
from sim.results.accuracy import Accuracy, assess
from sim.units import ms, percent

SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"
COLUMNS = (
    "case",
    "predicted",
    "measured",
    "error",
    "tolerance",
    "spread",
    "overlap",
    "exposed copy",
    "forced",
    "max()",
    "",
)


def accuracy(
    *,
    recordings: Annotated[Path, Parameter(show_default=False)] = RECORDINGS,
    hardware: str | None = None,
    gate: bool = False,
    published: Annotated[bool, Parameter(negative="")] = False,
    markdown: OutputFile | None = None,
    json: Json = False,
) -> int:
    """Predict every recording again and show the error of every case.

    A recording holds measured timelines with their graph and machine, never a
    prediction. With --gate the exit status is 1 if any case exceeds its tolerance
    or cannot be read.

    For example:
      kvoverlap accuracy
      kvoverlap accuracy --gate --markdown accuracy.md
      kvoverlap accuracy --recordings runs/latest --json
      kvoverlap accuracy --recordings data/recordings/h100-pcie5 \\
          --hardware h100-sxm+pcie5-x16
      kvoverlap accuracy --published --gate

    Parameters
    ----------
    recordings
        A recording, or a folder of several; by default the shipped ones.
    hardware
        Predict with this machine, by name or path, instead of the one that was profiled with each
        recording: how far off is a machine that nobody measured?
    gate
        Exit with status 1 unless every case is within its tolerance.
    published
        Predict the figures that others published instead, and show the error by source. A figure
        that gave a constant does not count. With --gate a figure beyond its tolerance needs an
        explanation in data/published/measurements.csv.
    markdown
        Write the table here as Markdown; on GitHub it also goes to the job's summary.
    """
    if published:
        if recordings != RECORDINGS:
            raise BadInput(
                f"--recordings(={recordings}) are measured runs and --published are figures of "
                "others; give one of them."
            )
        if hardware is not None:
            raise BadInput(
                f"--hardware(={hardware}) predicts recordings, and the figures of --published name "
                "their machines; give one of them."
            )
        return _published(gate, markdown, json)
    found = assess(recordings, None if hardware is None else find_hardware(hardware))
    _write_markdown(as_markdown(found), markdown)
    return _report(found, faults(found), lambda: print_accuracy(found), gate, json)


def _published(gate: bool, markdown: Path | None, json: bool) -> int:
    with progress("accuracy") as steps:
        found = assess_published(progress=steps)
    _write_markdown(published_markdown(found), markdown)
    return _report(found, found.faults, lambda: print_published(found), gate, json)


def _report(
    found: Accuracy | PublishedAccuracy,
    reasons: Sequence[str],
    show: Callable[[], None],
    gate: bool,
    json: bool,
) -> int:
    """Print what was found, with an annotation for each reason to fail; returns the exit status."""
    for reason in reasons:
        annotate("kvoverlap accuracy", reason)
    if json:
        print_json(found.to_dict())
    else:
        show()
        if gate:
            say(f"gate: {'passed' if found.passed else 'FAILED'}")
    return 1 if gate and not found.passed else 0


def _write_markdown(text: str, path: Path | None) -> None:
    """Write the report to a file, and on GitHub to the job's summary."""
    if path is not None:
        write_bytes(path, text.encode())
    summary = os.environ.get(SUMMARY_VARIABLE)
    if summary:
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(text)


def faults(found: Accuracy) -> list[str]:
    """One sentence for each case that is out of tolerance or cannot be read."""
    return [*(case.reason for case in found.cases if not case.passed), *found.unreadable]


def print_accuracy(found: Accuracy) -> None:
    """Every case with its errors, then the medians over all cases."""
    if found.cases:
        table("errors: predicted - measured", COLUMNS, rows(found))
        say("")
        say("overlap in points, exposed copy in time; forced: given the measured task times;")
        say("max(): what max(copy, compute) would have predicted instead")
        say("; ".join(over_all(found)))
    for fault in faults(found):
        say(fault)
    for case in found.cases:
        if case.missed:
            say(f"case {case.name} misses its overlap target: {case.missed}")


def rows(found: Accuracy) -> list[tuple[str, ...]]:
    return [
        (
            case.name,
            ms(case.predicted_makespan_s),
            ms(case.measured_makespan_s),
            percent(case.makespan_error_frac, signed=True),
            percent(case.tolerance_frac),
            percent(case.spread_frac),
            f"{case.overlap_error_points:+.1f}",
            ms(case.exposed_copy_error_s),
            percent(case.teacher_forced_error_frac, signed=True),
            percent(case.naive_error_frac, signed=True),
            "OUT" if not case.passed else "missed" if case.missed else "ok",
        )
        for case in found.cases
    ]


def over_all(found: Accuracy) -> list[str]:
    """The statistics over all cases, one phrase each."""
    ranks, n_missed = found.rank_agreement_frac, sum(bool(case.missed) for case in found.cases)
    return [
        f"{len(found.cases)} cases: median |error| {percent(found.median_abs_error_frac)}",
        f"90th percentile {percent(found.p90_abs_error_frac)}",
        f"max(copy, compute) {percent(found.median_naive_error_frac)}",
        f"order of policies predicted right in {'no pair' if ranks is None else percent(ranks)}",
        f"{sum(not case.passed for case in found.cases)} out of tolerance",
        *([f"{n_missed} known to miss the overlap target"] if n_missed else []),
        f"{len(found.unreadable)} unreadable",
    ]


def as_markdown(found: Accuracy) -> str:
    """The same report as a Markdown document."""
    lines = ["## Prediction accuracy", ""]
    if found.cases:
        lines += markdown_table(COLUMNS, rows(found))
        lines += ["", "; ".join(over_all(found)) + "."]
    lines += ["", *(f"- {fault}" for fault in faults(found))]
    return "\n".join(lines) + "\n"
