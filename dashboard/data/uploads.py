"""Uploaded files: profiles, plans, recordings, traces and model configs, validated before use.

Any other file is refused with the reason. An upload is unpacked within a limit, parsed
as JSON and validated by the same loaders that read our own files; no uploaded content is executed.
"""

from __future__ import annotations

import json
import re
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dashboard.text.comparison import count_of, describe_job
from planner import DecodePlan, Plan, RestorePlan
from sim.errors import BadFile, KvOverlapError
from sim.graph.tasks import TaskGraph
from sim.machine.profile import HardwareProfile
from sim.model.config import load_model_config
from sim.model.spec import ModelSpec
from sim.results.recording import Recording
from sim.service import RequestTrace, holds_requests, read_trace
from sim.traces.measured import KIND as TRACE_KIND
from sim.traces.measured import MeasuredTrace, holds_trace, open_trace
from sim.units import ms

MEGABYTE = 2**20
MAX_UPLOAD_MB = 16
MAX_UNPACKED_MB = 96
MAX_TASKS = 200_000
MAX_TOKENS = 16_000_000
ADVICE = (
    "kvoverlap profile, plan, restore, run and trace write files that can be shown here, and a "
    "model's config.json, request traces and profilers' traces are read"
)

Content = HardwareProfile | Plan | Recording | MeasuredTrace | ModelSpec | RequestTrace

CONFIG, REQUESTS = "model config", "request trace"
PREDICTION, PREDICTION_SOURCE = "prediction", "predicted"

KINDS: dict[str, tuple[str, type[Content], Callable[[Path], Content]]] = {
    "hardware-profile": ("profile", HardwareProfile, HardwareProfile.load),
    "plan": ("plan", DecodePlan, DecodePlan.load),
    "restore-plan": ("restore plan", RestorePlan, RestorePlan.load),
    "timeline": ("recording", Recording, Recording.load),
    TRACE_KIND: ("trace", MeasuredTrace, open_trace),
    REQUESTS: (REQUESTS, RequestTrace, lambda path: read_trace(path, skip_bad=True)),
    CONFIG: (CONFIG, ModelSpec, lambda path: load_model_config(path, path.name)),
}
"""Name on the page, class and reader of each kind of document."""


@dataclass(frozen=True)
class Upload:
    """One accepted file."""

    name: str
    content: Content

    @property
    def kind(self) -> str:
        if isinstance(self.content, Recording) and self.content.source == PREDICTION_SOURCE:
            return PREDICTION
        return next(name for name, cls, _ in KINDS.values() if isinstance(self.content, cls))

    @property
    def summary(self) -> str:
        """Model, job and machine, or the description of a profile."""
        match self.content:
            case HardwareProfile() as profile:
                return f"{profile.name}: {profile.description}"
            case ModelSpec() as model:
                return (
                    f"{model.n_layers} layers, {model.n_parameters / 1e9:,.1f} billion parameters, "
                    f"weights of {model.weight_bytes / 2**30:,.1f} GiB"
                )
            case Recording() as recording:
                graph = recording.graph
                return (
                    f"{graph.model.name}, {describe_job(graph.workload)}, "
                    f"{count_of(len(recording.runs), 'run')} of {len(graph.tasks):,} tasks"
                )
            case MeasuredTrace() as trace:
                return (
                    f"{trace.events.format}, {len(trace.events.work):,} kernels and copies, "
                    f"{len(trace.steps):,} steps, {ms(trace.measures.span_s)}"
                )
            case RequestTrace() as requests:
                times = requests.arrival_s
                return (
                    f"{len(requests):,} requests in {max(times) - min(times):,.0f} s, "
                    f"{requests.unique_blocks:,} different blocks of {requests.block_tokens} "
                    f"tokens, {requests.skipped:,} bad lines left out"
                )
            case plan:
                return (
                    f"{plan.model.name}, {describe_job(plan.workload)}, policy {plan.policy}, "
                    f"on {plan.hardware.name}"
                )


