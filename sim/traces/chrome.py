"""Chrome traces in the dialect of Kineto: torch.profiler, vLLM, SGLang, and our own traces.

Format: "Trace Event Format", Google, and what torch.profiler exports. Times are microseconds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from math import inf
from operator import itemgetter
from pathlib import Path
from typing import Any

from sim.progress import Progress
from sim.traces.events import (
    KERNEL,
    MEMSET,
    OTHER_COPY,
    GpuWork,
    StepMark,
    TraceEvents,
    chosen_steps,
    copy_kind,
    memory_in_name,
    printable,
    step_rank,
)
from sim.traces.json_events import Args, Event, JsonEvents

NS_IN_US = 1000
MAX_US = 2.0**63 / NS_IN_US
REPORT_EVENTS = 100_000

_COPY, _HOST_CALL, _NOTE, _GPU_NOTE, _OPERATOR = "copy", "call", "note", "gpu note", "operator"
_WORK = (KERNEL, _COPY, MEMSET)
_NUMBERS = (int, float)
_NO_ARGS = Args()
_ROLES = {
    "kernel": KERNEL,
    "gpu_memcpy": _COPY,
    "memcpy": _COPY,
    "gpu_memset": MEMSET,
    "memset": MEMSET,
    **dict.fromkeys(
        ("cuda_runtime", "cuda_driver", "runtime", "hip_runtime", "xpu_runtime"), _HOST_CALL
    ),
    "user_annotation": _NOTE,
    "gpu_user_annotation": _GPU_NOTE,
    "cpu_op": _OPERATOR,
    "operator": _OPERATOR,
}
"""What an event is, by its category in lower case."""

_SYNC = re.compile(r"(?:cuda|hip)\w*Synchronize|cuStreamSynchronize|cuEventSynchronize")


class _Roles(dict[Any, str]):
    """Roles by category as a file spells it; empty for those of no use."""

    def __missing__(self, category: Any) -> str:
        role = _ROLES.get(category.lower(), "") if isinstance(category, str) else ""
        self[category] = role
        return role


class _Reader:
    """Collects what `TraceEvents` holds from one batch of events after another."""

    def __init__(self) -> None:
        self.n_events = 0
        self.work: list[tuple[Any, ...]] = []
        self.launches: dict[Any, Any] = {}
        self.marks: dict[int, list[StepMark]] = {}
        self.gpu_marks: dict[int, list[StepMark]] = {}
        self.syncs: list[tuple[int, int]] = []
        self.host_us = [inf, -inf]
        self.left_out: Counter[str] = Counter()
        self.no_stream = 0
        self._kinds: dict[tuple[str, str], tuple[str, str, str]] = {}
        self._roles = _Roles()
        self._streams: dict[int | str, str] = {}

    def add(self, events: Sequence[Event | None]) -> None:
        """Take what is of use from some events.

        Most events are calls and operators of the host, which are read here without checks of
        their values: where a comparison or a sum fails, the event is refused.
        """
        self.n_events += len(events)
        roles, launches, host = self._roles, self.launches, self.host_us
        for event in events:
            if event is None or event.ph != "X":
                self._refuse(event)
                continue
            try:
                role = roles[event.cat]
                if role == _HOST_CALL:
                    if event.args is not None and event.args.correlation is not None:
                        launches.setdefault(event.args.correlation, event.ts)
                    if event.name.endswith("Synchronize"):
                        self._add_note(role, event)
                elif role == _OPERATOR:
                    start = event.ts
                    end = start + event.dur
                    if -MAX_US < start < host[0]:
                        host[0] = start
                    if host[1] < end < MAX_US:
                        host[1] = end
                    if event.name.startswith("ProfilerStep"):
                        self._add_note(role, event)
                elif role in _WORK:
                    self._add_work(role, event)
                elif role:
                    self._add_note(role, event)
            except (TypeError, AttributeError):
                continue

    def _refuse(self, event: Event | None) -> None:
        """Count an event that could have been of use in another form."""
        if event is None:
            self.left_out["no object"] += 1
        elif event.ph in ("B", "E"):
            self.left_out["one half of a begin and end pair"] += 1

    def _times(self, event: Event) -> tuple[int, int] | None:
        """Start and end; None, with the reason counted, for an event that has none."""
        start, duration = event.ts, event.dur
        if type(start) not in _NUMBERS or type(duration) not in _NUMBERS:
            self.left_out["no number as ts or dur"] += 1
        elif not (-MAX_US < start < MAX_US and -MAX_US < duration < MAX_US):
            self.left_out["ts or dur is no time"] += 1  # also NaN
        elif duration < 0:
            self.left_out["negative duration"] += 1
        elif not isinstance(event.name, str):
            self.left_out["no name"] += 1
        else:
            begin = round(start * NS_IN_US)
            return begin, begin + round(duration * NS_IN_US)
        return None

    def _add_note(self, role: str, event: Event) -> None:
        """An annotation, or a call that waits for the GPU."""
        times = self._times(event)
        if times is None:
            return
        if role == _HOST_CALL:
            if _SYNC.match(event.name):
                self.syncs.append(times)
        elif (rank := step_rank(event.name)) is not None:
            marks = self.gpu_marks if role == _GPU_NOTE else self.marks
            marks.setdefault(rank, []).append(StepMark(printable(event.name), *times))

    def _add_work(self, role: str, event: Event) -> None:
        times = self._times(event)
        if times is None:
            return
        args = event.args or _NO_ARGS
        stream = args.stream
        if not isinstance(stream, int | str):
            stream = str(event.tid)
            self.no_stream += 1
        device = event.pid if args.device is None else args.device
        size, number = args.bytes, args.correlation
        kind = self._kinds.get((role, event.name)) or self._kind(role, event.name)
        self.work.append(
            (
                *times,
                device if isinstance(device, int) and device >= 0 else 0,
                self._streams.get(stream) or self._stream(stream),
                *kind[:2],
                int(size) if isinstance(size, int | float) and 0 <= size < MAX_US else 0,
                kind[2],
                number if type(number) is int else None,
            )
        )

    def _stream(self, stream: int | str) -> str:
        """The label of a stream, the same object for all its work."""
        label = self._streams[stream] = str(stream).removeprefix("stream ")
        return label

    def _kind(self, role: str, name: str) -> tuple[str, str, str]:
        """Kind, name and host memory, the same objects for all work of one name."""
        kind = copy_kind(name) if role == _COPY else role
        found = self._kinds[role, name] = kind, printable(name), memory_in_name(kind, name)
        return found

    def works(self) -> tuple[GpuWork, ...]:
        """The work of the GPUs by start, each with its launch."""
        launches = {
            number: round(start_us * NS_IN_US)
            for number, start_us in self.launches.items()
            if type(start_us) in _NUMBERS and -MAX_US < start_us < MAX_US
        }
        self.work.sort(key=itemgetter(0, 1))
        return tuple(GpuWork._make((*one[:8], launches.get(one[8]))) for one in self.work)

    @property
    def host(self) -> tuple[int, int] | None:
        """First start and last end of the host's operators."""
        if not self.host_us[0] <= self.host_us[1]:
            return None
        start, end = (round(one * NS_IN_US) for one in self.host_us)
        return start, end

    def faults(self, broken: str) -> list[str]:
        """Sentences on what could not be used."""
        found = []
        if broken:
            found.append(
                f"The file breaks off after {self.n_events:,} events ({broken}): the answer covers "
                "those before."
            )
        found += [
            f"{count:,} event{'s' if count > 1 else ''} left out: {reason}."
            for reason, count in self.left_out.items()
        ]
        if self.no_stream:
            found.append(
                f"{self.no_stream:,} GPU event{'s have' if self.no_stream > 1 else ' has'} no "
                "args.stream: the thread is taken as the stream."
            )
        unnamed = sum(one[4] == OTHER_COPY for one in self.work)
        if unnamed:
            found.append(
                f"{unnamed:,} cop{'ies have' if unnamed > 1 else 'y has'} no direction in the name:"
                " counted as other work."
            )
        return found


