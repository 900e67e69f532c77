"""A grid of restores over tiers and bandwidths, planned, predicted and measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure.decode_grid import warm_ups
from measure.interleave import (
    EXTRA_ROUNDS,
    InterleavedRuns,
    Speed,
    present_machine,
    run_interleaved,
)
from measure.run import Prepared, prepare, tier_paces, what_it_did
from planner.restore import RestorePlan, make_restore_plan
from planner.restore.lower import compute_only_graph
from sim.engine.api import simulate
from sim.graph.jobs import RestoreRequest
from sim.graph.timeline import Timeline
from sim.lanes import LANE_OF_TIER
from sim.machine.prefill import Restore, Tier
from sim.machine.profile import HardwareProfile
from sim.machine.provenance import Figure
from sim.model.spec import ModelSpec
from sim.progress import Progress
from sim.results.accuracy import MEASURED, RecordedCase, loosest_tolerance_frac
from sim.results.compare import Comparison, compare
from sim.results.recording import Recording

if TYPE_CHECKING:
    from hw import RestoreExecutor, SpeedProbe
    from hw.backends import Backend

POLICIES = ("two-ended", "lp", "joint", "load-only", "compute-only")
CHUNK_TOKENS, IO_CHUNK_TOKENS = 128, 64

BANDWIDTHS = {"dram": (0.5, 1.0, 2.0), "ssd": (0.7, 1.5)}
"""Of each tier, as multiples of the rate at which loading takes as long as computing."""

PROBE_SAMPLES = 10
"""Beats of reference products before each setting is planned."""


@dataclass(frozen=True)
class Setting:
    """A machine with one tier at one rate, and a request of it."""

    name: str
    hardware: HardwareProfile
    request: RestoreRequest
    policies: tuple[str, ...]


@dataclass(frozen=True)
class RestoreCase:
    """One plan of the grid with its measurement; `predicted` and `did` say who did which tokens."""

    name: str
    plan: RestorePlan
    measured: Recording
    comparison: Comparison
    predicted: dict[str, int]
    did: dict[str, int]

    @property
    def meeting_error_tokens(self) -> int:
        return self.predicted["meeting_token"] - self.did["meeting_token"]

    def save(self, folder: Path) -> None:
        """Write the measurement and, last, what says that it is whole."""
        self.measured.save(folder / MEASURED)
        RecordedCase(self.plan.policy, loosest_tolerance_frac(self.measured)).save(folder)

    def to_dict(self) -> dict[str, Any]:
        request = self.plan.workload
        return {
            "name": self.name,
            "policy": self.plan.policy,
            "tier": request.tier,
            "prompt_tokens": request.prompt_tokens,
            "chunk_tokens": request.chunk_tokens,
            "ttft_error_frac": self.comparison.makespan_error_frac,
            "predicted": self.predicted,
            "measured": self.did,
            "recomputed_instead": self.measured.checks["recomputed_instead"],
            **self.comparison.to_dict(),
        }


@dataclass(frozen=True)
class SettingResult:
    """Cases of one setting, with how fast the machine was before and beside their runs."""

    name: str
    cases: list[RestoreCase]
    drift: Speed
    rounds: InterleavedRuns


def default_settings(
    model: ModelSpec, hardware: HardwareProfile, prompts: Sequence[int]
) -> Iterator[Setting]:
    """Every prompt from every tier at every rate; computing alone does not depend on them.

    The link to a device that has a real one is as it is.
    """
    for n_tokens in prompts:
        policies: tuple[str, ...] = POLICIES
        for tier, factors in BANDWIDTHS.items():
            if tier == "dram" and hardware.links.h2d.paced_bytes_per_s is None:
                factors = (1.0,)
            for factor in factors:
                request = replace(restore_request(n_tokens), tier=tier)
                yield setting_at(model, hardware, request, factor, policies)
                policies = POLICIES[:-1]


def setting_at(
    model: ModelSpec,
    hardware: HardwareProfile,
    request: RestoreRequest,
    factor: float,
    policies: tuple[str, ...],
) -> Setting:
    """A request of a machine whose tier is `factor` as fast as one that loads as long as computes.

    A real link stays as it is.
    """
    rate = float(f"{factor * _balanced_bytes_per_s(model, hardware, request):.2g}")
    machine, words = at_rate(hardware, request.tier, rate)
    return Setting(f"s{request.prompt_tokens}-{request.tier}-{words}", machine, request, policies)


def at_balance(
    model: ModelSpec, hardware: HardwareProfile, prompt_tokens: int
) -> tuple[HardwareProfile, RestoreRequest]:
    """A prompt in host memory behind a link over which loading takes as long as computing."""
    request = restore_request(prompt_tokens)
    rate = _balanced_bytes_per_s(model, hardware, request)
    return at_rate(hardware, request.tier, float(f"{rate:.2g}"))[0], request


def restore_request(prompt_tokens: int) -> RestoreRequest:
    """A prompt that is cached but for its last token, in the chunks of this grid."""
    return RestoreRequest(
        prompt_tokens=prompt_tokens,
        cached_tokens=prompt_tokens - 1,
        chunk_tokens=CHUNK_TOKENS,
        io_chunk_tokens=IO_CHUNK_TOKENS,
    )


def _balanced_bytes_per_s(
    model: ModelSpec, hardware: HardwareProfile, request: RestoreRequest
) -> float:
    uncontended_s = simulate(compute_only_graph(model, request), hardware).makespan_s
    return model.n_layers * request.prompt_tokens * model.kv_token_bytes / uncontended_s


def at_rate(
    hardware: HardwareProfile, tier: str, bytes_per_s: float
) -> tuple[HardwareProfile, str]:
    """The machine with a tier of this rate, and the rate in words."""
    words = f"{bytes_per_s / 1e6:g}MBps"
    if tier != "dram":
        block = hardware.restore or Restore()
        made = Tier(LANE_OF_TIER[tier], Figure("datasheet", bytes_per_s, "as given"))
        return replace(hardware, restore=block.with_tier(made)), words
    pace = hardware.links.h2d.paced_bytes_per_s
    if pace is None:
        return hardware, "link"
    return hardware.with_faster("link", bytes_per_s / pace), words


class RestoreGrid:
    """Plans and runs every policy of each setting, the plans for a machine as fast as it is now."""

    def __init__(
        self,
        model: ModelSpec,
        kind: str,
        repeats: int,
        seed: int,
        steps: Progress,
    ) -> None:
        self.model = model
        self.kind = kind
        self.repeats = repeats
        self.seed = seed
        self.steps = steps

    def measure(self, setting: Setting, done: float) -> SettingResult:
        """Plan, run and compare the cases of one setting.

        Args:
            done: fraction of all settings that is behind.

        Raises:
            WrongNumbers: a run came to something else than computing the whole prompt.
        """
        from hw import SpeedProbe, open_backend

        pace = setting.hardware.links.h2d.paced_bytes_per_s
        paces = tier_paces(setting.hardware, setting.request.tier)
        with open_backend(self.kind, pace, paces) as backend:
            self.steps(f"{setting.name}, planning", done)
            probe = SpeedProbe(backend, self.model, setting.hardware, setting.request.chunk_tokens)
            hardware, drift = present_machine(setting.hardware, probe, self.kind, PROBE_SAMPLES)
            plans = {
                f"{setting.name}-{policy}": make_restore_plan(
                    self.model, hardware, setting.request, policy
                )
                for policy in setting.policies
            }
            first = next(iter(plans.values()))
            ready = prepare(
                first, backend, self.seed, lambda text: self.steps(f"{setting.name}, {text}", done)
            )
            return self._measure(setting.name, plans, ready, probe, drift, done)

    def _measure(
        self,
        name: str,
        plans: dict[str, RestorePlan],
        ready: Prepared,
        probe: SpeedProbe,
        drift: Speed,
        done: float,
    ) -> SettingResult:
        checks: dict[str, dict[str, Any]] = {}
        with ExitStack() as stack:
            executors = {
                case: stack.enter_context(ready.executor(plan)) for case, plan in plans.items()
            }
            for case, executor in executors.items():
                for _ in range(warm_ups(self.kind, plans[case].ttft_s)):
                    executor.run()
            runners = {case: _runner(case, one, checks) for case, one in executors.items()}
            rounds = run_interleaved(
                runners,
                probe,
                drift,
                self.repeats,
                lambda number: self.steps(f"{name}, round {number}", done),
                extra_rounds=EXTRA_ROUNDS[self.kind],
            )
            environment = {
                case: _environment(ready.backend, one) for case, one in executors.items()
            }
        if rounds is None:
            raise ValueError("rounds gave up though they may not")
        cases = []
        for case, plan in plans.items():
            timelines = rounds.least_disturbed(case, self.repeats)
            measured = Recording(
                "measured", plan.hardware, timelines, environment[case], checks[case]
            )
            timeline = simulate(plan.simulated_graph(), plan.hardware)
            guess = Recording("predicted", plan.hardware, (timeline,))
            cases.append(
                RestoreCase(
                    case,
                    plan,
                    measured,
                    compare(guess, measured),
                    what_it_did(timeline, plan.workload),
                    what_it_did(measured.typical, plan.workload),
                )
            )
        return SettingResult(name, cases, drift, rounds)


def _runner(
    name: str, executor: RestoreExecutor, checks: dict[str, dict[str, Any]]
) -> Callable[[], Timeline]:
    """A run that is checked each time; `checks` keeps what the last one was found to be."""
    from hw import lost_tokens

    def run() -> Timeline:
        timeline = executor.run()
        found = {**executor.check(), "recomputed_instead": lost_tokens(executor.recomputed)}
        checks[name] = found
        return timeline

    return run


def _environment(backend: Backend, executor: RestoreExecutor) -> dict[str, Any]:
    return {**backend.environment(), "tier": executor.tier.how}