def read_upload(name: str, payload: bytes) -> Upload:
    """The content of an uploaded file.

    Raises:
        KvOverlapError: it is too large, no document of ours, or breaks one of its rules; one
            sentence that names the file and says why.
    """
    name = safe_name(name)
    text = unpacked(name, payload)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(text)
        kind = _kind_of(path, text)
        if kind not in KINDS:
            raise BadFile(f"{name} holds {kind}, which cannot be shown; {ADVICE}.")
        try:
            content = KINDS[kind][2](path)
            graph = _graph_of(content)
        except KvOverlapError as error:
            raise BadFile(_one_line(str(error).replace(str(path), name))) from None
        except (RecursionError, OverflowError, MemoryError) as error:
            raise BadFile(f"{name} cannot be used ({type(error).__name__}); {ADVICE}.") from None
    if graph is not None:
        _check_size(name, graph)
    if isinstance(content, MeasuredTrace) and len(content.events.work) > MAX_TASKS:
        raise BadFile(
            f"{name} holds {len(content.events.work):,} kernels and copies; {MAX_TASKS:,} is the "
            "most that can be shown: kvoverlap trace reads it."
        )
    return Upload(name, content)


def _graph_of(content: Content) -> TaskGraph | None:
    """The graph of a plan or a recording.

    Raises:
        Mismatch: the plan was edited after its simulation.
    """
    match content:
        case Plan():
            return content.simulated_graph()
        case Recording():
            return content.graph
    return None


def _check_size(name: str, graph: TaskGraph) -> None:
    if len(graph.tasks) > MAX_TASKS:
        raise BadFile(f"{name} holds {len(graph.tasks):,} tasks; {MAX_TASKS:,} is the most.")
    if graph.workload.max_tokens > MAX_TOKENS:
        raise BadFile(f"{name} is of {graph.workload.max_tokens:,} tokens; {MAX_TOKENS:,} is most.")


def safe_name(name: str) -> str:
    """The file's own name without folders and odd characters."""
    last = re.split(r"[\\/]", name)[-1]
    return re.sub(r"[^\w.-]+", "-", last).lstrip(".")[-80:] or "file"


def unpacked(name: str, payload: bytes) -> bytes:
    """The text of a plain or gzipped file, within the limits.

    Raises:
        BadFile: it is empty, too large packed or unpacked, or corrupt.
    """
    if not payload:
        raise BadFile(f"{name} is empty; {ADVICE}.")
    if len(payload) > MAX_UPLOAD_MB * MEGABYTE:
        raise BadFile(f"{name} is larger than the {MAX_UPLOAD_MB} MB that can be uploaded.")
    if payload[:2] != b"\x1f\x8b":
        return payload
    unzip = zlib.decompressobj(wbits=31)
    try:
        text = unzip.decompress(payload, MAX_UNPACKED_MB * MEGABYTE)
    except zlib.error as error:
        raise BadFile(f"{name} cannot be unpacked ({error}); it is corrupt.") from None
    if unzip.unconsumed_tail:
        raise BadFile(f"{name} unpacks to more than the {MAX_UNPACKED_MB} MB that can be shown.")
    if not unzip.eof:
        raise BadFile(f"{name} ends too early; upload it again.")
    return text


def _kind_of(path: Path, text: bytes) -> str:
    if holds_requests(path):
        return REQUESTS
    return TRACE_KIND if holds_trace(path) else _kind(path.name, text)


def _kind(name: str, text: bytes) -> str:
    """The `kind` of the document."""
    try:
        document = json.loads(text.decode())
    except UnicodeDecodeError:
        raise BadFile(f"{name} is not text; {ADVICE}.") from None
    except json.JSONDecodeError as error:
        raise BadFile(
            f"{name} is not valid JSON (line {error.lineno}: {error.msg}); {ADVICE}."
        ) from None
    except (RecursionError, ValueError):
        raise BadFile(f"{name} is not a document of ours; {ADVICE}.") from None
    if isinstance(document, dict) and "model_type" in document:
        return CONFIG
    kind = document.get("kind") if isinstance(document, dict) else None
    return kind[:40] if isinstance(kind, str) else f"a JSON {type(document).__name__}"


def _one_line(text: str) -> str:
    """Text on one line, cut at 400 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 400 else f"{line[:397]}..."
