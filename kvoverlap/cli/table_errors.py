"""Printing how well each table of a profile predicts its own inner points."""

from collections.abc import Sequence

from kvoverlap.cli.output import say, table
from sim.machine.provenance import TableErrors
from sim.units import percent

NAMES = {
    "gemm": "matrix products",
    "gemm_8bit": "matrix products, 8-bit weights",
    "attention": "decode attention",
    "prefill": "prefill attention",
    "h2d": "h2d link, over bytes",
    "d2h": "d2h link, over bytes",
    "host": "host copies, over bytes",
    "elementwise": "element-wise kernels, over bytes",
}


def print_table_errors(report: Sequence[TableErrors]) -> None:
    """The leave-one-out errors of a profile, kind by kind."""
    if not report:
        say("The profile has no table with an inner point, so there is nothing to check.")
        return
    rows = [
        (
            NAMES[errors.kind],
            str(errors.points),
            percent(errors.median_abs_error_frac),
            percent(errors.p90_abs_error_frac),
            percent(errors.max_abs_error_frac),
            f"{errors.worst} ({percent(errors.worst_error_frac, signed=True)})",
        )
        for errors in report
    ]
    title = "Each inner point of a table, predicted from its neighbours"
    table(title, ("table", "points", "median |error|", "90 % within", "worst", "which"), rows)
