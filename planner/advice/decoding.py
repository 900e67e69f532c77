"""What decoding with a KV cache in host memory comes to: the best plan, and where that changes."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from planner.crossovers import Interval, intervals, largest
from planner.decode.make import make_plan
from planner.decode.plan import Plan
from planner.decode.planner import DecodePlanner
from sim.errors import BadInput, DoesNotFit
from sim.graph.jobs import Workload
from sim.graph.tasks import TaskGraph
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec

RESIDENT, LOAD, RECOMPUTE, SPLIT, NO_ROOM = "resident", "load", "recompute", "split", "no room"
"""Verdicts: all in GPU memory, one way alone, both ways, or not on this machine."""

WORTH_FRAC = 0.01
"""A split that saves less than this is not worth its trouble."""

MIN_TOKENS = 16


@dataclass(frozen=True, slots=True)
class DecodeJob:
    """Sequences that are decoded together, one step of them.

    Args:
        schedule: `row`, or `column` where the weights do not fit.
        engine: which one simulates, as in `sim.simulate`.
    """

    model: ModelSpec
    hardware: HardwareProfile
    batch_size: int
    prompt_tokens: int
    schedule: str = "row"
    engine: str = "simpy"

    def planner(
        self, tokens: int | None = None, batch: int | None = None, keep: bool = False
    ) -> DecodePlanner:
        """The planner of the job, or of one that is longer or larger."""
        job = Workload(batch or self.batch_size, tokens or self.prompt_tokens, 1)
        return DecodePlanner(
            self.model, self.hardware, job, self.schedule, keep=keep, engine=self.engine
        )


@dataclass(frozen=True, slots=True)
class Slo:
    """A step's time against what it may take.

    Args:
        step_s: with as much in GPU memory as fits.
        largest_batch: of the same prompts, that meets it; 0 where none does.
    """

    slo_s: float
    step_s: float
    largest_batch: int

    @property
    def met(self) -> bool:
        return self.step_s <= self.slo_s


def best_plan(model: ModelSpec, hardware: HardwareProfile, workload: Workload, engine: str) -> Plan:
    """The plan of a row schedule or, where the weights do not fit, of a column schedule.

    Raises:
        DoesNotFit: neither fits; of the row schedule.
    """
    try:
        return make_plan(model, hardware, workload, engine=engine)
    except DoesNotFit as refusal:
        try:
            return make_plan(model, hardware, workload, schedule="column", engine=engine)
        except (DoesNotFit, BadInput):
            raise refusal from None


@dataclass(frozen=True, slots=True)
class Ways:
    """Seconds of a step by what is done; infinite where memory has no room for that."""

    load_s: float
    recompute_s: float
    best_s: float

    @classmethod
    def of(cls, planner: DecodePlanner, best_s: float | None = None) -> Ways:
        """Those of a planner's job; `best_s` where that is known already."""
        load_s, recompute_s = (_alone(planner, name) for name in ("load-all", "recompute-all"))
        return cls(load_s, recompute_s, best_step(planner) if best_s is None else best_s)

    @property
    def verdict(self) -> str:
        """One way alone, or the split where that is faster by `WORTH_FRAC`."""
        if self.best_s == inf:
            return NO_ROOM
        uncontended_s = min(self.load_s, self.recompute_s)
        if uncontended_s > self.best_s * (1 + WORTH_FRAC):
            return SPLIT
        return LOAD if uncontended_s == self.load_s else RECOMPUTE


def _alone(planner: DecodePlanner, policy: str) -> float:
    split, step_s = planner.baselines[policy]
    return step_s if _fits(planner, planner.lower(split)) else inf


def _fits(planner: DecodePlanner, graph: TaskGraph) -> bool:
    try:
        planner.check_fits(graph)
    except DoesNotFit:
        return False
    return True


def best_step(planner: DecodePlanner) -> float:
    """Seconds of a step under the planner's choice; infinite where nothing fits."""
    try:
        timeline = planner.simulate(planner.best.split, planner.best.residency)
    except DoesNotFit:
        return inf
    return timeline.makespan_s if _fits(planner, timeline.graph) else inf


def keeps_whole_cache(planner: DecodePlanner) -> bool:
    """Whether the planner's choice leaves all of the KV cache in GPU memory."""
    kept, job = planner.best.residency, planner.workload
    return all(kept.keeps_whole(layer, job) for layer in range(planner.model.n_layers))


def by_context(job: DecodeJob) -> tuple[Interval, ...]:
    """Which way wins at which context length, the cache in host memory."""

    def verdict(tokens: int) -> str:
        return Ways.of(job.planner(tokens)).verdict

    most = job.model.max_positions - 1
    return intervals(verdict, min(MIN_TOKENS, most), most)


def against_slo(job: DecodeJob, slo_s: float, step_s: float) -> Slo:
    """Whether a step is fast enough, and the largest batch whose step is.

    Args:
        step_s: of the job itself.
    """

    def step(batch: int) -> float:
        if batch == job.batch_size:
            return step_s
        return best_step(job.planner(batch=batch, keep=True))

    return Slo(slo_s, step_s, largest(step, slo_s, job.batch_size))
