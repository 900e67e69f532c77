"""Advice on a KV cache that exceeds GPU memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from planner.advice.decoding import DecodeJob, Slo, best_plan, by_context, compare_with_slo
from planner.advice.reuse import Reuse, reuse
from planner.advice.runtime_gap import RuntimeGap, cache_bytes, runtime_gap
from planner.advice.runtime_settings import CacheBudget, RuntimeSetting, runtime_settings
from planner.crossovers import Interval
from planner.decode.headline import headline, verdict
from planner.decode.plan import DecodePlan, Sensitivity
from planner.decode.ways import Ways
from planner.job import Job, PlanOptions
from planner.make import make_plan
from sim.engine.api import AUTO
from sim.errors import BadInput
from sim.graph.jobs import Workload
from sim.graph.memory import footprint
from sim.machine.profile import HardwareProfile
from sim.machine.runtime import Runtime
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
        resident: the best plan with as much in GPU memory as fits.
        ways: times of a step whose cache is in host memory, by way of obtaining K and V.
        by_context: the verdict at each context length, for this batch.
        reuse: None where GPU memory has no room for one request.
        gap: what a named serving runtime leaves on the table.
    """

    plan: DecodePlan
    resident: DecodePlan
    ways: Ways
    evidence: Evidence
    by_context: tuple[Interval, ...]
    reuse: Reuse | None
    slo: Slo | None
    settings: tuple[RuntimeSetting, ...]
    gap: RuntimeGap | None = None

    @property
    def headline(self) -> str:
        """What to do, and how long a step then takes."""
        return headline(self.resident)

    @property
    def device_frac(self) -> float:
        """Part of the GPU's memory that weights and cache of the best plan take."""
        need = footprint(self.resident.lower())
        return need.device_bytes / self.resident.hardware.memory.device_bytes

    @property
    def step_s_by_policy(self) -> dict[str, float]:
        """Seconds of a step by policy; `lp` keeps what fits in GPU memory."""
        times = dict(self.resident.baselines)
        if self.plan.makespan_s > times["lp"]:
            times["lp --no-keep"] = self.plan.makespan_s
        return times

    @property
    def from_host(self) -> str:
        """The verdict for a cache in host memory."""
        return self.ways.verdict

    @property
    def verdict(self) -> str:
        """What the headline says, in a word or two."""
        return verdict(self.resident)

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
            "headline": self.headline,
            "verdict": self.verdict,
            "from_host": self.from_host,
            "recomputed_tokens": recomputed,
            "attended_tokens": attended,
            "step_s": plan.makespan_s,
            "kept_step_s": self.resident.makespan_s,
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
            **({} if self.gap is None else {"runtime": self.gap.to_dict()}),
        }


def advise(
    model: ModelSpec,
    hardware: HardwareProfile,
    workload: Workload,
    recordings: Path,
    slo_s: float | None = None,
    engine: str = AUTO,
    runtime: Runtime | None = None,
) -> Advice:
    """The advice for one decode step and for a later request with the same prompt.

    Args:
        workload: one batch and one step.
        recordings: a folder of recordings, whose errors bound the gain.
        slo_s: time limit of a step.
        engine: as in `sim.simulate`.
        runtime: a serving runtime whose times are compared with the best; None for none.

    Raises:
        BadInput: the model has too few positions, or `slo_s` is not a time.
        DoesNotFit: the machine has no memory for the job in any way.
    """
    if slo_s is not None and not 0 < slo_s < float("inf"):
        raise BadInput(f"slo_s(={slo_s}) must be above 0 and finite.")
    asked = Job(model, hardware, workload)
    plan = best_plan(asked, engine)
    options = PlanOptions(schedule=plan.schedule, keep=True, engine=engine)
    resident = make_plan(asked, options)
    batch, prompt = workload.batch_size, workload.prompt_tokens
    job = DecodeJob(model, hardware, batch, prompt, plan.schedule, engine, workload.kv_bits)
    planner = job.planner()
    later = reuse(model, hardware, prompt, engine, workload.kv_bits)
    emulated = hardware.links.h2d.paced_bytes_per_s is not None
    settings: tuple[RuntimeSetting, ...] = ()
    if later is not None and not emulated and not hardware.memory.unified:
        loaded = planner.problem.simulate(planner.problem.choice_of("load-all").split).graph
        cache = CacheBudget(footprint(loaded).host_kv_bytes, cache_bytes(asked), later.least_tokens)
        settings = runtime_settings(model, hardware, cache)
    gap = None
    if runtime is not None and not runtime.plans_itself:
        gap = runtime_gap(runtime, asked, engine)
    return Advice(
        plan=plan,
        resident=resident,
        ways=Ways.of(planner, plan.makespan_s),
        evidence=Evidence.of(recordings, hardware.device_kind),
        by_context=by_context(job),
        reuse=later,
        slo=None if slo_s is None else compare_with_slo(job, slo_s, resident.makespan_s),
        settings=settings,
        gap=gap,
    )
