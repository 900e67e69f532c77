"""Availability traces as a table, as text in the page's address, and as a file for the command.

In the address a trace is `0.4:net=0.25;0.9:net=1,compute=0.5`: from 0.4 s on a quarter of the
network's rate, from 0.9 s on its whole rate and half of the GPU. A lane without an entry is
fully available.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, isnan, log10

import pandas as pd

from sim.errors import BadInput
from sim.machine.availability import ALWAYS, Availability, Step

START = "start_s"
MAX_ROWS = 16
"""Largest number of rows; planning under a trace of so many takes some seconds."""

DROPPED_TO = 0.25
"""Fraction of the slow lane's rate that the example trace leaves."""


def example_trace(ttft_s: float, lane: str) -> Availability:
    """A drop of one lane after about a quarter of a restore."""
    start_s = ttft_s / 4
    digits = 1 - floor(log10(start_s))
    return Availability((Step(round(start_s, digits), ((lane, DROPPED_TO),)),))


def trace_text(trace: Availability) -> str:
    """The trace as text in the address; empty for none."""
    return ";".join(
        f"{step.start_s:.12g}:" + ",".join(f"{lane}={part:.12g}" for lane, part in step.fractions)
        for step in trace.steps
    )


def read_trace_text(text: str) -> Availability:
    """The trace that `trace_text` wrote.

    Raises:
        BadInput: the text is not a trace, or the trace is invalid.
    """
    steps = []
    for row in filter(None, text.split(";")):
        start, _, rest = row.partition(":")
        pairs = [pair.partition("=") for pair in filter(None, rest.split(","))]
        try:
            fractions = tuple((lane, float(part)) for lane, _, part in pairs)
            steps.append(Step(float(start), fractions))
        except ValueError:
            raise BadInput(
                f"trace(={text[:80]}) must be spelt as in 0.4:net=0.25;0.9:net=1."
            ) from None
    return _short(Availability(tuple(steps)))


def _short(trace: Availability) -> Availability:
    if len(trace.steps) > MAX_ROWS:
        raise BadInput(f"a trace of {len(trace.steps)} rows is too long here; {MAX_ROWS} is most.")
    return trace


def trace_table(trace: Availability, lanes: Sequence[str]) -> pd.DataFrame:
    """The trace for the editor: a row for each step, a column for each lane."""
    rows = [
        [step.start_s, *(dict(step.fractions).get(lane, 1.0) for lane in lanes)]
        for step in trace.steps
    ]
    return pd.DataFrame(rows, columns=[START, *lanes], dtype=float)


def trace_of_table(table: pd.DataFrame) -> Availability:
    """The trace of an edited table, by rising time.

    Rows without a time are ignored; an empty fraction is 1.

    Raises:
        BadInput: two rows have the same time, or a value is invalid.
    """
    rows = sorted(
        (row for row in table.to_dict("records") if not isnan(_number(row[START], float("nan")))),
        key=lambda row: float(row[START]),
    )
    lanes = [lane for lane in table.columns if lane != START]
    steps = []
    for row in rows:
        parts = ((lane, _number(row[lane], 1.0)) for lane in lanes)
        changed = tuple((lane, part) for lane, part in parts if part != 1)
        steps.append(Step(float(row[START]), changed))
    return _short(Availability(tuple(steps)))


def _number(value: object, empty: float) -> float:
    number = float(value) if isinstance(value, (int, float)) else float("nan")
    return empty if isnan(number) else number


def trace_csv(trace: Availability, lanes: Sequence[str]) -> bytes:
    """The trace as `--availability` reads it."""
    return trace_table(trace, lanes).to_csv(index=False).encode()


def describe_trace(trace: Availability) -> str:
    """The trace in one phrase."""
    if trace == ALWAYS:
        return "the whole machine all the time"
    phrases = []
    for step in trace.steps:
        parts = [f"{100 * part:g} % of {lane}" for lane, part in step.fractions if part != 1]
        phrases.append(f"from {step.start_s:g} s on {' and '.join(parts) or 'the whole machine'}")
    return ", ".join(phrases)