def read_chrome(path: Path, progress: Progress) -> TraceEvents:
    """The events of a Chrome trace.

    Raises:
        BadFile: it is not a trace, or breaks off before its first event.
    """
    source, reader, reported = JsonEvents(path), _Reader(), 0
    try:
        for batch in source:
            reader.add(batch)
            if reader.n_events >= reported + REPORT_EVENTS:
                reported = reader.n_events
                progress("reading events", source.done_frac)
    finally:
        source.close()
    return TraceEvents(
        file=path.name,
        format="Kineto",
        n_events=reader.n_events,
        work=reader.works(),
        steps=chosen_steps(reader.marks or reader.gpu_marks),
        syncs=tuple(reader.syncs),
        host=reader.host,
        devices=_device_names(source.header),
        graph_sha256=_graph_sha256(source.header),
        faults=tuple(reader.faults(source.broken)),
    )


def _device_names(header: Mapping[str, Any]) -> dict[int, str]:
    """Names of the GPUs by number, from `deviceProperties`."""
    listed = header.get("deviceProperties")
    if not isinstance(listed, list):
        return {}
    return {
        one["id"]: one["name"]
        for one in listed
        if isinstance(one, dict)
        and isinstance(one.get("id"), int)
        and isinstance(one.get("name"), str)
    }


def _graph_sha256(header: Mapping[str, Any]) -> str | None:
    other = header.get("otherData")
    found = other.get("graph_sha256") if isinstance(other, dict) else None
    return found if isinstance(found, str) else None
