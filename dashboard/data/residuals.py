"""Distances of samples and of measured tasks from the curves of a profile.

Samples show how much repeats vary during profiling. Tasks are the same work in real runs, so that
their residuals show how good the curves are.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from dashboard.data.calibration import subjects
from dashboard.data.runs import Case
from sim.graph.claims import claimed
from sim.machine.profile import HardwareProfile
from sim.model.kernels import MatMul
from sim.model.operations import kernels


def spread_table(profile: HardwareProfile) -> pd.DataFrame:
    """Residuals of the samples of every table; no rows if the profile has none."""
    rows = []
    for subject in subjects(profile):
        samples = subject.curve(profile, "").samples
        if samples.empty:
            continue
        low, high = samples["residual_frac"].quantile([0.1, 0.9])
        sizes = spread_by_size(samples)
        widest = (sizes["high"] - sizes["low"]).idxmax()
        rows.append(
            {
                "work": subject.name,
                "sizes": len(sizes),
                "samples": len(samples),
                "10th percentile (%)": 100 * low,
                "90th percentile (%)": 100 * high,
                "widest at": f"{widest:,.0f} {subject.x_title}",
            }
        )
    return pd.DataFrame(rows)


def spread_by_size(samples: pd.DataFrame) -> pd.DataFrame:
    """10th and 90th percentile of the residuals at each size, columns `low` and `high`."""
    by_size = samples.groupby("x")["residual_frac"]
    return pd.DataFrame({"low": by_size.quantile(0.1), "high": by_size.quantile(0.9)})


def measured_tasks(cases: Sequence[Case]) -> pd.DataFrame:
    """Every task of the typical runs with its estimate, undisturbed by other lanes.

    Columns `op`, `subject` (as in `Subject.lane_or_op`, empty for work of several kinds), `x`,
    `rate`, `measured_s`, `predicted_s`, `error_frac`, `in_range`.
    """
    rows = []
    for case in cases:
        model, job = case.graph.model, case.graph.workload
        durations = case.measured.typical.duration_s
        done = claimed(case.graph, case.measured.typical.start_s)
        for task, whole, estimate, seconds in zip(
            done, case.graph.tasks, case.estimates, durations, strict=True
        ):
            if seconds <= 0 or task.n_tokens != whole.n_tokens:
                continue  # skipped or done in part: the estimate is for the whole task
            subject, x, amount = "", 0.0, 0.0
            if task.bytes:
                subject, x, amount = task.lane, float(task.bytes), task.bytes / 1e9
            elif task.op == "recompute" and task.layers == 1:
                parts = kernels(task.op, task.n_tokens, task.token_stop, model, job.batch_size)
                if len(parts) == 1 and isinstance(parts[0], MatMul):
                    product = parts[0]
                    subject = f"recompute {product.n} {product.k}"
                    x, amount = float(product.m), product.flops / 1e12
            error = estimate.seconds / seconds - 1
            times = seconds, estimate.seconds, error, estimate.in_range
            rows.append((task.op, subject, x, amount / seconds, *times))
    names = ["op", "subject", "x", "rate", "measured_s", "predicted_s", "error_frac", "in_range"]
    return pd.DataFrame(rows, columns=names)


def residual_table(tasks: pd.DataFrame) -> pd.DataFrame:
    """Residuals by operation, in order of falling total time."""
    groups = tasks.groupby("op")
    table = pd.DataFrame(
        {
            "tasks": groups.size(),
            "median error (%)": 100 * groups["error_frac"].median(),
            "10th percentile (%)": 100 * groups["error_frac"].quantile(0.1),
            "90th percentile (%)": 100 * groups["error_frac"].quantile(0.9),
            "part of all task time (%)": 100
            * groups["measured_s"].sum()
            / tasks["measured_s"].sum(),
        }
    )
    order = table["part of all task time (%)"].sort_values(ascending=False).index
    return table.loc[order].reset_index(names="operation")
