"""Advice on a KV cache that exceeds GPU memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from planner.advice.decoding import (
    RESIDENT,
    DecodeJob,
    Slo,
    Ways,
    best_plan,
    best_step,
    by_context,
    cache_is_resident,
    compare_with_slo,
)
from planner.advice.reuse import Reuse, reuse
from planner.advice.runtime_settings import CacheBudget, RuntimeSetting, runtime_settings
from planner.crossovers import Interval
from planner.decode.plan import DecodePlan, Sensitivity
from planner.job import Job
from sim.errors import BadInput
from sim.graph.jobs import Workload
from sim.graph.memory import footprint
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec
from sim.results.accuracy import assess_kind, nine_of_ten


@dataclass(frozen=True, slots=True)
class Evidence:
    """90th percentile of the prediction errors on recorded machines of one kind.

    Args:
        cases: recorded cases of shapes with several policies; without any, both errors are None.
        makespan_error_frac: |predicted / measured - 1| of a makespan.
        ratio_error_frac: the same of the ratio of two policies on one shape.
    """

    device_kind: str
    cases: int
    makespan_error_frac: float | None = None
    ratio_error_frac: float | None = None

    @classmethod
    def of(cls, recordings: Path, device_kind: str) -> Evidence:
        """Errors of the recordings in a folder."""
        found = assess_kind(recordings, device_kind)
        if not found.ratio_errors_frac:
            return cls(device_kind, 0)
        return cls(
            device_kind,
            len(found.cases),
            found.p90_abs_error_frac,
            nine_of_ten(found.ratio_errors_frac),
        )


@dataclass(frozen=True)
class Advice:
    """A verdict with its gain, its evidence and its sensitivity.

    Args:
        plan: the best split of one decode step whose KV cache is in host memory.
        ways: times of such a step by way of obtaining K and V.
        fits: whether GPU memory has room for the whole cache.
        resident_step_s: time of a step with as much of the cache in GPU memory as fits.
        by_context: the verdict at each context length, for this batch.
        reuse: None where GPU memory has no room for one request.
    """

    plan: DecodePlan
    ways: Ways
    fits: bool
    resident_step_s: float
    evidence: Evidence
    by_context: tuple[Interval, ...]
    reuse: Reuse | None
    slo: Slo | None
    settings: tuple[RuntimeSetting, ...]

    @property
    def from_host(self) -> str:
        """The verdict for a cache in host memory."""
        return self.ways.verdict

    @property
    def verdict(self) -> str:
        """The verdict in one word."""
        return RESIDENT if self.fits else self.from_host

    @property
    def gain(self) -> float:
        """Speed-up of the split over loading everything."""
        return self.plan.baselines["load-all"] / self.plan.makespan_s

    @property
    def gain_range(self) -> tuple[float, float] | None:
        """The gain with the 90th percentile error of recorded ratios in both directions."""
        error = self.evidence.ratio_error_frac
        return None if error is None else (self.gain / (1 + error), self.gain / (1 - error))

    @property
    def best_upgrade(self) -> Sensitivity:
        """The part of the machine whose 10 % increase saves most."""
        return max(self.plan.sensitivities, key=lambda one: one.saved_frac)

    def to_dict(self) -> dict[str, Any]:
        """The advice as `--json` prints it."""
        plan = self.plan
        recomputed, attended = plan.steps[0].median_layer
        return {
            "model": plan.model.name,
            "hardware": plan.hardware.name,
            "batch_size": plan.workload.batch_size,
            "prompt_tokens": plan.workload.prompt_tokens,
            "schedule": plan.schedule,
            "verdict": self.verdict,
            "from_host": self.from_host,
            "recomputed_tokens": recomputed,
            "attended_tokens": attended,
            "step_s": plan.makespan_s,
            "kept_step_s": self.resident_step_s,
            "baselines": plan.baselines,
            "source": plan.source,
            "gain": self.gain,
            "gain_range": self.gain_range,
            "evidence": asdict(self.evidence),
            "pays_most": asdict(self.best_upgrade),
            "by_context": [asdict(one) for one in self.by_context],
            "reuse": None
            if self.reuse is None
            else {**asdict(self.reuse), "least_tokens": self.reuse.least_tokens},
            "slo": None if self.slo is None else {**asdict(self.slo), "met": self.slo.met},
            "hints": [asdict(one) for one in self.settings],
        }


def advise(
    model: ModelSpec,
    hardware: HardwareProfile,
    workload: Workload,
    recordings: Path,
    slo_s: float | None = None,
    engine: str = "simpy",
) -> Advice:
    """The advice for one decode step and for a later request with the same prompt.

    Args:
        workload: one batch and one step.
        recordings: a folder of recordings, whose errors bound the gain.
        slo_s: time limit of a step.
        engine: as in `sim.simulate`.

    Raises:
        BadInput: the model has too few positions, or `slo_s` is not a time.
        DoesNotFit: the machine has no memory for the job in any way.
    """
    if slo_s is not None and not 0 < slo_s < float("inf"):
        raise BadInput(f"slo_s(={slo_s}) must be above 0 and finite.")
    plan = best_plan(Job(model, hardware, workload), engine)
    batch, prompt = workload.batch_size, workload.prompt_tokens
    job = DecodeJob(model, hardware, batch, prompt, plan.schedule, engine, workload.kv_bits)
    planner, resident = job.planner(), job.planner(keep=True)
    resident_step_s = min(best_step(resident), plan.makespan_s)
    later = reuse(model, hardware, prompt, engine, workload.kv_bits)
    emulated = hardware.links.h2d.paced_bytes_per_s is not None
    settings: tuple[RuntimeSetting, ...] = ()
    if later is not None and not emulated:
        loaded = planner.problem.simulate(planner.problem.choice_of("load-all").split).graph
        cache = CacheBudget(footprint(loaded).host_kv_bytes, later.least_tokens)
        settings = runtime_settings(model, hardware, cache)
    return Advice(
        plan=plan,
        ways=Ways.of(planner, plan.makespan_s),
        fits=cache_is_resident(resident),
        resident_step_s=resident_step_s,
        evidence=Evidence.of(recordings, hardware.device_kind),
        by_context=by_context(job),
        reuse=later,
        slo=None if slo_s is None else compare_with_slo(job, slo_s, resident_step_s),
        settings=settings,
    )
