"""Text, cards and tables of restore plans."""

from __future__ import annotations

import pandas as pd

from dashboard.questions.restore import POLICIES, RestorePlans
from dashboard.text.comparison import Metric, count_of, describe_request, escaped, sentence
from planner.advice import describe_sources
from planner.restore import Adaptation, RestorePlan
from sim.units import ms, percent

STALE, REPLANNED = "lp, planned for the whole machine", "lp, planned again"
CLAIMS, FORESEEN = "two-ended, without a plan", "lp, with the trace known in advance"


def describe_restore(plan: RestorePlan) -> str:
    """Model, machine, request and policy of a plan, and the sources of its task times."""
    return (
        f"{escaped(plan.model.name)} ({plan.model.dtype}) on {escaped(plan.hardware.name)}: "
        f"{describe_request(plan.workload)}, policy {plan.policy}. "
        + sentence(describe_sources(plan))
    )


def restore_metrics(plan: RestorePlan) -> list[Metric]:
    """Speedup over two-ended, and tokens by source."""
    base_s = plan.baselines["two-ended"]
    parts = [
        Metric(
            name,
            f"{count:,}",
            f"{percent(count / plan.workload.prompt_tokens)} of the prompt",
            f"Tokens whose K and V {come}; tokens with some layers only count fractionally.",
        )
        for name, count, come in (
            ("Tokens computed", plan.computed_tokens, "are computed from token ids"),
            ("Tokens projected", plan.projected_tokens, "are made from loaded attention inputs X"),
            ("Tokens loaded", plan.loaded_tokens, "are loaded"),
        )
    ]
    against = Metric(
        "Against two-ended",
        f"{base_s / plan.ttft_s:.2f} x",
        f"two-ended {ms(base_s)}",
        "Speedup over two-ended (Cake), which needs no plan.",
    )
    return [against, *parts]


def policy_table(answer: RestorePlans) -> pd.DataFrame:
    """Every policy, fastest first, with its speedups."""
    plans = [answer.plans[policy] for policy in POLICIES]
    rows = [
        {
            "policy": plan.policy,
            "TTFT (ms)": 1e3 * plan.ttft_s,
            "x load-only": plan.load_only_s / plan.ttft_s,
            "x compute-only": plan.compute_only_s / plan.ttft_s,
            "x two-ended": plan.baselines["two-ended"] / plan.ttft_s,
            "computed": plan.computed_tokens,
            "projected": plan.projected_tokens,
            "loaded": plan.loaded_tokens,
            "meeting token": plan.meeting_token,
        }
        for plan in sorted(plans, key=lambda plan: plan.ttft_s)
    ]
    return pd.DataFrame(rows)


def adaptation_times(found: Adaptation) -> dict[str, float]:
    """Seconds to first token of each reaction to a trace."""
    return {
        STALE: found.stale_s,
        f"{REPLANNED} {count_of(len(found.changes), 'time')}": found.replanned_s,
        CLAIMS: found.two_ended_s,
        FORESEEN: found.foreseen_s,
    }


def describe_adaptation(found: Adaptation) -> str:
    """Time to first token under a trace for each policy, in one sentence."""
    if not found.changes:
        return (
            f"{ms(found.stale_s)} with the plan unchanged, {ms(found.two_ended_s)} with two-ended: "
            "no change of plan is needed."
        )
    return (
        f"{ms(found.stale_s)} with the plan for the whole machine, {ms(found.replanned_s)} "
        f"planned again {count_of(len(found.changes), 'time')}, {ms(found.two_ended_s)} with "
        f"two-ended, {ms(found.foreseen_s)} with the trace known in advance."
    )


def changes_table(found: Adaptation) -> pd.DataFrame:
    """Every change of plan."""
    return pd.DataFrame(
        [
            (1e3 * one.at_s, one.lane, 100 * one.rate_frac, one.computed_tokens)
            for one in found.changes
        ],
        columns=["at (ms)", "lane", "found at (% of its rate)", "tokens to compute from then on"],
    )
