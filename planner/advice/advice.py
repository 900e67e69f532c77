"""One answer to what to do about a KV cache that does not fit the GPU."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from planner.advice.decoding import (
    RESIDENT,
    DecodeJob,
    Slo,
    Ways,
    against_slo,
    best_plan,
    best_step,
    by_context,
    keeps_whole_cache,
)
from planner.advice.reuse import Reuse, reuse
from planner.advice.runtime_settings import Held, RuntimeSetting, hints
from planner.crossovers import Interval
from planner.decode.plan import Plan, Sensitivity
from sim.errors import BadInput
from sim.graph.jobs import Workload
from sim.graph.memory import footprint
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec
from sim.results.accuracy import assess_kind, nine_of_ten


@dataclass(frozen=True, slots=True)
class Evidence:
    """How far off predictions were on recorded machines of one kind, nine times of ten.

    Args:
        cases: recorded, with more than one policy on a shape; of none both errors are None.
        makespan_error_frac: predicted over measured makespan, less 1.
        ratio_error_frac: the same of the ratio of two policies on one shape.
    """

    device_kind: str
    cases: int
    makespan_error_frac: float | None = None
    ratio_error_frac: float | None = None

    @classmethod
    def of(cls, recordings: Path, device_kind: str) -> Evidence:
        """What the recordings in a folder say."""
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
    """What to do, what it is worth, and what it hangs on.

    Args:
        plan: the best split of one decode step whose KV cache is in host memory.
        ways: what such a step takes by what is done with that cache.
        fits: the whole cache has room in GPU memory.
        kept_step_s: the step's time with as much as fits kept there.
        by_context: which way wins at which context length, for this batch.
        reuse: None where GPU memory has no room for one request.
    """

    plan: Plan
    ways: Ways
    fits: bool
    kept_step_s: float
    evidence: Evidence
    by_context: tuple[Interval, ...]
    reuse: Reuse | None
    slo: Slo | None
    hints: tuple[RuntimeSetting, ...]

    @property
    def from_host(self) -> str:
        """Which way wins for a cache in host memory."""
        return self.ways.verdict

    @property
    def verdict(self) -> str:
        """What to do in one word."""
        return RESIDENT if self.fits else self.from_host

    @property
    def gain(self) -> float:
        """How many times as fast as loading all the split is."""
        return self.plan.baselines["load-all"] / self.plan.makespan_s

    @property
    def gain_range(self) -> tuple[float, float] | None:
        """Where the gain lies if its ratio is as far off as nine of ten recorded ones."""
        error = self.evidence.ratio_error_frac
        return None if error is None else (self.gain / (1 + error), self.gain / (1 - error))

    @property
    def pays_most(self) -> Sensitivity:
        """The part of the machine of which 10 % more saves most."""
        return max(self.plan.sensitivities, key=lambda one: one.saved_frac)

    def to_dict(self) -> dict[str, Any]:
        """The answer as `--json` prints it."""
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
            "kept_step_s": self.kept_step_s,
            "baselines": plan.baselines,
            "source": plan.source,
            "gain": self.gain,
            "gain_range": self.gain_range,
            "evidence": asdict(self.evidence),
            "pays_most": asdict(self.pays_most),
            "by_context": [asdict(one) for one in self.by_context],
            "reuse": None
            if self.reuse is None
            else {**asdict(self.reuse), "least_tokens": self.reuse.least_tokens},
            "slo": None if self.slo is None else {**asdict(self.slo), "met": self.slo.met},
            "hints": [asdict(one) for one in self.hints],
        }


def advise(
    model: ModelSpec,
    hardware: HardwareProfile,
    workload: Workload,
    recordings: Path,
    slo_s: float | None = None,
    engine: str = "simpy",
) -> Advice:
    """Plan a decode step in every way, and a restore of its prompt, and draw the conclusion.

    Args:
        workload: one batch and one step of it.
        recordings: a folder of recordings, whose errors say how sure the answer is.
        slo_s: what a step may take.
        engine: which one simulates, as in `sim.simulate`.

    Raises:
        BadInput: the model has too few positions, or `slo_s` is not a time.
        DoesNotFit: the machine has no memory for the job, whatever is done.
    """
    if slo_s is not None and not 0 < slo_s < float("inf"):
        raise BadInput(f"slo_s(={slo_s}) must be above 0 and finite.")
    plan = best_plan(model, hardware, workload, engine)
    batch, prompt = workload.batch_size, workload.prompt_tokens
    job = DecodeJob(model, hardware, batch, prompt, plan.schedule, engine)
    planner, keeping = job.planner(), job.planner(keep=True)
    ways, loaded = (
        Ways.of(planner, plan.makespan_s),
        planner.lower(planner.baselines["load-all"][0]),
    )
    kept_step_s = min(best_step(keeping), plan.makespan_s)
    later = reuse(model, hardware, prompt, engine)
    emulated = hardware.links.h2d.paced_bytes_per_s is not None
    settings: tuple[RuntimeSetting, ...] = ()
    if later is not None and not emulated:
        held = Held(footprint(loaded).host_kv_bytes, later.least_tokens)
        settings = hints(model, hardware, held)
    return Advice(
        plan=plan,
        ways=ways,
        fits=keeps_whole_cache(keeping),
        kept_step_s=kept_step_s,
        evidence=Evidence.of(recordings, hardware.device_kind),
        by_context=by_context(job),
        reuse=later,
        slo=None if slo_s is None else against_slo(job, slo_s, kept_step_s),
        hints=settings,
    )
