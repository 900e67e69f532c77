"""Running restore plans on a device: the work behind `kvoverlap run` for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.grid import WARM_UPS
from cli.output import progress, say
from planner.restore import RestorePlan
from planner.restore.plan import token_counts
from planner.restore.planning import meeting_token
from sim.availability import Availability
from sim.engine import simulate
from sim.hardware import HardwareProfile
from sim.prefill import LANE_OF_TIER
from sim.quantities import percent
from sim.recording import Recording
from sim.restore import RestoreRequest
from sim.timeline import Timeline

if TYPE_CHECKING:
    from hw.backends import Backend
    from hw.restore import ResidentPrefill, RestoreExecutor
    from hw.weights import Weights


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
        from hw.restore import RestoreExecutor, open_tier

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
) -> Recording:
    """Execute a simulated restore `repeats` times and check its numbers after each.

    Args:
        trace: what the device has of its lanes over time.
        cache: file of tier `ssd`, kept.

    Raises:
        WrongNumbers: a run came to something else than computing the whole prompt.
    """
    from hw import open_backend
    from hw.restore import lost_tokens

    pace = plan.hardware.links.h2d.paced_bytes_per_s
    tiers = tier_paces(plan.hardware, plan.workload.tier)
    with progress("run") as steps, open_backend(kind, pace, tiers) as backend:
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
    from hw import prompt_ids, random_weights
    from hw.restore import check_restore_fits, check_runnable_request, resident_prefill

    graph = plan.simulated_graph()
    check_runnable_request(graph)
    check_restore_fits(graph, backend)
    tell("making weights")
    weights = random_weights(plan.model, seed, backend.device)
    tell("computing the whole prompt for reference")
    prompt = prompt_ids(plan.model, plan.workload, seed)[0]
    return Prepared(backend, weights, resident_prefill(weights, prompt, backend))


def say_restore(did: Mapping[str, int], checks: Mapping[str, Any], tier: str) -> None:
    """What a run of a restore did, as text."""
    projected = f", {did['projected_tokens']:,} projected" if did["projected_tokens"] else ""
    say(
        f"{did['computed_tokens']:,} tokens computed{projected}, {did['loaded_tokens']:,} loaded; "
        f"the ends met at token {did['meeting_token']:,}; tier: {tier}"
    )
    say_lost(checks["recomputed_instead"])
    for share in checks.get("compute_shares", ()):
        say(
            f"compute from {share['start_s']:.3g} s on: {percent(share['measured_frac'])} of its "
            f"core measured, {percent(share['stated_frac'])} stated"
        )
    say("numbers: first token, logits, K and V equal the resident prefill")


def say_lost(recomputed: Iterable[Mapping[str, Any]]) -> None:
    """What was computed because the tier had lost it."""
    for one in recomputed:
        start, stop = one["tokens"]
        say(
            f"tokens {start} to {stop} were computed instead of loaded in {len(one['layers'])} "
            f"layers: {one['why']}"
        )
