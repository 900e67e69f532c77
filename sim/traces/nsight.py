"""Exports of Nsight Systems: the SQLite database, and the CSV of the report cuda_gpu_trace.

Tables, columns and enumerations: "SQLite Schema Reference" and "cuda_gpu_trace" in the Nsight
Systems documentation. Times are nanoseconds unless a CSV column names another unit.
"""

from __future__ import annotations

import csv
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sim.errors import BadFile
from sim.progress import Progress
from sim.traces.events import (
    KERNEL,
    MEMSET,
    GpuWork,
    StepMark,
    TraceEvents,
    chosen_steps,
    copy_kind,
    host_memory,
    printable,
    step_rank,
)

COPIES, KERNELS = "CUPTI_ACTIVITY_KIND_MEMCPY", "CUPTI_ACTIVITY_KIND_KERNEL"
SETS, GRAPHS = "CUPTI_ACTIVITY_KIND_MEMSET", "CUPTI_ACTIVITY_KIND_GRAPH_TRACE"
CALLS, RANGES, STRINGS = "CUPTI_ACTIVITY_KIND_RUNTIME", "NVTX_EVENTS", "StringIds"
GPUS = "TARGET_INFO_GPU"

DIRECTIONS = {
    1: "HtoD",
    2: "DtoH",
    3: "HtoA",
    4: "AtoH",
    5: "AtoA",
    6: "AtoD",
    7: "DtoA",
    8: "DtoD",
    9: "HtoH",
    10: "PtoP",
    11: "HtoD",
    12: "DtoH",
    13: "DtoD",
}
"""copyKind; from 11 on the copies of unified memory."""

MEMORIES = {0: "Pageable", 1: "Pinned", 2: "Device", 3: "Array", 4: "Managed", 6: "Managed"}
"""srcKind and dstKind."""

PROCESS_BITS = 24
"""Bits below the process in globalTid and globalPid."""

UNIT_NS = {"ns": 1.0, "us": 1e3, "μs": 1e3, "ms": 1e6, "s": 1e9, "sec": 1e9}
UNIT_BYTES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
PREAMBLE_LINES = 40
"""Lines of a CSV before its header: what `nsys stats` says while it works."""

REPORT_ROWS = 100_000

_SYNC = re.compile(r"(?:cuda|cu)\w*Synchronize")
_COLUMN = re.compile(r"([\w/ ]+?)\s*(?:[(\[](\S+)[)\]])?$")


def read_sqlite(path: Path, progress: Progress) -> TraceEvents:
    """The GPU work, launches and NVTX ranges of an export by `nsys export --type sqlite`.

    Raises:
        BadFile: no such database, a damaged one, or one without kernels and copies.
    """
    try:
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            return _Database(database, path).events(progress)
        finally:
            database.close()
    except (sqlite3.Error, OverflowError) as error:
        raise BadFile(f"{path} cannot be read as a database of Nsight Systems: {error}.") from None


