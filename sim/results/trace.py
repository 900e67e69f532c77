"""Timelines as Chrome Trace Event files in the dialect of PyTorch's Kineto profiler.

Perfetto, chrome://tracing and HolisticTraceAnalysis open them. Every lane is one thread (stream),
every task one complete event; times are microseconds. Of the host only the copies within it are
timed, on a thread for each device. Format: "Trace Event Format", Google, and the traces that
torch.profiler exports.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from sim.errors import BadFile, Mismatch
from sim.files import CREATED_BY, read_text, write_bytes
from sim.graph.tasks import Task, TaskGraph
from sim.graph.timeline import Span, Timeline
from sim.lanes import COMPUTE, D2H, H2D, HOST, TIER_LANES

STREAM_OF_LANE = {COMPUTE: 7, H2D: 13, D2H: 14}
HOST_PID = 1_000
FIRST_HOST_TID = 2
"""Thread of the host that copies for device 0; thread 1 holds the steps."""

HOST_LANES = (HOST, *TIER_LANES)
LANE_TIDS = 1_000
"""Threads between those of one lane of the host and of the next."""

_COPY_NAME = {
    H2D: "Memcpy HtoD (Pinned -> Device)",
    D2H: "Memcpy DtoH (Device -> Pinned)",
}


def write_trace(timeline: Timeline, path: Path | str, title: str) -> None:
    """Write `timeline` as a trace; a name ending in `.gz` compresses it.

    Args:
        title: what the process row is called, such as `predicted` or `measured`.
    """
    payload = json.dumps(trace_document(timeline, title)).encode()
    write_bytes(path, gzip.compress(payload, mtime=0) if str(path).endswith(".gz") else payload)


def trace_document(timeline: Timeline, title: str) -> dict[str, Any]:
    """The trace as the object that `write_trace` serialises."""
    events: list[dict[str, Any]] = []
    devices = sorted({task.device for task in timeline.graph.tasks})
    for device in devices:
        label = f"{title}, device {device}"
        events.append(_metadata("process_name", device, 0, {"name": label}))
        events.append(_metadata("process_labels", device, 0, {"labels": f"GPU {device}"}))
        for lane, stream in STREAM_OF_LANE.items():
            events.append(
                _metadata("thread_name", device, stream, {"name": f"stream {stream} {lane}"})
            )
    events.append(_metadata("process_name", HOST_PID, 0, {"name": f"{title}, steps"}))
    for device, lane in timeline.graph.lanes:
        if lane in HOST_LANES:
            thread = {"name": f"copies for device {device}, {lane}"}
            events.append(_metadata("thread_name", HOST_PID, _host_tid(device, lane), thread))
    events += _step_events(timeline)
    for number, span in enumerate(timeline.spans, start=1):
        events.append(_task_event(span, number))
    return {
        "schemaVersion": 1,
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "deviceProperties": [{"id": device} for device in devices],
        "distributedInfo": {"backend": "nccl", "rank": 0, "world_size": 1},
        "otherData": {
            "created_by": CREATED_BY,
            "title": title,
            "graph_sha256": timeline.graph.sha256,
        },
    }


def read_trace(path: Path | str, graph: TaskGraph, title: str) -> Timeline:
    """Read a trace that `write_trace` wrote under `title` back into a timeline of `graph`.

    Raises:
        BadFile: not a trace of ours, or a task is missing from it.
        Mismatch: it is a trace of another graph, or has another title.
    """
    try:
        document = json.loads(read_text(path))
        sha256, found = (document["otherData"][key] for key in ("graph_sha256", "title"))
        times = {
            event["args"]["task_id"]: (event["args"]["start_s"], event["args"]["end_s"])
            for event in document["traceEvents"]
            if event["ph"] == "X" and "task_id" in event.get("args", {})
        }
    except (ValueError, KeyError, TypeError) as error:
        raise BadFile(f"{path} is not a trace written by kvoverlap ({error!r}).") from None
    if sha256 != graph.sha256:
        raise Mismatch(f"{path} is a trace of graph {sha256[:12]}, not of {graph.sha256[:12]}.")
    if found != title:
        raise Mismatch(f"{path} is a trace of something {found}, not {title}.")
    missing = next((task.id for task in graph.tasks if task.id not in times), None)
    if missing is not None:
        raise BadFile(f"{path}: task {missing} is missing; write the trace again.")
    ordered = [times[task.id] for task in graph.tasks]
    return Timeline(graph, tuple(a for a, _ in ordered), tuple(b for _, b in ordered))


def _metadata(name: str, pid: int, tid: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "name": name, "pid": pid, "tid": tid, "ts": 0, "args": args}


def _step_events(timeline: Timeline) -> list[dict[str, Any]]:
    """One annotation for the compute of each decode step; loads may start before their step."""
    limits: dict[int, tuple[float, float]] = {}
    for span in timeline.spans:
        if span.task.lane == COMPUTE:
            start, end = limits.get(span.task.step, (span.start_s, span.end_s))
            limits[span.task.step] = (min(start, span.start_s), max(end, span.end_s))
    return [
        {
            "ph": "X",
            "cat": "user_annotation",
            "name": f"decode step {step}",
            "pid": HOST_PID,
            "tid": 1,
            "ts": start * 1e6,
            "dur": (end - start) * 1e6,
            "args": {},
        }
        for step, (start, end) in limits.items()
    ]


def _task_event(span: Span, correlation: int) -> dict[str, Any]:
    task = span.task
    kind, name, pid, tid = _place(task)
    args: dict[str, Any] = {
        "device": task.device,
        **({} if task.lane in HOST_LANES else {"stream": tid, "correlation": correlation}),
        "task_id": task.id,
        "op": task.op,
        "layer": task.layer,
        "tokens": [task.token_start, task.token_stop],
        "start_s": span.start_s,
        "end_s": span.end_s,
    }
    if task.bytes:
        args["bytes"] = task.bytes
        if span.duration_s > 0:
            args["memory bandwidth (GB/s)"] = task.bytes / span.duration_s / 1e9
    elif task.flops and span.duration_s > 0:
        args["TFLOP/s"] = task.flops / span.duration_s / 1e12
    return {
        "ph": "X",
        "cat": kind,
        "name": name,
        "pid": pid,
        "tid": tid,
        "ts": span.start_s * 1e6,
        "dur": span.duration_s * 1e6,
        "args": args,
    }


def _host_tid(device: int, lane: str) -> int:
    return FIRST_HOST_TID + device + LANE_TIDS * HOST_LANES.index(lane)


def _place(task: Task) -> tuple[str, str, int, int]:
    """Category, name, process and thread of a task's event."""
    if task.lane in HOST_LANES:
        return "cpu_op", task.op, HOST_PID, _host_tid(task.device, task.lane)
    place = task.device, STREAM_OF_LANE[task.lane]
    if task.lane == COMPUTE:
        return "kernel", task.op, *place
    return "gpu_memcpy", _COPY_NAME[task.lane], *place
