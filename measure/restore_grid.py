"""A grid of restores over tiers and bandwidths, each by several policies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from measure.grid import Case, PreparedSetting
from measure.run import PreparedRestore, ReadyPlan, prepare_restore, tier_paces
from planner import Job, PlanOptions, RestorePlan, make_plan
from planner.restore.lower import compute_only_graph
from sim.engine.api import simulate
from sim.graph.jobs import RestoreRequest
from sim.graph.timeline import Timeline
from sim.lanes import LANE_OF_TIER
from sim.machine.prefill import Restore, Tier
from sim.machine.profile import HardwareProfile
from sim.machine.provenance import SourcedValue
from sim.model.spec import ModelSpec
from sim.progress import Part, Progress

POLICIES = ("two-ended", "lp", "joint", "load-only", "compute-only")
CHUNK_TOKENS, IO_CHUNK_TOKENS = 128, 64

RATE_FACTORS = {"dram": (0.5, 1.0, 2.0), "ssd": (0.7, 1.5)}
"""Rates of each tier, as multiples of the rate at which loading takes as long as computing."""

PROBE_SAMPLES = 5
"""Samples of reference kernels before each setting is planned."""


@dataclass(frozen=True)
class Setting:
    """A machine with one tier at one rate, and a restore request from that tier."""

    name: str
    hardware: HardwareProfile
    request: RestoreRequest
    policies: tuple[str, ...]


@dataclass(frozen=True)
class RestoreCase(Case):
    """One restore plan with its measurement."""

    plan: RestorePlan

    @property
    def predicted_counts(self) -> dict[str, int]:
        return self.plan.token_counts(self.predicted)

    @property
    def measured_counts(self) -> dict[str, int]:
        return self.plan.token_counts(self.measured.typical)

    @property
    def meeting_error_tokens(self) -> int:
        """Predicted minus measured token at which the two ends met."""
        return self.predicted_counts["meeting_token"] - self.measured_counts["meeting_token"]

    def job_facts(self) -> dict[str, Any]:
        request = self.plan.workload
        return {
            "tier": request.tier,
            "prompt_tokens": request.prompt_tokens,
            "chunk_tokens": request.chunk_tokens,
            "ttft_error_frac": self.comparison.makespan_error_frac,
            "predicted": self.predicted_counts,
            "measured": self.measured_counts,
            "recomputed_instead": self.measured.checks["recomputed_instead"],
        }


def default_settings(
    model: ModelSpec, hardware: HardwareProfile, prompts: Sequence[int]
) -> Iterator[Setting]:
    """Every prompt from every tier at every rate.

    Policy `compute-only` loads nothing, so only the first setting of a prompt has it. From host
    memory over a link that is not emulated there is one setting, at the link's own rate.
    """
    for n_tokens in prompts:
        policies: tuple[str, ...] = POLICIES
        for tier, factors in RATE_FACTORS.items():
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
    """A request from a tier at `factor` times the rate at which loading takes as long as computing.

    Only emulated links and tiers get this rate; a link that is not emulated keeps its own.
    """
    rate = float(f"{factor * _balanced_bytes_per_s(model, hardware, request):.2g}")
    machine, text = at_rate(hardware, request.tier, rate)
    return Setting(f"s{request.prompt_tokens}-{request.tier}-{text}", machine, request, policies)


def at_balance(
    model: ModelSpec, hardware: HardwareProfile, prompt_tokens: int
) -> tuple[HardwareProfile, RestoreRequest]:
    """A cached prompt in host memory, and a link over which loading takes as long as computing."""
    request = restore_request(prompt_tokens)
    rate = _balanced_bytes_per_s(model, hardware, request)
    return at_rate(hardware, request.tier, float(f"{rate:.2g}"))[0], request


def restore_request(prompt_tokens: int) -> RestoreRequest:
    """A prompt that is cached except its last token, in the chunks of this grid."""
    return RestoreRequest(
        prompt_tokens=prompt_tokens,
        cached_tokens=prompt_tokens - 1,
        chunk_tokens=CHUNK_TOKENS,
        io_chunk_tokens=IO_CHUNK_TOKENS,
    )


def _balanced_bytes_per_s(
    model: ModelSpec, hardware: HardwareProfile, request: RestoreRequest
) -> float:
    """Rate at which loading the K and V of the prompt takes as long as computing them."""
    compute_s = simulate(compute_only_graph(model, request), hardware).makespan_s
    return model.n_layers * request.prompt_tokens * model.kv_token_bytes / compute_s


def at_rate(
    hardware: HardwareProfile, tier: str, bytes_per_s: float
) -> tuple[HardwareProfile, str]:
    """The machine with a tier of this rate, and the rate as text (`link` for a real link)."""
    text = f"{bytes_per_s / 1e6:g}MBps"
    if tier != "dram":
        block = hardware.restore or Restore()
        made = Tier(LANE_OF_TIER[tier], SourcedValue("datasheet", bytes_per_s, "as given"))
        return replace(hardware, restore=block.with_tier(made)), text
    pace = hardware.links.h2d.paced_bytes_per_s
    if pace is None:
        return hardware, "link"
    return hardware.with_faster("link", bytes_per_s / pace), text


@contextmanager
def prepare_setting(
    model: ModelSpec, kind: str, seed: int, setting: Setting, progress: Progress
) -> Iterator[PreparedSetting]:
    """A setting on a backend that emulates the rates of its link and tier."""
    from hw import SpeedProbe, open_backend

    hardware, request = setting.hardware, setting.request
    pace = hardware.links.h2d.paced_bytes_per_s
    with open_backend(kind, pace, tier_paces(hardware, request.tier)) as backend:
        probe = SpeedProbe(backend, model, hardware, request.chunk_tokens)
        first = make_plan(Job(model, hardware, request), PlanOptions(policy=setting.policies[0]))
        prepared = prepare_restore(first, backend, seed, Part(progress, setting.name))
        yield PreparedSetting(
            name=setting.name,
            title=setting.name,
            hardware=hardware,
            backend=backend,
            probe=probe,
            probe_samples=PROBE_SAMPLES,
            case_type=RestoreCase,
            plans=lambda machine: {
                f"{setting.name}-{policy}": make_plan(
                    Job(model, machine, request), PlanOptions(policy=policy)
                )
                for policy in setting.policies
            },
            ready=partial(_ready, prepared),
        )


@contextmanager
def _ready(
    prepared: PreparedRestore, predicted: dict[str, Timeline]
) -> Iterator[dict[str, ReadyPlan]]:
    """The plans on the device, each with its prefix on its tier."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(prepared.ready(timeline))
            for name, timeline in predicted.items()
        }
