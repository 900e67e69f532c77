"""What the plans of a restore say in words, figures and a table."""

from __future__ import annotations

import pandas as pd

from dashboard.questions.restore import POLICIES, RestoreAnswer
from dashboard.text.comparison import Metric, count_of, plain, request_in_words
from planner.restore import Adaptation, RestorePlan
from sim.units import ms, percent

STALE, REPLANNED = "lp, planned for the whole machine and kept", "lp, planned again"
CLAIMS, FORESEEN = "two-ended, which plans nothing", "lp, had it known"


def restore_answer(plan: RestorePlan) -> str:
    """Time to first token against either resource alone, in one line."""
    return (
        f"first token after {ms(plan.ttft_s)}: {plan.load_only_s / plan.ttft_s:.2f} x as fast as "
        f"loading, {plan.compute_only_s / plan.ttft_s:.2f} x as fast as computing alone"
    )


def restore_circumstances(plan: RestorePlan) -> str:
    """What was planned, and on what."""
    return (
        f"{plain(plan.model.name)} ({plan.model.dtype}) on {plain(plan.hardware.name)} "
        f"({plan.source} figures): {request_in_words(plan.workload)}, policy {plan.policy}."
    )


def restore_metrics(plan: RestorePlan) -> list[Metric]:
    """The figures beside the answer."""
    base_s = plan.baselines["two-ended"]
    parts = [
        Metric(
            name,
            f"{count:,}",
            f"{percent(count / plan.workload.prompt_tokens)} of the prompt",
            f"Tokens whose K and V {come}; some layers of a token count as a part of it.",
        )
        for name, count, come in (
            ("Computed", plan.computed_tokens, "are computed from token ids"),
            ("Projected", plan.projected_tokens, "are made from loaded attention inputs X"),
            ("Loaded", plan.loaded_tokens, "are loaded"),
        )
    ]
    against = Metric(
        "Against two-ended",
        f"{base_s / plan.ttft_s:.2f} x",
        f"{ms(base_s)} by claims alone",
        "How many times as fast as Cake's two ends, which plan nothing.",
    )
    return [against, *parts]


def policy_table(answer: RestoreAnswer) -> pd.DataFrame:
    """Every policy, fastest first, with its ratios to either resource alone."""
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
    """Seconds to first token of each way of meeting a trace that nobody foresaw."""
    return {
        STALE: found.stale_s,
        f"{REPLANNED} {count_of(len(found.changes), 'time')}": found.replanned_s,
        CLAIMS: found.two_ended_s,
        FORESEEN: found.foreseen_s,
    }


def adaptation_answer(found: Adaptation) -> str:
    """What the trace costs whom, in one sentence."""
    if not found.changes:
        return (
            f"Nothing makes the plan stale: it takes {ms(found.stale_s)}, two-ended "
            f"{ms(found.two_ended_s)}."
        )
    return (
        f"A plan made for the whole machine and kept takes {ms(found.stale_s)}; planned again "
        f"{count_of(len(found.changes), 'time')} {ms(found.replanned_s)}; two-ended, which plans "
        f"nothing, {ms(found.two_ended_s)}. Had lp known the trace: {ms(found.foreseen_s)}."
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
