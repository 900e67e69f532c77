"""What a trace of a profiler says about GPUs: their work, who launched it, and marked steps.

Times are whole nanoseconds, which is what profilers count: sums of them are exact.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from sim.lanes import D2H, H2D

KERNEL = "kernel"
WITHIN = "d2d"
PEER = "p2p"
MEMSET = "memset"
OTHER_COPY = "copy"
"""A copy whose direction is not in its name."""

OTHER_KINDS = (WITHIN, PEER, MEMSET, OTHER_COPY)
"""Work on the device that is neither a kernel nor a copy over the link to the host."""

KINDS = (KERNEL, H2D, D2H, *OTHER_KINDS)

PINNED, PAGEABLE, MANAGED, UNKNOWN = "pinned", "pageable", "managed", "unknown"
HOST_MEMORY = (PINNED, UNKNOWN, MANAGED, PAGEABLE)
"""Memory at the host's end of a copy, the one to read rates from first."""


class GpuWork(NamedTuple):
    """One kernel, copy or memset on a GPU.

    Args:
        kind: one of `KINDS`.
        memory: of a copy between host and device: one of `HOST_MEMORY`; else empty.
        launch_ns: start of the host's call that launched it; None if the trace does not say.
    """

    start_ns: int
    end_ns: int
    device: int
    stream: str
    kind: str
    name: str
    bytes: int = 0
    memory: str = ""
    launch_ns: int | None = None


class StepMark(NamedTuple):
    """An annotation of the host around one step."""

    name: str
    start_ns: int
    end_ns: int


@dataclass(frozen=True)
class TraceEvents:
    """The content of a trace.

    Args:
        file: name of the file.
        format: who wrote it, such as `Kineto`.
        n_events: events that were read, those of the host included.
        work: of all GPUs, by start.
        steps: marked steps by start; they may be none.
        syncs: intervals in which a thread of the host waits for the GPU.
        host: first start and last end of the host's operators; None without any.
        devices: names of the GPUs by number, as far as the trace tells.
        graph_sha256: hash of the task graph, in traces that kvoverlap wrote.
        faults: one sentence for each part of the file that could not be used.
    """

    file: str
    format: str
    n_events: int
    work: tuple[GpuWork, ...]
    steps: tuple[StepMark, ...] = ()
    syncs: tuple[tuple[int, int], ...] = ()
    host: tuple[int, int] | None = None
    devices: dict[int, str] = field(default_factory=dict)
    graph_sha256: str | None = None
    faults: tuple[str, ...] = ()


def printable(name: str) -> str:
    """A name of a trace on one line, with a question mark for what no terminal can show."""
    if name.isprintable():
        return name
    return "".join(char if char.isprintable() else "?" for char in " ".join(name.split()))


_SIDES = re.compile(
    r"(h|host|d|device|p|peer|m|a)-?(?:to|2)-?(h|host|d|device|p|peer|m|a)(?![a-z0-9])", re.I
)
_SIDE = {"h": "host", "m": "host", "d": "device", "a": "device", "p": "peer"}
_MEMORIES = re.compile(r"\((\w+)\s*->\s*(\w+)\)")


def copy_kind(name: str) -> str:
    """The direction in the name of a copy: `Memcpy HtoD (Pinned -> Device)`, `MemcpyD2H`,
    `[CUDA memcpy Host-to-Device]`, `CopyDeviceToHost`.
    """
    found = _SIDES.search(name)
    if found is None:
        return OTHER_COPY
    source, target = (_SIDE[side[0].lower()] for side in found.groups())
    if "peer" in (source, target):
        return PEER
    if source == target:
        return WITHIN if source == "device" else OTHER_COPY
    return H2D if source == "host" else D2H


def host_memory(kind: str, source: str, target: str) -> str:
    """Memory at the host's end of a copy, from what a profiler calls its two ends."""
    if kind not in (H2D, D2H):
        return ""
    side = (source if kind == H2D else target).lower()
    return side if side in HOST_MEMORY else UNKNOWN


def memory_in_name(kind: str, name: str) -> str:
    """Memory at the host's end of a copy, as Kineto writes it: `(Pinned -> Device)`."""
    found = _MEMORIES.search(name)
    return host_memory(kind, *(found.groups() if found else ("", "")))


_STEP_NAMES = (
    re.compile(r"execute_(?:context|new)_\d"),
    re.compile(r"step\["),
    re.compile(r"ProfilerStep\W*\d"),
    re.compile(r"decode step \d"),
)
"""Annotations of a step: vLLM (`execute_context_1(512)_generation_0(0)`, before that
`execute_new_1_cached_0`), SGLang (`step[decode bs=8]`), torch.profiler, and our own traces. A trace
with several of them has the steps of the first: vLLM's lie inside those of its profiler.

Sources: vllm/v1/worker/gpu_worker.py, `annotate_profile`; sgl-project/sglang pull request 23419;
`torch.profiler.profile.step`.
"""


@lru_cache(maxsize=4096)
def step_rank(name: str) -> int | None:
    """Whose step an annotation marks, as a position in `_STEP_NAMES`; None if it marks none."""
    return next((at for at, known in enumerate(_STEP_NAMES) if known.match(name)), None)


def chosen_steps(marks: dict[int, list[StepMark]]) -> tuple[StepMark, ...]:
    """The steps of the first kind that a trace has, by start, without repeats."""
    return tuple(sorted(set(marks[min(marks)]), key=lambda mark: mark[1:])) if marks else ()