class _Database:
    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        self._database, self._path = database, path
        found = database.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
        self._tables = {name for (name,) in found}
        self.faults: list[str] = []
        self.left_out: Counter[str] = Counter()
        self._n = 0

    def events(self, progress: Progress) -> TraceEvents:
        if not self._tables & {COPIES, KERNELS, GRAPHS}:
            raise BadFile(
                f"{self._path} holds neither {COPIES} nor {KERNELS}; record with `nsys profile "
                "--trace=cuda,nvtx` and export with `nsys export --type sqlite`."
            )
        for table, lacking in ((COPIES, "no copies"), (KERNELS, "no kernels"), (CALLS, "")):
            if table not in self._tables and not (table == KERNELS and GRAPHS in self._tables):
                missing = lacking or "no launches, so that causes of idle time are unknown"
                self.faults.append(f"The database has no table {table}: {missing}.")
        progress("reading launches", 0.0)
        launches, syncs = self._calls()
        names = self._strings()
        work: list[GpuWork] = []
        for one in self._work(names, launches):
            work.append(one)
            if len(work) % REPORT_ROWS == 0:
                progress(f"reading GPU work, {len(work):,} rows")
        marks: dict[int, list[StepMark]] = {}
        for row in self._rows(RANGES, ("start", "end", "text", "textId")):
            name = row["text"] or names.get(row["textId"])
            if isinstance(name, str) and (rank := step_rank(name)) is not None:
                times = self._times(row)
                if times is not None:
                    marks.setdefault(rank, []).append(StepMark(printable(name), *times))
        self.faults += [f"{n:,} rows left out: {reason}." for reason, n in self.left_out.items()]
        gpus = {row["id"]: str(row["name"]) for row in self._rows(GPUS, ("id", "name"))}
        return TraceEvents(
            file=self._path.name,
            format="Nsight Systems, SQLite",
            n_events=self._n,
            work=tuple(sorted(work, key=lambda one: one[:2])),
            steps=chosen_steps(marks),
            syncs=tuple(syncs),
            devices={number: name for number, name in gpus.items() if isinstance(number, int)},
            faults=tuple(self.faults),
        )

    def _rows(self, table: str, wanted: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
        """The rows of a table by column; an absent column is None, an absent table is empty."""
        if table not in self._tables:
            return
        known = {row[1] for row in self._database.execute(f'PRAGMA table_info("{table}")')}
        columns = [f'"{name}"' if name in known else f'NULL AS "{name}"' for name in wanted]
        query = f'SELECT {", ".join(columns)} FROM "{table}"'  # noqa: S608  # names of this module
        for row in self._database.execute(query):
            self._n += 1
            yield dict(zip(wanted, row, strict=True))

    def _strings(self) -> dict[Any, str]:
        rows = self._rows(STRINGS, ("id", "value"))
        found = {row["id"]: printable(str(row["value"])) for row in rows}
        self._n -= len(found)
        return found

    def _calls(self) -> tuple[dict[tuple[int, Any], int], list[tuple[int, int]]]:
        """Starts of calls by process and correlation, and intervals of synchronisation."""
        waits = set()
        for row in self._rows(STRINGS, ("id", "value")):
            self._n -= 1
            if isinstance(row["value"], str) and _SYNC.match(row["value"]):
                waits.add(row["id"])
        launches: dict[tuple[int, Any], int] = {}
        syncs = []
        for row in self._rows(CALLS, ("start", "end", "globalTid", "correlationId", "nameId")):
            times = self._times(row)
            if times is None:
                continue
            launches.setdefault((_process(row["globalTid"]), row["correlationId"]), times[0])
            if row["nameId"] in waits:
                syncs.append(times)
        return launches, syncs

    def _work(
        self, names: Mapping[Any, str], launches: Mapping[tuple[int, Any], int]
    ) -> Iterator[GpuWork]:
        common = ("start", "end", "deviceId", "streamId", "correlationId", "globalPid")
        extra = {
            KERNELS: ("shortName", "demangledName"),
            COPIES: ("bytes", "copyKind", "srcKind", "dstKind"),
            SETS: ("bytes",),
            GRAPHS: ("graphId",),
        }
        for table, more in extra.items():
            for row in self._rows(table, (*common, *more)):
                times = self._times(row)
                if times is None:
                    continue
                kind, name, memory = _kind_of(table, row, names)
                yield GpuWork(
                    *times,
                    row["deviceId"] if isinstance(row["deviceId"], int) else 0,
                    str(row["streamId"] if row["streamId"] is not None else 0),
                    kind,
                    name,
                    row["bytes"] if isinstance(row.get("bytes"), int) and row["bytes"] > 0 else 0,
                    memory,
                    launches.get((_process(row["globalPid"]), row["correlationId"])),
                )
        if GRAPHS in self._tables:
            self.faults.append(
                "CUDA graphs were recorded as a whole: each counts as one kernel, and copies inside"
                " are not seen; record with `--cuda-graph-trace=node`."
            )

    def _times(self, row: Mapping[str, Any]) -> tuple[int, int] | None:
        start, end = row["start"], row["end"]
        if not isinstance(start, int) or not isinstance(end, int):
            self.left_out["no number as start or end"] += 1
            return None
        if end < start:
            self.left_out["negative duration"] += 1
            return None
        return start, end


def _process(number: Any) -> int:
    return number >> PROCESS_BITS if isinstance(number, int) else 0


def _kind_of(table: str, row: Mapping[str, Any], names: Mapping[Any, str]) -> tuple[str, str, str]:
    """Kind, name and host memory of a row."""
    if table == KERNELS:
        name = names.get(row["demangledName"]) or names.get(row["shortName"]) or "kernel"
        return KERNEL, name, ""
    if table == GRAPHS:
        return KERNEL, f"CUDA graph {row['graphId']}", ""
    if table == SETS:
        return MEMSET, "memset", ""
    name = f"memcpy {DIRECTIONS.get(row['copyKind'], 'of unknown direction')}"
    kind = copy_kind(name)
    ends = (MEMORIES.get(row[side], "") for side in ("srcKind", "dstKind"))
    return kind, name, host_memory(kind, *ends)


class _Column(NamedTuple):
    at: int
    scale: float


def read_csv(path: Path, progress: Progress) -> TraceEvents:
    """The GPU work of `nsys stats --report cuda_gpu_trace --format csv`.

    The report has no launches and no ranges, so that idle time has no cause and steps no mark.

    Raises:
        BadFile: no header with Start, Duration and Name, or no row.
    """
    work: list[GpuWork] = []
    left_out: Counter[str] = Counter()
    faults = ["A CSV has no launches and no NVTX ranges: no causes of idle time, and no steps."]
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = csv.reader(file)
            columns = _header(path, rows)
            for row in rows:
                try:
                    work.append(_csv_work(row, columns))
                except (ValueError, IndexError, OverflowError):
                    if row:
                        left_out["a value is missing or is no number"] += 1
                if len(work) % REPORT_ROWS == 0:
                    progress(f"reading GPU work, {len(work):,} rows")
    except OSError as error:
        raise BadFile(f"{path} cannot be read ({error.strerror}); check the path.") from None
    except csv.Error as error:
        faults.append(f"The table breaks off after {len(work):,} rows ({error}).")
    faults += [f"{n:,} rows left out: {reason}." for reason, n in left_out.items()]
    return TraceEvents(
        file=path.name,
        format="Nsight Systems, CSV",
        n_events=len(work),
        work=tuple(sorted(work, key=lambda one: one[:2])),
        faults=tuple(faults),
    )


def _header(path: Path, rows: Iterator[list[str]]) -> dict[str, _Column]:
    for _, row in zip(range(PREAMBLE_LINES), rows, strict=False):
        matches = [_COLUMN.match(name.strip()) for name in row]
        found = {}
        for at, match in enumerate(matches):
            if match is not None:
                unit = (match[2] or "").lower()
                found[match[1]] = _Column(at, UNIT_NS.get(unit, UNIT_BYTES.get(unit, 1.0)))
        if {"Start", "Duration", "Name"} <= found.keys():
            return found
    raise BadFile(
        f"{path} has no header with Start, Duration and Name; write it with `nsys stats --report "
        "cuda_gpu_trace --format csv`."
    )


def _csv_work(row: list[str], columns: Mapping[str, _Column]) -> GpuWork:
    """One row; raises ValueError or IndexError for a value that is missing or no number."""

    def number(name: str) -> float:
        column = columns[name]
        value = float(row[column.at].replace(",", "")) * column.scale
        if not 0 <= value < 2.0**63:
            raise ValueError(name)
        return value

    def text(name: str) -> str:
        return row[columns[name].at] if name in columns else ""

    name = text("Name")
    kind = KERNEL
    if "memset" in name.lower() and name.startswith("["):
        kind = MEMSET
    elif "memcpy" in name.lower() and name.startswith("["):
        kind = copy_kind(name)
    start = round(number("Start"))
    gpu = re.search(r"\((\d+)\)$", text("Device"))
    return GpuWork(
        start,
        start + round(number("Duration")),
        int(gpu[1]) if gpu else 0,
        text("Strm") or "0",
        kind,
        printable(name),
        round(number("Bytes")) if text("Bytes") else 0,
        host_memory(kind, text("SrcMemKd"), text("DstMemKd")),
    )
