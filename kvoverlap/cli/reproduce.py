"""`kvoverlap reproduce`: published restore measurements against the prediction."""

import csv
import io
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from kvoverlap.cli.options import Engine, Json, OutputFile, installed_engine
from kvoverlap.cli.output import print_json, say, table
from planner.restore.reproduce import (
    COLUMNS,
    SPEEDUPS,
    Reproduced,
    error_summary,
    read_cases,
    reproduce_case,
)
from sim.files import write_bytes
from sim.units import ms, percent


def reproduce(
    table_file: Path,
    *,
    engine: Engine = "simpy",
    output: Annotated[
        OutputFile | None,
        Parameter(
            name=["--output", "-o"], help="Write the rows with predictions and errors here, as CSV."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Predict published two-ended restores, row by row, and show the error.

    Each row names hardware, model, prompt length, chunk, GPU share, link and KV
    bits. The answer is the speedup of computing and loading at once over loading
    only and over computing only. Hardware figures are fitted to a few constants of
    the paper, never to a row.

    For example:
      kvoverlap reproduce data/published/cake_table3_a100.csv
      kvoverlap reproduce cases.csv --json -o predicted.csv

    Parameters
    ----------
    table_file
        A CSV file with the columns of data/published/cake_table3_a100.csv; the last two, the
        reported speed-ups, may be absent.
    """
    chosen = installed_engine(engine)
    results = [reproduce_case(case, chosen) for case in read_cases(table_file)]
    rows = [_row(one) for one in results]
    if output is not None:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_bytes(output, text.getvalue().encode())
    summary = error_summary(results)
    if json:
        print_json({"cases": len(rows), "errors": summary, "rows": rows})
        return
    _print_rows(results)
    for name, errors in summary.items():
        say(
            f"{name}: mean |error| {percent(errors['mean_abs_error_frac'])}, worst "
            f"{percent(errors['max_abs_error_frac'])}"
        )
    losses = sum(min(one.speedups.values()) < 1.0 for one in results)
    if losses:
        say(f"in {losses} of {len(results)} rows two-ended is slower than one way alone")


def _row(one: Reproduced) -> dict[str, Any]:
    """The row as it was read, with predictions and errors; null where nothing was reported."""
    row: dict[str, Any] = {name: getattr(one.case, name) for name in COLUMNS}
    row |= {"ttft_s": one.two_ended_s, "load_only_s": one.load_only_s}
    row["compute_only_s"] = one.compute_only_s
    for name in SPEEDUPS:
        row[name] = one.speedups[name]
        row[f"reported_{name}"] = one.case.reported.get(name)
        row[f"error_{name}_frac"] = one.errors.get(name)
    return row


def _print_rows(results: list[Reproduced]) -> None:
    rows = []
    for one in results:
        case = one.case
        cells = [
            f"{case.hardware} {case.model}",
            f"{case.prompt_tokens:,}",
            f"{100 * case.gpu_share:g} %",
            f"{case.link_gbps:g}",
            str(case.kv_bits),
            ms(one.two_ended_s),
        ]
        for name in SPEEDUPS:
            error = one.errors.get(name)
            cells += [
                f"{one.speedups[name]:.2f}",
                "" if error is None else percent(error, signed=True),
            ]
        rows.append(cells)
    columns = ("case", "tokens", "GPU", "Gbps", "KV bits", "TTFT", "x load", "", "x compute", "")
    table("Two-ended restore", columns, rows)
