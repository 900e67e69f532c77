"""Summaries of a grid of measured cases: errors raw and corrected, regret, drift."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from statistics import median
from typing import Any

from measure.decode_grid import DecodeCase, DecodeGrid, GridOptions
from measure.grid import Grid, SettingResult
from measure.interleave import STEADY_FRAC
from measure.judgement import Judgement, Regret, largest, regret, why_not_judged
from measure.restore_grid import RestoreCase, default_settings, prepare_setting
from sim.graph.jobs import Workload
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec
from sim.progress import Progress

OVERHEAD_TOKENS = 600
"""A decode of about so many tokens takes as long as the samples and checks around it."""


def measure_decodes(
    spec: ModelSpec,
    hardware: HardwareProfile,
    kind: str,
    jobs: Sequence[Workload],
    grid: Grid,
    seed: int,
    schedule: str,
    progress: Progress,
) -> tuple[list[DecodeCase], dict[str, Any]]:
    """Every case of a grid of decodes, and the report."""
    from hw import open_backend

    with open_backend(kind, hardware.links.h2d.paced_bytes_per_s) as backend:
        decodes = DecodeGrid(spec, hardware, backend, jobs, seed, progress, GridOptions(schedule))
        weights = [OVERHEAD_TOKENS + job.batch_size * job.prompt_tokens for job in jobs]
        shapes = grid.measure_all(jobs, decodes.prepare, progress, weights)
    report = decode_summary(shapes, hardware, grid.left_out)
    return [case for shape in shapes for case in shape.cases], report


def measure_restores(
    spec: ModelSpec,
    hardware: HardwareProfile,
    kind: str,
    prompts: Sequence[int],
    grid: Grid,
    seed: int,
    progress: Progress,
) -> tuple[list[RestoreCase], dict[str, Any]]:
    """Every case of the grid of restores, and the report."""
    settings = list(default_settings(spec, hardware, prompts))
    prepare = partial(prepare_setting, spec, kind, seed)
    results = grid.measure_all(settings, prepare, progress)
    report = restore_summary(results, grid.left_out)
    return [case for result in results for case in result.cases], report


def _summary(
    settings: Sequence[SettingResult],
    left_out: Sequence[str],
    about: dict[str, Any],
    summary: dict[str, Any],
) -> dict[str, Any]:
    """The report of a grid: errors, disturbances, checks and every case.

    Corrected errors are those of the judged cases, or of all where the machine was too unsteady.

    Args:
        left_out: one sentence for each setting that was not measured.
        about, summary: entries of one scenario only, before and after the errors.
    """
    cases = [case for setting in settings for case in setting.cases]
    errors = [abs(case.comparison.makespan_error_frac) for case in cases]
    judgements: list[Judgement] = [case.judgement for case in cases]
    runs = [run for setting in settings for run in setting.runs.all_runs]
    n_cases = round(len(cases) * (1 + len(left_out) / len(settings)))
    counted = [one for one in judgements if one.is_judged] or judgements
    corrected = [abs(one.error_frac) for one in counted]
    overlaps = [abs(one.overlap_error_points) for one in counted]
    environment = cases[0].measured.environment
    return {
        "device": environment["device"],
        "model": cases[0].plan.model.name,
        "dtype": cases[0].plan.model.dtype,
        **about,
        "median_abs_error_frac": median(errors),
        "max_abs_error_frac": max(errors),
        "unsteady": why_not_judged(judgements, n_cases, runs),
        "judged_cases": sum(one.is_judged for one in judgements),
        "left_out": list(left_out),
        "median_abs_corrected_error_frac": median(corrected),
        "max_abs_corrected_error_frac": max(corrected),
        "median_corrected_overlap_error_points": median(overlaps),
        "max_corrected_overlap_error_points": max(overlaps),
        "median_core_share": median(run.core_share for run in runs),
        "median_spread_frac": median(case.comparison.measured_spread_frac for case in cases),
        "median_teacher_forced_error_frac": median(
            abs(case.comparison.teacher_forced_error_frac) for case in cases
        ),
        **summary,
        "repeats": len(cases[0].measured.runs),
        "runs": len(runs),
        "disturbed_runs": sum(run.disturbed_frac > STEADY_FRAC for run in runs),
        "machine_drifts": {setting.name: setting.drift for setting in settings},
        "machine_drifts_beside_runs": {setting.name: setting.runs.speed for setting in settings},
        "checks": {case.name: case.measured.checks for case in cases},
        "environment": environment,
        "cases": [case.to_dict() for case in cases],
    }


def decode_summary(
    shapes: Sequence[SettingResult], hardware: HardwareProfile, left_out: Sequence[str]
) -> dict[str, Any]:
    """The report: errors per case and over all, regret of the LP's plans, equality of numbers."""
    comparisons = [case.comparison for shape in shapes for case in shape.cases]
    overlap_errors = [
        abs(one.overlap_predicted_frac - one.overlap_measured_frac) for one in comparisons
    ]
    regrets = [
        next(case for case in shape.cases if case.plan.policy == "lp").measured.makespan_s
        / min(case.measured.makespan_s for case in shape.cases)
        - 1.0
        for shape in shapes
    ]
    corrected = {shape.name: _corrected_regret(shape.cases) for shape in shapes}
    measured_fracs = [one.measured_frac for one in corrected.values()]
    return _summary(
        shapes,
        left_out,
        {"link_bytes_per_s": hardware.links.h2d.bytes_per_s},
        {
            "median_overlap_error_points": 100 * median(overlap_errors),
            "max_overlap_error_points": 100 * max(overlap_errors),
            "median_naive_error_frac": median(abs(one.naive_error_frac) for one in comparisons),
            "lp_measured_regret_frac": max(regrets),
            "lp_fastest_in": _in_shapes(regrets),
            "lp_corrected_regret_frac": max(measured_fracs),
            "lp_corrected_fastest_in": _in_shapes(measured_fracs),
            "lp_corrected_regrets": {name: asdict(one) for name, one in corrected.items()},
        },
    )


