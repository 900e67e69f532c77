"""A validation of this machine: profile, plan, predict, run the identical plans, compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

from measure.adaptation import measure_adaptation
from measure.calibrate import DEFAULT_DTYPE, ProfileScope, measure_profile
from measure.grid import Case, Grid
from measure.reports import measure_decodes, measure_restores
from planner.decode.lower import SCHEDULES
from sim.catalog import find_model
from sim.errors import BadInput, UnknownName
from sim.files import read_json, write_json
from sim.graph.jobs import Workload
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec
from sim.progress import Part, Progress, Timed
from sim.results.accuracy import CASE, CASES, MEASURED

DEFAULT_MODEL = {"cpu": "opt-125m", "cuda": "opt-6.7b"}
DEFAULT_PROMPTS: dict[str, dict[str, tuple[int, ...]]] = {
    "decode": {"cpu": (150, 250), "cuda": (500, 1000)},
    "restore": {"cpu": (500, 900), "cuda": (2048, 8192)},
    "adapt": {"cpu": (900,), "cuda": ()},
}
DEFAULT_BATCHES = {"cpu": (3, 5), "cuda": (10, 20)}
"""No attention and no recomputation of these cases has a size that `profile` samples."""

DECODE_ONLY: dict[str, Any] = {
    "batches": None,
    "gen_tokens": 2,
    "schedule": "row",
    "n_batches": 1,
    "kv_bits": None,
}
"""Default of every field that only decodes have."""

DEFAULT_MINUTES = {"cpu": 2.5, "cuda": 8.0}
"""Time limit of a validation of decodes; other scenarios have none by default."""

STARTED_S = 8.0
"""Seconds of the limit for the start of the process and for the report."""

PROFILE_SHARE = 0.15
"""Fraction of a validation after which profiling takes no further samples."""

REPORT = "report.json"
PLAN = "plan.json"


@dataclass(frozen=True)
class ValidationRequest:
    """What to validate.

    Args:
        scenario: `decode`, `restore` or `adapt`.
        device: `auto`, `cpu` or `cuda`.
        model: a shipped name or a path; None for the device's default, as with prompts and batches.
        prompts: prompt lengths in tokens.
        batches: batch sizes of decodes.
        link: pace of the cpu device's emulated link, such as `0.4GB/s`.
        minutes: time limit; None for the scenario's default.
        assume_like: family to read a config of an unknown family as.
    """

    scenario: str = "decode"
    device: str = "auto"
    model: str | None = None
    prompts: Sequence[int] | None = None
    batches: Sequence[int] | None = None
    gen_tokens: int = 2
    schedule: str = "row"
    n_batches: int = 1
    kv_bits: int | None = None
    repeats: int = 4
    link: str | None = None
    seed: int = 0
    minutes: float | None = None
    assume_like: str | None = None

    def resolve(self) -> tuple[str, ModelSpec]:
        """The kind of device and the model.

        Raises:
            KvOverlapError: no such scenario, device or model, or fields that do not go together.
        """
        from hw import resolve_device

        if self.scenario not in DEFAULT_PROMPTS:
            raise UnknownName("scenario", self.scenario, tuple(DEFAULT_PROMPTS))
        if self.repeats < 1:
            raise BadInput(f"--repeats(={self.repeats}) must be at least 1.")
        if self.minutes is not None and not 0 < self.minutes < inf:
            raise BadInput(f"--minutes(={self.minutes}) must be above 0.")
        if self.schedule not in SCHEDULES:
            raise UnknownName("schedule", self.schedule, SCHEDULES)
        kind = resolve_device(self.device)
        for name, default in DECODE_ONLY.items():
            value = getattr(self, name)
            if self.scenario != "decode" and value != default:
                option = name.removesuffix("_tokens").replace("_", "-")
                raise BadInput(f"--{option}(={value}) is for decodes; leave it out of restores.")
        if self.scenario == "adapt" and (kind != "cpu" or len(self.prompts or (0,)) > 1):
            raise BadInput("--scenario adapt is for one of --prompts and --device cpu.")
        name = self.model or DEFAULT_MODEL[kind]
        return kind, find_model(name, DEFAULT_DTYPE[kind], self.assume_like).dequantised()


@dataclass(frozen=True)
class Validation:
    """The profile, the measured cases and the report of a validation."""

    hardware: HardwareProfile
    cases: Sequence[Case]
    report: dict[str, Any]

    def save(self, out: Path) -> None:
        """Replace the run in a folder; the report is written last, so it marks a complete run."""
        (out / REPORT).unlink(missing_ok=True)
        self.hardware.save(out / "profile.json")
        known = {case.name for case in self.cases}
        for old in (out / CASES).iterdir() if (out / CASES).is_dir() else ():
            if old.name not in known:
                for name in (PLAN, MEASURED, CASE):
                    (old / name).unlink(missing_ok=True)
                old.rmdir()
        for case in self.cases:
            case.plan.save(out / CASES / case.name / PLAN)
            case.save(out / CASES / case.name)
        write_json(out / REPORT, "validation", self.report)


def validate(request: ValidationRequest, progress: Progress) -> Validation:
    """Profile the device, and measure a grid of cases that the profile did not sample.

    Raises:
        KvOverlapError: the request is invalid, a job does not fit, or a run computed wrong numbers.
    """
    kind, spec = request.resolve()
    prompts = request.prompts or DEFAULT_PROMPTS[request.scenario][kind]
    decodes = request.scenario == "decode"
    longest = max(prompts) + (request.gen_tokens if decodes else 0)
    if longest > spec.max_positions:
        raise BadInput(
            f"--prompts(={max(prompts)}): {spec.name} has {spec.max_positions:,} positions; lower "
            "it."
        )
    jobs = [
        Workload(batch, prompt, request.gen_tokens, request.n_batches, request.kv_bits)
        for prompt in prompts
        for batch in request.batches or DEFAULT_BATCHES[kind]
    ]
    minutes = request.minutes or (DEFAULT_MINUTES[kind] if decodes else inf)
    limit_s = max(0.0, 60 * minutes - STARTED_S)
    until_s = monotonic() + limit_s
    progress = Timed(progress, until_s)
    bits = () if request.kv_bits is None else (request.kv_bits,)
    part = Part(progress, "profile", 0.0, PROFILE_SHARE)
    hardware = measure_profile(
        kind,
        [spec],
        f"this-{kind}",
        request.link,
        part,
        ProfileScope(
            bits,
            restores=not decodes,
            jobs=jobs if decodes else (),
            max_s=PROFILE_SHARE * limit_s,
            layerwise=request.schedule == "column",
        ),
    )
    part = Part(progress, "", PROFILE_SHARE, 1 - PROFILE_SHARE)
    grid, seed = Grid(request.repeats, until_s), request.seed
    if decodes:
        cases, report = measure_decodes(
            spec, hardware, kind, jobs, grid, seed, request.schedule, part
        )
        return Validation(hardware, cases, report)
    if request.scenario == "restore":
        restores, report = measure_restores(spec, hardware, kind, prompts, grid, seed, part)
        return Validation(hardware, restores, report)
    report = measure_adaptation(spec, hardware, kind, prompts[0], request.repeats, seed, part)
    return Validation(hardware, (), report)


def check_out_folder(out: Path) -> None:
    """Refuse to write over a folder that holds something other than an earlier run.

    Raises:
        BadInput: it is a file, or it holds other files.
    """
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out(={out}) is a file; name a folder.")
    if out.is_dir() and any(out.iterdir()):
        if not (out / REPORT).is_file():
            raise BadInput(f"--out(={out}) holds other files; name a new or earlier run's folder.")
        read_json(out / REPORT, "validation")
