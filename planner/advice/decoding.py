"""Decoding with a KV cache in host memory: the best plan, its alternatives and crossovers."""

from __future__ import annotations

from dataclasses import dataclass

from planner.crossovers import Interval, intervals, largest
from planner.decode.fast_planner import ShortcutPlanner
from planner.decode.plan import DecodePlan
from planner.decode.planner import DecodePlanner
from planner.decode.problem import DecodeProblem
from planner.decode.ways import SPLIT, Ways, best_step
from planner.job import Job, PlanOptions
from planner.make import make_plan
from sim.engine.api import AUTO
from sim.errors import BadInput, DoesNotFit
from sim.graph.jobs import Workload
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec

MIN_TOKENS = 16


@dataclass(frozen=True, slots=True)
class DecodeJob:
    """One decode step of a batch.

    Args:
        schedule: `row`, or `column` where the weights do not fit.
        engine: as in `sim.simulate`.
        kv_bits: as in `Workload`.
    """

    model: ModelSpec
    hardware: HardwareProfile
    batch_size: int
    prompt_tokens: int
    schedule: str = "row"
    engine: str = AUTO
    kv_bits: int | None = None

    def planner(
        self, tokens: int | None = None, batch: int | None = None, keep: bool = False
    ) -> DecodePlanner:
        """The planner of the job, or of the same job with other sizes."""
        batch, tokens = batch or self.batch_size, tokens or self.prompt_tokens
        job = Workload(batch, tokens, 1, kv_bits=self.kv_bits)
        return DecodePlanner(
            DecodeProblem(
                self.model, self.hardware, job, self.schedule, keep=keep, engine=self.engine
            )
        )


@dataclass(frozen=True, slots=True)
class Slo:
    """The time of a step compared with its limit.

    Args:
        slo_s: the limit.
        step_s: with as much of the cache in GPU memory as fits.
        largest_batch: largest batch of the same prompts within the limit, or 0.
    """

    slo_s: float
    step_s: float
    largest_batch: int

    @property
    def met(self) -> bool:
        return self.step_s <= self.slo_s


def best_plan(job: Job[Workload], engine: str) -> DecodePlan:
    """The plan of the row schedule or, if that does not fit, of the column schedule.

    Raises:
        DoesNotFit: neither fits; the message is that of the row schedule.
    """
    try:
        return make_plan(job, PlanOptions(engine=engine))
    except DoesNotFit as refusal:
        try:
            return make_plan(job, PlanOptions(schedule="column", engine=engine))
        except (DoesNotFit, BadInput):
            raise refusal from None


def by_context(job: DecodeJob) -> tuple[Interval, ...]:
    """The verdict at each context length, with the cache in host memory."""

    def verdict(tokens: int) -> str:
        planner = job.planner(tokens)
        bound_s = ShortcutPlanner(planner.problem).pipeline_bound_s
        if bound_s is not None:  # a split that saves too little even at the bound needs no LP
            at_bound = Ways.of(planner, bound_s).verdict
            if at_bound != SPLIT:
                return at_bound
        return Ways.of(planner).verdict

    max_tokens = job.model.max_positions - 1
    return intervals(verdict, min(MIN_TOKENS, max_tokens), max_tokens)


def compare_with_slo(job: DecodeJob, slo_s: float, step_s: float) -> Slo:
    """The job's step time and the largest batch within the limit.

    Args:
        step_s: time of the job's own step.
    """

    def step(batch: int) -> float:
        if batch == job.batch_size:
            return step_s
        return best_step(job.planner(batch=batch, keep=True))

    return Slo(slo_s, step_s, largest(step, slo_s, job.batch_size))
