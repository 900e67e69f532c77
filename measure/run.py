"""Runs of plans on a device, for `kvoverlap run` and for grids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from planner import DecodePlan, Plan, RestorePlan
from sim.errors import BadInput
from sim.graph.jobs import RestoreRequest
from sim.graph.timeline import Timeline
from sim.lanes import HOST, LANE_OF_TIER
from sim.machine.availability import ALWAYS, Availability
from sim.machine.profile import HardwareProfile
from sim.progress import Progress
from sim.results.recording import Recording

if TYPE_CHECKING:
    from hw import (
        DecodeExecutor,
        DeviceArena,
        HostCache,
        OffloadedLayers,
        ResidentPrefill,
        RestoreExecutor,
    )
    from hw.backends import Backend
    from hw.cache.reference import ResidentDecode
    from hw.model.weights import Weights

WARM_UPS = {"cpu": 1, "cuda": 3}
"""Uncounted runs of each plan; fewer if they would take longer than `WARM_UP_S` together."""

WARM_UP_S = 1.0


def warm_ups(kind: str, makespan_s: float) -> int:
    """Uncounted runs of a plan that takes `makespan_s`."""
    return max(1, min(WARM_UPS[kind], ceil(WARM_UP_S / makespan_s)))


@dataclass(frozen=True)
class ReadyPlan:
    """A simulated plan on a device, ready to run any number of times.

    Args:
        run: executes the plan once.
        check: compares the last run with its reference; raises WrongNumbers if they differ.
        core_share: of the last run, as `Executor.core_share`.
        environment: describes the device.
    """

    predicted: Timeline
    run: Callable[[], Timeline]
    check: Callable[[], dict[str, Any]]
    core_share: Callable[[], float]
    environment: Callable[[], dict[str, Any]]

    def warm_up(self, kind: str) -> float:
        """Run the plan without counting; returns the seconds of the last run."""
        seconds = 0.0
        for _ in range(warm_ups(kind, self.predicted.makespan_s)):
            begun_s = monotonic()
            self.run()
            seconds = monotonic() - begun_s
        return seconds


@dataclass(frozen=True)
class PreparedDecode:
    """Weights, prompts' caches and reference decodes of one job, on an open backend."""

    backend: Backend
    weights: Weights
    caches: Sequence[HostCache]
    references: Sequence[ResidentDecode]

    def executor(
        self,
        predicted: Timeline,
        offloaded: OffloadedLayers | None = None,
        arena: DeviceArena | None = None,
    ) -> DecodeExecutor:
        """The executor of a simulated graph."""
        from hw import DecodeExecutor

        return DecodeExecutor(
            predicted, self.weights, self.caches, self.references, self.backend, offloaded, arena
        )

    def ready(
        self,
        predicted: Timeline,
        offloaded: OffloadedLayers | None = None,
        arena: DeviceArena | None = None,
    ) -> ReadyPlan:
        """A simulated decode plan, ready to run."""
        executor = self.executor(predicted, offloaded, arena)
        return ReadyPlan(
            predicted,
            executor.run,
            executor.check,
            lambda: executor.core_share,
            self.backend.environment,
        )


@dataclass(frozen=True)
class PreparedRestore:
    """Weights and a prompt with its reference prefill, on an open backend."""

    request: RestoreRequest
    backend: Backend
    weights: Weights
    reference: ResidentPrefill

    @contextmanager
    def executor(self, predicted: Timeline, cache: Path | None = None) -> Iterator[RestoreExecutor]:
        """The executor of a simulated graph, with the cached prefix on its tier."""
        from hw import RestoreExecutor, open_tier

        with open_tier(self.request, self.weights, self.reference, cache) as tier:
            yield RestoreExecutor(predicted, self.weights, self.reference, tier, self.backend)

    @contextmanager
    def ready(
        self, predicted: Timeline, trace: Availability = ALWAYS, cache: Path | None = None
    ) -> Iterator[ReadyPlan]:
        """A simulated restore plan, ready to run under `trace`."""
        from hw import lost_tokens

        def check() -> dict[str, Any]:
            found = {**executor.check(), "recomputed_instead": lost_tokens(executor.recomputed)}
            if trace.steps:
                found["compute_shares"] = [asdict(one) for one in executor.shares(trace)]
            return found

        with self.executor(predicted, cache) as executor:
            yield ReadyPlan(
                predicted,
                lambda: executor.run(trace),
                check,
                lambda: executor.core_share,
                lambda: {**self.backend.environment(), "tier": executor.tier.how},
            )