def _in_shapes(regrets: Sequence[float]) -> str:
    """In how many shapes no plan was faster."""
    return f"{sum(regret <= 0 for regret in regrets)} of {len(regrets)} shapes"


def _corrected_regret(cases: Sequence[DecodeCase]) -> Regret:
    """The LP's plan against the plan that was fastest against it, at corrected times.

    Plans of the same graph as the LP's are left out: they are the LP's plan.
    """
    lp = next(case for case in cases if case.plan.policy == "lp")
    return largest(
        regret(case.plan.policy, lp.judgement, case.judgement)
        for case in cases
        if case.plan.graph_sha256 != lp.plan.graph_sha256
    )


MEETING = "two-ended"
"""The policy whose two ends meet at run time."""


def restore_summary(settings: Sequence[SettingResult], left_out: Sequence[str]) -> dict[str, Any]:
    """The report: error of every time to first token, and where the two ends met."""
    cases: list[RestoreCase] = [case for setting in settings for case in setting.cases]
    met = [case for case in cases if case.plan.policy == MEETING]
    near = sum(abs(case.meeting_error_tokens) <= case.plan.workload.chunk_tokens for case in met)
    return _summary(
        settings,
        left_out,
        {"scenario": "restore"},
        {
            "meeting_within_one_chunk_frac": near / len(met),
            "meeting_cases": len(met),
            "fastest": {setting.name: _fastest(setting) for setting in settings},
        },
    )


def _fastest(setting: SettingResult) -> dict[str, str]:
    """The policy with the shortest time to first token, by prediction and by measurement."""
    predicted = min(setting.cases, key=lambda case: case.comparison.predicted_makespan_s)
    measured = min(setting.cases, key=lambda case: case.comparison.measured_makespan_s)
    return {"predicted": predicted.plan.policy, "measured": measured.plan.policy}


def worst_quantisation(checks: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The largest errors of any case with a quantised cache; empty where there is none."""
    quantised = [one for one in checks if "kv_quantisation_error" in one]
    if not quantised:
        return {}
    errors = ("kv_quantisation_error", "logits_quantisation_error")
    return {
        "tokens_equal_unquantised": all(one["tokens_equal_unquantised"] for one in quantised),
        **{name: max(one[name] for one in quantised) for name in errors},
    }
