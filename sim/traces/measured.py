"""What a trace measured, as one answer and as a file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from sim.errors import BadFile
from sim.files import STRICT_KEYS, parse, read_json, write_json
from sim.progress import Progress
from sim.traces.events import KERNEL, KINDS, GpuWork, StepMark, TraceEvents
from sim.traces.measures import (
    NS,
    Busy,
    Idle,
    Measures,
    Step,
    idle_by_cause,
    steps_of,
    total,
)
from sim.traces.rates import RatePoint, rate_curves
from sim.traces.read import TRACE_MARKS, document_head, read_trace_file

KIND = "measured-trace"
CPU_ONLY = (
    "The trace holds CPU operators only: no kernel and no copy of a GPU. Record with "
    "ProfilerActivity.CUDA on a machine with a GPU."
)
TOP_KERNELS = 10

_COPYING = re.compile(r"load_and_reshape_multi_layer_kernel|transfer_(?:page_head_)?kernel_impl")
"""Kernels that copy K and V between host and GPU: of LMCache (csrc/mem_kernels.cu), and of SGLang
(sgl-kernel, kvcacheio/transfer.cu)."""

_MARK = f'"kind": "{KIND}"'.encode()


@dataclass(frozen=True, slots=True)
class CopyRow:
    """Copies of one direction, memory, GPU and stream.

    Args:
        seconds: sum of their times.
    """

    direction: str
    memory: str
    device: int
    stream: str
    copies: int
    bytes: int
    seconds: float

    @property
    def bytes_per_s(self) -> float | None:
        return self.bytes / self.seconds if self.bytes and self.seconds else None


@dataclass(frozen=True, slots=True)
class KernelRow:
    """Kernels of one name, or of one stream."""

    name: str
    kernels: int
    seconds: float


@dataclass(frozen=True)
class MeasuredTrace:
    """Copies, kernels, overlap and idle time of a trace, as a whole and for each marked step.

    With several GPUs, seconds are sums over them, and `devices` has each.
    """

    events: TraceEvents
    source: ClassVar[str] = "measured"

    @cached_property
    def span_ns(self) -> tuple[int, int]:
        """First start and last end of any GPU's work, or of the host's operators without any."""
        work = self.events.work
        if not work:
            return self.events.host or (0, 0)
        return work[0].start_ns, max(one.end_ns for one in work)

    @cached_property
    def origin_ns(self) -> int:
        """Time zero: the start of the first work or of the first marked step."""
        return min([self.span_ns[0], *(mark.start_ns for mark in self.events.steps[:1])])

    @cached_property
    def busy(self) -> dict[int, Busy]:
        """Intervals of each GPU by what runs."""
        work: dict[int, list[GpuWork]] = {}
        for one in self.events.work:
            work.setdefault(one.device, []).append(one)
        return {device: Busy(work[device]) for device in sorted(work)}

    @cached_property
    def devices(self) -> dict[int, Measures]:
        return {device: busy.measures(*self.span_ns) for device, busy in self.busy.items()}

    @cached_property
    def measures(self) -> Measures:
        """The whole trace."""
        start_ns, end_ns = self.span_ns
        return total([*self.devices.values()], (end_ns - start_ns) / NS)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        return steps_of(self.events, self.busy, self.origin_ns)

    @cached_property
    def idle(self) -> Idle:
        return idle_by_cause(self.events, self.busy, self.span_ns)

    @cached_property
    def rates(self) -> dict[tuple[str, str], tuple[RatePoint, ...]]:
        return rate_curves(self.events.work)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the answer lacks, in sentences; empty if it covers the whole file."""
        return (*self.events.faults, *(() if self.events.work else (CPU_ONLY,)))

    @cached_property
    def copies(self) -> tuple[CopyRow, ...]:
        """Copies by direction, memory, GPU and stream, memsets left out."""
        sums: dict[tuple[str, str, int, str], list[int]] = {}
        for one in self.events.work:
            if one.kind in (KERNEL, "memset"):
                continue
            row = sums.setdefault((one.kind, one.memory, one.device, one.stream), [0, 0, 0])
            row[0] += 1
            row[1] += one.bytes
            row[2] += one.end_ns - one.start_ns
        order = sorted(sums, key=lambda key: (KINDS.index(key[0]), key[1:]))
        return tuple(CopyRow(*key, sums[key][0], sums[key][1], sums[key][2] / NS) for key in order)

    @property
    def kernels(self) -> tuple[KernelRow, ...]:
        """Kernels by name, the longest first."""
        return self._kernel_rows[0]

    @property
    def kernel_streams(self) -> tuple[KernelRow, ...]:
        """Kernels by GPU and stream, the longest first."""
        return self._kernel_rows[1]

    @property
    def copying_kernel_s(self) -> float:
        """Time of kernels that are known to copy K and V between host and GPU.

        They are kernels in the trace, and count as such in every measure.
        """
        return sum(row.seconds for row in self.kernels if _COPYING.search(row.name))

    @cached_property
    def _kernel_rows(self) -> tuple[tuple[KernelRow, ...], tuple[KernelRow, ...]]:
        names: dict[str, list[int]] = {}
        streams: dict[tuple[int, str], list[int]] = {}
        for start_ns, end_ns, device, stream, kind, name, *_ in self.events.work:
            if kind == KERNEL:
                by_name = names.get(name) or names.setdefault(name, [0, 0])
                by_stream = streams.get((device, stream)) or streams.setdefault(
                    (device, stream), [0, 0]
                )
                for row in (by_name, by_stream):
                    row[0] += 1
                    row[1] += end_ns - start_ns
        labels = {
            f"GPU {device}, stream {stream}": row for (device, stream), row in streams.items()
        }
        return _longest_first(names), _longest_first(labels)

    def to_dict(self) -> dict[str, Any]:
        """The answer of `kvoverlap trace --json`."""
        return {
            "source": self.source,
            "file": self.events.file,
            "format": self.events.format,
            "events": self.events.n_events,
            "complete": not self.notes,
            "notes": list(self.notes),
            **self.measures.to_dict(),
            "copying_kernel_s": self.copying_kernel_s,
            "idle_by_cause": asdict(self.idle),
            "steps": [step.to_dict() for step in self.steps],
            "copies": [{**asdict(row), "bytes_per_s": row.bytes_per_s} for row in self.copies],
            "kernels": [asdict(row) for row in self.kernels[:TOP_KERNELS]],
            "kernel_streams": [asdict(row) for row in self.kernel_streams],
            "rates": [
                {
                    "direction": direction,
                    "memory": memory,
                    **asdict(point),
                    "bytes_per_s": point.bytes_per_s,
                }
                for (direction, memory), points in self.rates.items()
                for point in points
            ],
            "devices": [
                {"device": device, "name": self.events.devices.get(device), **one.to_dict()}
                for device, one in self.devices.items()
            ],
        }

    def save(self, path: Path | str) -> None:
        """Write the answer, and the work that it was computed from."""
        write_json(path, KIND, {**self.to_dict(), "timeline": _columns(self)})

    @classmethod
    def load(cls, path: Path | str) -> MeasuredTrace:
        """Read a file that `save` wrote; its answer is computed again.

        Raises:
            BadFile: unreadable, of another kind, or with an unknown, absent or invalid key.
        """
        content = read_json(path, KIND)
        where = str(path)
        if not isinstance(content.get("timeline"), dict):
            raise BadFile(f"{where}: key 'timeline' is missing; write the file again.")
        stored = parse(_Stored, content["timeline"], where)
        return cls(stored.events(where))


