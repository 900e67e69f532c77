"""Text and table of two answers, A and B."""

from __future__ import annotations

import pandas as pd

from dashboard.data.runs import Case
from dashboard.questions.points import recomputed_frac
from planner import DecodePlan
from planner.restore import RestorePlan
from sim.graph.memory import Footprint
from sim.units import ms

A, B = "A", "B"
S_IN_HOUR = 3600
GIB = 2**30


def verdict(a_s: float, b_s: float, what: str) -> str:
    """How many times as fast the faster one is, such as `B takes 85.0 ms a step, A 128.0 ms`."""
    if abs(a_s / b_s - 1) < 5e-4:
        return f"A and B both take {ms(a_s)} {what}."
    (fast, fast_s), (slow, slow_s) = sorted(((A, a_s), (B, b_s)), key=lambda one: one[1])
    return (
        f"{fast} takes {ms(fast_s)} {what}, {slow} {ms(slow_s)}: "
        f"{fast} is {slow_s / fast_s:.2f} times as fast."
    )


def step_s(plan: DecodePlan) -> float:
    """Mean time of a decode step."""
    return plan.makespan_s / plan.workload.gen_tokens


def price_per_million(plan: DecodePlan, gpu_hour: float) -> float:
    """Price of a million generated tokens, at a price of an hour of each GPU."""
    return plan.gpus * gpu_hour / (plan.tokens_per_s * S_IN_HOUR) * 1e6


def plan_rows(plan: DecodePlan, need: Footprint, gpu_hour: float | None) -> dict[str, str]:
    """The results of a plan that are compared, among them its `need` of memory."""
    return {
        "step": ms(step_s(plan)),
        "tokens/s": f"{plan.tokens_per_s:,.1f}",
        "recomputed": f"{100 * recomputed_frac(plan.steps):.1f} % of the past tokens",
        "GPU memory without reserve": f"{need.device_bytes / GIB:,.1f} GiB",
        "host memory": f"{need.host_bytes / GIB:,.1f} GiB",
        **(
            {"price of 1 M tokens": f"{price_per_million(plan, gpu_hour):,.3f}"}
            if gpu_hour is not None
            else {}
        ),
    }


def restore_rows(plan: RestorePlan) -> dict[str, str]:
    """The results of a restore that are compared."""
    return {
        "first token": ms(plan.ttft_s),
        "against loading": f"{plan.load_only_s / plan.ttft_s:.2f} x",
        "against computing": f"{plan.compute_only_s / plan.ttft_s:.2f} x",
        "computed": f"{plan.computed_tokens:,} tokens",
        "projected from X": f"{plan.projected_tokens:,} tokens",
        "loaded": f"{plan.loaded_tokens:,} tokens",
    }


def case_rows(case: Case) -> dict[str, str]:
    """The results of a measured case that are compared."""
    found, run = case.comparison, case.measured.typical
    return {
        "measured": ms(found.measured_makespan_s),
        "predicted": ms(found.predicted_makespan_s),
        "error": f"{100 * found.makespan_error_frac:+.1f} %",
        "exposed copy": ms(run.exposed_copy_s),
        "idle": ms(run.breakdown.idle_s),
    }


def side_by_side(a: dict[str, str], b: dict[str, str]) -> pd.DataFrame:
    """Results of A and B, a row each."""
    names = list({**a, **b})
    rows = [(name, a.get(name, "-"), b.get(name, "-")) for name in names]
    return pd.DataFrame(rows, columns=["", A, B])
