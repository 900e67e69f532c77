"""A few points of a study, answered in whichever process takes them."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from planner.sweep.rows import ANSWERS
from planner.sweep.study import Point
from planner.sweep.table import ERROR, POINT, PROVENANCE, encode
from sim.errors import KvOverlapError, Mismatch
from sim.files import VERSION

GARBAGE_THRESHOLD = 200_000
"""A point makes thousands of small objects that live until its row is there."""


@dataclass(frozen=True)
class Batch:
    """Points next to each other, with all that answering them takes.

    Args:
        first: number of the first point; the others follow.
        points: values in the order of `inputs`.
        version: of the program that asks; another one's answers may differ.
    """

    scenario: str
    inputs: tuple[str, ...]
    columns: pa.Schema
    study_sha256: str
    first: int
    points: Sequence[Point]
    version: str = VERSION

    @property
    def last(self) -> int:
        return self.first + len(self.points) - 1


def answer_batch(batch: Batch) -> bytes:
    """The rows of a batch as a Parquet file; a point that has no answer has an error.

    Raises:
        Mismatch: this process runs another version than the one that asks.
    """
    if batch.version != VERSION:
        raise Mismatch(
            f"a worker runs kvoverlap {VERSION} and the sweep {batch.version}; install the same."
        )
    gc.set_threshold(GARBAGE_THRESHOLD)
    rows = []
    for number, point in enumerate(batch.points, start=batch.first):
        values = dict(zip(batch.inputs, point, strict=True))
        row = answer(batch.scenario, values)
        stamp = dict(zip(PROVENANCE, (VERSION, batch.study_sha256), strict=True))
        rows.append({POINT: number, **values, **row, **stamp})
    return encode(batch.columns, rows)


def answer(scenario: str, values: dict[str, Any]) -> dict[str, Any]:
    """Outputs of one point, or its error."""
    try:
        return {**ANSWERS[scenario](values), ERROR: ""}
    except KvOverlapError as error:
        return {ERROR: f"{type(error).__name__}: {error}"}
    except Exception as error:  # one point must not end a million
        return {ERROR: f"this is a defect in kvoverlap: {type(error).__name__}: {error}"}