@dataclass(frozen=True)
class _Stored:
    """The events as columns; `names`, `streams` and `memories` are looked up by position."""

    __pydantic_config__ = STRICT_KEYS

    file: str
    format: str
    n_events: int
    devices: list[tuple[int, str]]
    host: tuple[int, int] | None
    faults: list[str]
    steps: list[tuple[str, int, int]]
    syncs: list[tuple[int, int]]
    names: list[str]
    streams: list[str]
    memories: list[str]
    kinds: list[str]
    start_ns: list[int]
    end_ns: list[int]
    device: list[int]
    stream: list[int]
    kind: list[int]
    name: list[int]
    bytes: list[int]
    memory: list[int]
    launch_ns: list[int | None] = field(default_factory=list)

    def events(self, where: str) -> TraceEvents:
        try:
            work = tuple(
                GpuWork(
                    start,
                    end,
                    device,
                    self.streams[stream],
                    self.kinds[kind],
                    self.names[name],
                    size,
                    self.memories[memory],
                    launch,
                )
                for start, end, device, stream, kind, name, size, memory, launch in zip(
                    self.start_ns,
                    self.end_ns,
                    self.device,
                    self.stream,
                    self.kind,
                    self.name,
                    self.bytes,
                    self.memory,
                    self.launch_ns,
                    strict=True,
                )
            )
        except (ValueError, IndexError):
            raise BadFile(f"{where}: the columns of 'timeline' do not fit each other.") from None
        if any(one.end_ns < one.start_ns or one.kind not in KINDS for one in work):
            raise BadFile(f"{where}: 'timeline' holds work that ends early or is of no known kind.")
        return TraceEvents(
            self.file,
            self.format,
            self.n_events,
            tuple(sorted(work, key=lambda one: one[:2])),
            tuple(StepMark(*one) for one in self.steps),
            tuple(self.syncs),
            self.host,
            dict(self.devices),
            faults=tuple(self.faults),
        )


