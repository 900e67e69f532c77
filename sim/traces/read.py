"""Opens a trace, whoever wrote it."""

from __future__ import annotations

import zlib
from pathlib import Path

from sim.errors import BadFile
from sim.progress import Progress, Silent
from sim.traces.chrome import read_chrome
from sim.traces.events import TraceEvents
from sim.traces.json_events import GZIP, GZIP_BITS
from sim.traces.nsight import read_csv, read_sqlite

SQLITE = b"SQLite format 3\0"
REPORTS = (".nsys-rep", ".qdrep", ".qdstrm")
"""Reports of Nsight Systems, which only its own programs open."""

HEAD_BYTES = 4096

TRACE_MARKS = (
    SQLITE,
    b'"traceEvents"',
    b'"schemaVersion"',
    b'"deviceProperties"',
    b'"ph":',
    b"Start (",
)
"""Texts in the first bytes of a trace, none of which begins a document of kvoverlap."""


def read_trace_file(path: Path | str, progress: Progress | None = None) -> TraceEvents:
    """The events of a trace file: Chrome JSON, plain or gzipped, or an export of Nsight Systems.

    A damaged file gives the events before the damage, and says so in `faults`.

    Raises:
        BadFile: absent, of another kind, or without a single event.
    """
    path, report = Path(path), progress or Silent()
    if path.suffix in REPORTS:
        raise BadFile(
            f"{path} is a report of Nsight Systems; export it: nsys export --type sqlite {path}."
        )
    head = document_head(path)
    if head.startswith(SQLITE):
        found = read_sqlite(path, report)
    elif b"Start (" in head and b"Duration (" in head and not head.lstrip().startswith(b"{"):
        found = read_csv(path, report)
    else:
        found = read_chrome(path, report)
    if not found.work and found.host is None:
        why = f" {' '.join(found.faults)}" if found.faults else ""
        raise BadFile(
            f"{path} has no kernel, no copy and no operator among its {found.n_events:,} events; "
            f"record with a profiler of the GPU, such as torch.profiler.{why}"
        )
    return found


def document_head(path: Path) -> bytes:
    """The first bytes, unpacked; none if the file cannot be read, which its reader reports."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        if head.startswith(GZIP):
            return zlib.decompressobj(GZIP_BITS).decompress(head, HEAD_BYTES)
        return head
    except (OSError, ValueError, zlib.error):
        return b""
