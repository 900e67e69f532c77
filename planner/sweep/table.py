"""The table of a sweep: columns, units and provenance."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from planner.sweep.inputs import SCENARIOS
from planner.sweep.rows import OUTPUTS
from planner.sweep.study import Study
from sim.files import VERSION

POINT, ERROR = "point", "error"
"""Columns: a point's number in its study, and why it failed (else empty)."""

PROVENANCE = ("kvoverlap_version", "study_sha256")
METADATA_KEY = b"kvoverlap"
GROUP_ROWS = 65_536

_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def schema(study: Study) -> pa.Schema:
    """Columns of a study's rows: the point, its inputs in SI units, outputs, error, provenance."""
    known = {**study.fixed, **{key: axis[0] for key, axis in study.varied.items()}}
    units = {key: {"unit": one.unit} for key, one in SCENARIOS[study.scenario].items()}
    inputs = [pa.field(key, _TYPES[type(known[key])], metadata=units[key]) for key in study.inputs]
    outputs = [pa.field(key, _TYPES[kind]) for key, kind in OUTPUTS[study.scenario].items()]
    texts = [pa.field(name, pa.string()) for name in (ERROR, *PROVENANCE)]
    return pa.schema([pa.field(POINT, pa.int64()), *inputs, *outputs, *texts])


def encode(columns: pa.Schema, rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as a Parquet file."""
    return to_bytes(pa.Table.from_pylist(rows, schema=columns))


def to_bytes(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd", row_group_size=GROUP_ROWS)
    return file.getvalue()


def with_provenance(table: pa.Table, study: Study) -> pa.Table:
    """The table with the study and the program's version in its metadata."""
    content = {
        "kind": "sweep",
        "kvoverlap_version": VERSION,
        "study_sha256": study.sha256,
        "title": study.title,
        "scenario": study.scenario,
        "fixed": dict(study.fixed),
        "grid": {key: list(values) for key, values in study.grid.items()},
        "zip": {key: list(values) for key, values in study.zipped.items()},
        "where": {one.key.partition(".")[2]: one.text for one in study.filters},
        "points": table.num_rows,
    }
    return table.replace_schema_metadata({METADATA_KEY: json.dumps(content).encode()})


def provenance(columns: pa.Schema) -> dict[str, Any] | None:
    """Metadata of a sweep's table, or None if it has none."""
    text = (columns.metadata or {}).get(METADATA_KEY)
    try:
        content = None if text is None else json.loads(text)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