def _longest_first(sums: Mapping[str, Sequence[int]]) -> tuple[KernelRow, ...]:
    rows = [KernelRow(name, count, spent / NS) for name, (count, spent) in sums.items()]
    return tuple(sorted(rows, key=lambda row: -row.seconds))


def _columns(trace: MeasuredTrace) -> dict[str, Any]:
    """The events as `_Stored` reads them, with times from the origin of the trace."""
    events, origin = trace.events, trace.origin_ns
    columns: dict[str, Any] = {
        "file": events.file,
        "format": events.format,
        "n_events": events.n_events,
        "devices": sorted(events.devices.items()),
        "host": events.host and [one - origin for one in events.host],
        "faults": events.faults,
        "steps": [(name, start - origin, end - origin) for name, start, end in events.steps],
        "syncs": [(start - origin, end - origin) for start, end in events.syncs],
    }
    work = events.work
    for plural, attribute in (
        ("names", "name"),
        ("streams", "stream"),
        ("memories", "memory"),
        ("kinds", "kind"),
    ):
        columns[plural], columns[attribute] = _coded([getattr(one, attribute) for one in work])
    return {
        **columns,
        "start_ns": [one.start_ns - origin for one in work],
        "end_ns": [one.end_ns - origin for one in work],
        "device": [one.device for one in work],
        "bytes": [one.bytes for one in work],
        "launch_ns": [None if one.launch_ns is None else one.launch_ns - origin for one in work],
    }


def _coded(values: Sequence[str]) -> tuple[list[str], list[int]]:
    """The distinct values, and the position of each value among them."""
    places: dict[str, int] = {}
    codes = [places.setdefault(value, len(places)) for value in values]
    return list(places), codes


def open_trace(path: Path | str, progress: Progress | None = None) -> MeasuredTrace:
    """A trace of any profiler, or the file that `kvoverlap trace -o` wrote of one.

    Raises:
        BadFile: absent, of another kind, or without a single event.
    """
    if _MARK in document_head(Path(path)):
        return MeasuredTrace.load(path)
    return MeasuredTrace(read_trace_file(path, progress))


def holds_trace(path: Path | str) -> bool:
    """Whether a file looks like one that `open_trace` reads, by its first bytes."""
    head = document_head(Path(path))
    return _MARK in head or any(mark in head for mark in TRACE_MARKS)
