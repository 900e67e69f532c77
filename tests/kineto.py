"""Traces as Kineto writes them, event by event, in microseconds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Event = dict[str, Any]


def kernel(start: float, dur: float, stream: int = 7, name: str = "gemm", **args: Any) -> Event:
    return gpu("kernel", name, start, dur, {"stream": stream, **args})


def h2d(start: float, dur: float, size: int = 0, memory: str = "Pinned", **args: Any) -> Event:
    name = f"Memcpy HtoD ({memory} -> Device)"
    return gpu("gpu_memcpy", name, start, dur, {"stream": 13, "bytes": size, **args})


def d2h(start: float, dur: float, size: int = 0, memory: str = "Pinned", **args: Any) -> Event:
    name = f"Memcpy DtoH (Device -> {memory})"
    return gpu("gpu_memcpy", name, start, dur, {"stream": 14, "bytes": size, **args})


def gpu(category: str, name: str, start: float, dur: float, args: Event) -> Event:
    place = {"device": 0, **args}
    return {
        "ph": "X",
        "cat": category,
        "name": name,
        "ts": start,
        "dur": dur,
        "pid": place["device"],
        "tid": place.get("stream", 0),
        "args": place,
    }


def call(start: float, dur: float, correlation: int, name: str = "cudaLaunchKernel") -> Event:
    return host("cuda_runtime", name, start, dur, {"correlation": correlation})


def step(name: str, start: float, dur: float, category: str = "user_annotation") -> Event:
    return host(category, name, start, dur, {})


def host(category: str, name: str, start: float, dur: float, args: Event) -> Event:
    times = {"ts": start, "dur": dur}
    return {"ph": "X", "cat": category, "name": name, "pid": 9, "tid": 9, **times, "args": args}


def write(path: Path, events: Iterable[Any], **header: Any) -> Path:
    path.write_text(json.dumps({"schemaVersion": 1, **header, "traceEvents": list(events)}))
    return path