def tier_paces(hardware: HardwareProfile, tier: str | None) -> dict[str, float]:
    """Pace in bytes/s of the lane that loads a tier into host memory, if that lane is emulated."""
    lane = None if tier is None else LANE_OF_TIER.get(tier)
    if lane is None or hardware.restore is None:
        return {}
    pace = hardware.restore.tier(lane).paced_bytes_per_s
    return {} if pace is None else {lane: pace}


def run(
    plan: Plan,
    kind: str,
    repeats: int,
    seed: int,
    progress: Progress,
    trace: Availability | None = None,
    cache: Path | None = None,
) -> Recording:
    """Execute a simulated plan `repeats` times and check its numbers after each run.

    Args:
        trace: of a restore, the available share of each lane over time; by default the plan's.
        cache: of a restore from tier `ssd`, the cache file to keep.

    Raises:
        BadInput: the plan predicts a serving runtime, which runs its own jobs.
        DoesNotFit: the job needs more memory than the device has.
        WrongNumbers: a run differs from the reference.
    """
    from hw import check_runnable, open_backend

    if plan.runtime is not None and not plan.runtime.plans_itself:
        raise BadInput(
            f"the plan predicts {plan.runtime.name}, and runs are of kvoverlap's own executor; "
            "plan again without --runtime."
        )
    check_runnable(plan.model)
    predicted = plan.simulate()
    trace = plan.availability if trace is None else trace
    pace = plan.hardware.links.h2d.paced_bytes_per_s
    with (
        open_backend(kind, pace, tier_paces(plan.hardware, plan.tier)) as backend,
        READY[plan.kind](plan, predicted, backend, seed, progress, trace, cache) as ready,
    ):
        progress("warming up")
        ready.warm_up(kind)
        runs = []
        checks: dict[str, Any] = {}
        for number in range(repeats):
            progress(f"repeat {number + 1} of {repeats}", number / repeats)
            runs.append(ready.run())
            checks = ready.check()
        return Recording("measured", plan.hardware, tuple(runs), ready.environment(), checks)


READY: dict[str, Callable[..., AbstractContextManager[ReadyPlan]]] = {
    DecodePlan.kind: lambda plan, predicted, backend, seed, progress, *_: nullcontext(
        prepare_decode(plan, backend, seed, progress).ready(predicted)
    ),
    RestorePlan.kind: lambda plan, predicted, backend, seed, progress, trace, cache: (
        prepare_restore(plan, backend, seed, progress).ready(predicted, trace, cache)
    ),
}
"""A plan of each kind on a device, ready to run."""


def prepare_decode(
    plan: DecodePlan, backend: Backend, seed: int, progress: Progress
) -> PreparedDecode:
    """Make weights, prefill random prompts, and decode them without offloading for reference.

    Raises:
        DoesNotFit: the plan needs more memory than the device has; nothing is allocated then.
    """
    from hw import check_graph_fits, prefilled_caches, random_weights, resident_decode

    graph = plan.simulated_graph()
    check_graph_fits(graph, backend)
    progress("making weights")
    weights = random_weights(plan.model, seed, backend.device)
    progress("prefilling prompts and decoding them for reference")
    pageable = (0, HOST) in graph.lanes
    caches = prefilled_caches(weights, plan.workload, seed, backend, pageable)
    references = [resident_decode(weights, cache, plan.workload) for cache in caches]
    return PreparedDecode(backend, weights, caches, references)


def prepare_restore(
    plan: RestorePlan, backend: Backend, seed: int, progress: Progress
) -> PreparedRestore:
    """Make weights and a random prompt, and compute all of the prompt for reference.

    Raises:
        DoesNotFit: the plan needs more memory than the device has; nothing is allocated then.
        BadInput: the request can only be simulated.
    """
    from hw import (
        check_restore_fits,
        check_runnable_request,
        prompt_ids,
        random_weights,
        resident_prefill,
    )

    graph = plan.simulated_graph()
    check_runnable_request(plan.model, plan.workload)
    check_restore_fits(graph, backend)
    progress("making weights")
    weights = random_weights(plan.model, seed, backend.device)
    progress("computing the whole prompt for reference")
    prompt = prompt_ids(plan.model, plan.workload, seed)[0]
    reference = resident_prefill(weights, prompt, backend)
    return PreparedRestore(plan.workload, backend, weights, reference)
