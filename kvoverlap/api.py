"""The public API: its functions, and the classes that they take and return."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sim.catalog import RECORDINGS, find_hardware, find_model, hardware_names, model_names
from sim.engine.api import AUTO
from sim.engine.api import simulate as _simulate
from sim.errors import BadFile, KvOverlapError
from sim.files import document_kind
from sim.graph.jobs import RestoreRequest, Workload
from sim.graph.tasks import TaskGraph
from sim.graph.timeline import Timeline
from sim.machine.availability import ALWAYS, Availability
from sim.machine.profile import HardwareProfile
from sim.machine.what_if import in_dtype_of
from sim.model.spec import ModelSpec
from sim.progress import Progress, Silent
from sim.results.compare import Comparison, compare
from sim.results.recording import Recording
from sim.traces.measured import KIND as TRACE_KIND
from sim.traces.measured import MeasuredTrace, open_trace

if TYPE_CHECKING:
    import pyarrow as pa

    from planner import DecodePlan, Plan, RestorePlan
    from planner.advice import Advice

__all__ = [
    "Availability",
    "Comparison",
    "HardwareProfile",
    "KvOverlapError",
    "MeasuredTrace",
    "ModelSpec",
    "Progress",
    "Recording",
    "RestoreRequest",
    "TaskGraph",
    "Timeline",
    "Workload",
    "advise",
    "compare",
    "find_hardware",
    "find_model",
    "hardware_names",
    "load",
    "model_names",
    "plan",
    "restore",
    "run",
    "simulate",
    "sweep",
    "trace",
]


def plan(
    model: str | ModelSpec,
    hardware: str | HardwareProfile,
    workload: Workload,
    *,
    policy: str = "lp",
    schedule: str = "row",
    gpus: int = 1,
    keep: bool = False,
    engine: str = AUTO,
) -> DecodePlan:
    """The plan of a decode job, already simulated.

    Args:
        model: a name from `model_names()`, the path of a config.json, or a `ModelSpec`, such as
            `find_model(path, assume_like="llama")` for a family that is not known.
        hardware: a name from `hardware_names()`, DEVICE+LINK, the path of a profile, or a profile.
        workload: without `kv_bits`, the cache has the bits that the checkpoint asks for; for the
            model's dtype instead, pass `dataclasses.replace(model, kv_bits=None)`.
        policy: `lp`, `kvpr`, `load-all`, `recompute-all`, `resident`, `fixed:<tokens>`,
            `hf-offloaded` or `flexgen`.
        schedule: `row` (weights resident), `column` (weights come from host memory), or `auto`
            for the one with more tokens a second.
        gpus: GPUs that decode one such job each and share the host's links.
        keep: whether policy `lp` may keep cache and weights in free GPU memory.
        engine: `auto`, `simpy` or `fast`, as in `sim.simulate`.

    Raises:
        KvOverlapError: a value breaks a rule, or the job does not fit.
    """
    from planner import Job, PlanOptions, make_plan

    options = PlanOptions(policy=policy, schedule=schedule, gpus=gpus, keep=keep, engine=engine)
    machine = _hardware(hardware)
    spec = _model(model, machine)
    return make_plan(Job(spec, machine, workload.as_asked(spec)), options)


def restore(
    model: str | ModelSpec,
    hardware: str | HardwareProfile,
    request: RestoreRequest,
    *,
    policy: str = "auto",
    availability: Availability = ALWAYS,
    foresight: bool = False,
    cached_data: str = "kv",
    engine: str = AUTO,
) -> RestorePlan:
    """The plan of restoring a cached prefix, already simulated.

    Args:
        model, hardware, engine: as for `plan`.
        request: with 16 `tier_kv_bits`, the cache has the bits that the checkpoint asks for, as for
            `plan`.
        policy: `compute-only`, `load-only`, `two-ended`, `lp`, `layer-wise`, `joint`, or `auto`,
            the fastest of them.
        availability: available fraction of each lane over time.
        foresight: whether the policies know it in advance; otherwise they plan for the whole
            machine. The plan has both times.
        cached_data: `kv`, or `kv+x` where the attention inputs X are stored too, from which K and V
            can be projected.

    Raises:
        KvOverlapError: a value breaks a rule, or the machine has no such tier.
    """
    from planner import Job, PlanOptions, make_plan

    options = PlanOptions(
        policy=policy,
        availability=availability,
        foresight=foresight,
        engine=engine,
        cached_data=cached_data,
    )
    machine = _hardware(hardware)
    spec = _model(model, machine)
    return make_plan(Job(spec, machine, request.as_asked(spec)), options)


def advise(
    model: str | ModelSpec,
    hardware: str | HardwareProfile,
    workload: Workload,
    *,
    slo_s: float | None = None,
    recordings: str | Path | None = None,
) -> Advice:
    """A recommendation (keep, load, recompute or split) with reasons, and settings of runtimes.

    Args:
        model, hardware: as for `plan`.
        workload: one batch and one decode step; its `kv_bits` as for `plan`.
        slo_s: limit of a decode step in seconds.
        recordings: folder of recordings whose errors say how sure the answer is; by default the
            shipped ones.

    Raises:
        KvOverlapError: a value breaks a rule, or the machine has no memory for the job.
    """
    from planner.advice import advise as make_advice

    machine = _hardware(hardware)
    folder = RECORDINGS if recordings is None else Path(recordings)
    spec = _model(model, machine)
    return make_advice(spec, machine, workload.as_asked(spec), folder, slo_s)


def sweep(study: str | Path, output: str | Path, *, workers: int | None = None) -> pa.Table:
    """Plan every point of a study; returns the table, which is also written to `output`.

    Args:
        study: path of a study.toml.
        output: the Parquet file to write.
        workers: local processes; by default one for each core.

    Raises:
        KvOverlapError: the study breaks a rule.
    """
    import planner.sweep as sweeps

    asked = sweeps.Study.load(Path(study))
    n = sweeps.cores() if workers is None else workers
    return sweeps.run_sweep(asked, Path(output), sweeps.local(n), n).table


def simulate(
    planned: Plan | TaskGraph,
    hardware: str | HardwareProfile | None = None,
    *,
    engine: str = AUTO,
) -> Timeline:
    """The predicted timeline of a plan or graph: start and end of every task.

    Args:
        hardware: the machine; by default the one that a plan was made for.
        engine: `auto`, `simpy` or `fast`, as in `sim.simulate`.

    Raises:
        KvOverlapError: a graph without `hardware`, or a machine without a rate that is needed.
    """
    machine = None if hardware is None else _hardware(hardware)
    if not isinstance(planned, TaskGraph):
        return planned.simulate(engine, machine)
    if machine is None:
        raise KvOverlapError("simulate(hardware) is missing: a graph names no machine.")
    return _simulate(planned, machine, engine)


def run(
    planned: Plan,
    *,
    device: str = "auto",
    repeats: int = 5,
    seed: int = 0,
    progress: Progress | None = None,
) -> Recording:
    """Measured timelines of a plan, run with real tensors and random weights, and checked.

    Args:
        device: `auto`, `cpu` or `cuda`.
        repeats: measured runs, after warm-ups.
        seed: of weights and prompts.
        progress: called with what is done now; by default nothing is reported.

    Raises:
        KvOverlapError: the device is missing, the job does not fit it, or a run's tokens or
            tensors differ from those of a decode or prefill without offloading.
    """
    from hw import resolve_device
    from measure.run import run as measure

    return measure(planned, resolve_device(device), repeats, seed, progress or Silent())


def trace(path: str | Path, *, progress: Progress | None = None) -> MeasuredTrace:
    """What a profiler's trace of any program measured: copies, kernels, overlap, idle time.

    Args:
        path: a Chrome trace of torch.profiler, vLLM or SGLang (`.json`, `.json.gz`), or an export
            of Nsight Systems (SQLite, or the CSV of the report cuda_gpu_trace).
        progress: called while a large file is read; by default nothing is reported.

    Raises:
        KvOverlapError: absent, of another kind, or without a single event. A damaged file gives
            the answer for what comes before the damage, and `notes` says so.
    """
    return open_trace(path, progress)


def load(path: str | Path) -> Plan | Recording | HardwareProfile | MeasuredTrace:
    """A file that kvoverlap wrote: a plan, timelines, a hardware profile, or a measured trace.

    Raises:
        KvOverlapError: unreadable, or of another kind.
    """
    from planner import DecodePlan, RestorePlan

    kind = document_kind(path)
    readers: dict[str, Callable[[Path], Plan | Recording | HardwareProfile | MeasuredTrace]] = {
        "plan": DecodePlan.load,
        "restore-plan": RestorePlan.load,
        "timeline": Recording.load,
        "hardware-profile": HardwareProfile.load,
        TRACE_KIND: MeasuredTrace.load,
    }
    if kind is None or kind not in readers:
        raise BadFile(f"{path} holds {kind!r}; name a file of one of: {', '.join(readers)}.")
    return readers[kind](Path(path))


def _hardware(hardware: str | HardwareProfile) -> HardwareProfile:
    return find_hardware(hardware) if isinstance(hardware, str) else hardware


def _model(model: str | ModelSpec, hardware: HardwareProfile) -> ModelSpec:
    spec = find_model(model) if isinstance(model, str) else model
    return in_dtype_of(spec, hardware, chosen=not isinstance(model, str))
