"""Downloads: tables as CSV and Parquet; profiles and traces as the command writes them."""

from __future__ import annotations

import gzip
import io
import json
import tempfile
from pathlib import Path

import pandas as pd

from planner import Plan
from sim.graph.timeline import Timeline
from sim.machine.profile import HardwareProfile
from sim.results.trace import trace_document


def csv_bytes(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False).encode()


def parquet_bytes(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()


def saved_bytes(document: HardwareProfile | Plan) -> bytes:
    """A profile or a plan as the command line writes it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "document.json"
        document.save(path)
        return path.read_bytes()


def trace_bytes(timeline: Timeline, title: str) -> bytes:
    """The timeline as a gzipped Chrome trace, as `kvoverlap simulate --trace` writes it."""
    return gzip.compress(json.dumps(trace_document(timeline, title)).encode(), mtime=0)
