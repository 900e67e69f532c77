"""A batch of points of a study, computed in one process."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from planner.sweep.rows import ROW_OF
from planner.sweep.study import Point
from planner.sweep.table import ERROR, POINT, PROVENANCE, encode
from sim.errors import KvOverlapError, Mismatch
from sim.files import VERSION

GARBAGE_THRESHOLD = 200_000
"""Allocations between garbage collections; a point's many small objects live until its row ends."""


@dataclass(frozen=True)
class Batch:
    """Consecutive points and everything that a worker needs to compute their rows.

    Args:
        first: number of the first point.
        points: values in the order of `inputs`.
        version: of the program that made the batch; a worker must run the same one.
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


def batch_rows(batch: Batch) -> bytes:
    """The rows of a batch as a Parquet file; a point that fails has its reason in `error`.

    Raises:
        Mismatch: this process runs another version of the program than the sweep.
    """
    if batch.version != VERSION:
        raise Mismatch(
            f"a worker runs kvoverlap {VERSION} and the sweep {batch.version}; install the same."
        )
    gc.set_threshold(GARBAGE_THRESHOLD)
    rows = []
    for number, point in enumerate(batch.points, start=batch.first):
        values = dict(zip(batch.inputs, point, strict=True))
        stamp = dict(zip(PROVENANCE, (VERSION, batch.study_sha256), strict=True))
        rows.append({POINT: number, **values, **point_row(batch.scenario, values), **stamp})
    return encode(batch.columns, rows)


def point_row(scenario: str, values: dict[str, Any]) -> dict[str, Any]:
    """Outputs of one point, or its error."""
    try:
        return {**ROW_OF[scenario](values), ERROR: ""}
    except KvOverlapError as error:
        return {ERROR: f"{type(error).__name__}: {error}"}
    except Exception as error:  # one point must not end a sweep of a million
        return {ERROR: f"this is a defect in kvoverlap: {type(error).__name__}: {error}"}
