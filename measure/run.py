"""Running restore plans on a device: the work behind `kvoverlap run` for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure.decode_grid import WARM_UPS
from planner import Plan
from planner.restore import RestorePlan
from planner.restore.plan import token_counts
from planner.restore.planner import meeting_token
from sim.engine.api import simulate
from sim.graph.jobs import RestoreRequest
from sim.graph.timeline import Timeline
from sim.lanes import HOST, LANE_OF_TIER
from sim.machine.availability import Availability
from sim.machine.profile import HardwareProfile
from sim.progress import Progress
from sim.results.recording import Recording

if TYPE_CHECKING:
    from hw import ResidentPrefill, RestoreExecutor
    from hw.backends import Backend
    from hw.model.weights import Weights


def tier_paces(hardware: HardwareProfile, tier: str) -> dict[str, float]:
    """Pace of the lane behind host memory that a tier needs, where it is emulated."""
    lane = LANE_OF_TIER.get(tier)
    if lane is None or hardware.restore is None:
        return {}
    pace = hardware.restore.tier(lane).paced_bytes_per_s
    return {} if pace is None else {lane: pace}


def what_it_did(timeline: Timeline, request: RestoreRequest) -> dict[str, int]:
    """Tokens by where their K and V came from in a run, and where its two ends met."""
    computed, projected, loaded = token_counts(timeline)
    return {
        "computed_tokens": computed,
        "projected_tokens": projected,
        "loaded_tokens": loaded,
        "meeting_token": meeting_token(timeline, request),
    }


@dataclass(frozen=True)
class Prepared:
    """Weights and a prompt computed whole, on a backend that is open."""

    backend: Backend
    weights: Weights
    reference: ResidentPrefill

    @contextmanager
    def executor(self, plan: RestorePlan, cache: Path | None = None) -> Iterator[RestoreExecutor]:
        """The plan's graph, simulated, with its prefix on its tier."""
        from hw import RestoreExecutor, open_tier

        graph = plan.simulated_graph()
        predicted = simulate(graph, plan.hardware, availability=plan.availability)
        with open_tier(plan.workload, self.weights, self.reference, cache) as tier:
            yield RestoreExecutor(
                graph, predicted.graph.sha256, self.weights, self.reference, tier, self.backend
            )


def run_restore(
    plan: RestorePlan,
    kind: str,
    repeats: int,
    seed: int,
    trace: Availability,
    cache: Path | None,
    steps: Progress,
) -> Recording:
    """Execute a simulated restore `repeats` times and check its numbers after each.

    Args:
        trace: what the device has of its lanes over time.
        cache: file of tier `ssd`, kept.

    Raises:
        WrongNumbers: a run came to something else than computing the whole prompt.
    """
    from hw import lost_tokens, open_backend

    pace = plan.hardware.links.h2d.paced_bytes_per_s
    tiers = tier_paces(plan.hardware, plan.workload.tier)
    with open_backend(kind, pace, tiers) as backend:
        ready = prepare(plan, backend, seed, steps)
        with ready.executor(plan, cache) as executor:
            steps("warming up")
            for _ in range(WARM_UPS[kind]):
                executor.run(trace)
            runs = []
            checks: dict[str, Any] = {}
            for number in range(repeats):
                steps(f"repeat {number + 1} of {repeats}", number / repeats)
                runs.append(executor.run(trace))
                checks = executor.check()
            checks["recomputed_instead"] = lost_tokens(executor.recomputed)
            if trace.steps:
                checks["compute_shares"] = [asdict(one) for one in executor.shares(trace)]
            environment = {**backend.environment(), "tier": executor.tier.how}
    return Recording("measured", plan.hardware, tuple(runs), environment, checks)


def prepare(
    plan: RestorePlan, backend: Backend, seed: int, tell: Callable[[str], object]
) -> Prepared:
    """Make weights and a random prompt, and compute it whole.

    Raises:
        DoesNotFit: before anything is allocated; BadInput for what can only be simulated.
    """
    from hw import (
        check_restore_fits,
        check_runnable_request,
        prompt_ids,
        random_weights,
        resident_prefill,
    )

    graph = plan.simulated_graph()
    check_runnable_request(graph)
    check_restore_fits(graph, backend)
    tell("making weights")
    weights = random_weights(plan.model, seed, backend.device)
    tell("computing the whole prompt for reference")
    prompt = prompt_ids(plan.model, plan.workload, seed)[0]
    return Prepared(backend, weights, resident_prefill(weights, prompt, backend))


def run_plan(loaded: Plan, kind: str, repeats: int, seed: int, steps: Progress) -> Recording:
    """Execute a simulated plan `repeats` times and check its numbers."""
    from hw import (
        Executor,
        check_graph_fits,
        open_backend,
        prefilled_caches,
        random_weights,
        resident_decode,
    )

    graph = loaded.simulated_graph()
    pace = loaded.hardware.links.h2d.paced_bytes_per_s
    with open_backend(kind, pace) as backend:
        check_graph_fits(graph, backend)
        steps("making weights")
        weights = random_weights(loaded.model, seed, backend.device)
        steps("prefilling prompts and decoding them for reference")
        pageable = (0, HOST) in graph.lanes
        caches = prefilled_caches(weights, loaded.workload, seed, backend, pageable)
        references = [resident_decode(weights, cache, loaded.workload) for cache in caches]
        predicted = simulate(graph, loaded.hardware)
        tokens = [reference.tokens for reference in references]
        follows = loaded.model.dtype != "float32" or loaded.workload.kv_bits is not None
        follow = tokens if follows else None
        executor = Executor(graph, predicted.graph.sha256, weights, caches, backend, follow)
        steps("warming up")
        for _ in range(WARM_UPS[kind]):
            executor.run()
        runs = []
        for number in range(repeats):
            steps(f"repeat {number + 1} of {repeats}", number / repeats)
            runs.append(executor.run())
        steps("checking the numbers")
        checks = executor.check(references)
        environment = backend.environment()
    return Recording("measured", loaded.hardware, tuple(runs), environment, checks)
