"""Summaries of a grid of measured cases: errors, regret, drift."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from statistics import median
from typing import Any

from measure.decode_grid import DecodeCase, DecodeGrid, GridOptions
from measure.grid import Grid, SettingResult
from measure.interleave import STEADY_FRAC
from measure.restore_grid import RestoreCase, default_settings, prepare_setting
from sim.graph.jobs import Workload
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec
from sim.progress import Progress


def measure_decodes(
    spec: ModelSpec,
    hardware: HardwareProfile,
    kind: str,
    jobs: Sequence[Workload],
    repeats: int,
    seed: int,
    schedule: str,
    progress: Progress,
) -> tuple[list[DecodeCase], dict[str, Any]]:
    """Every case of a grid of decodes, and the report."""
    from hw import open_backend

    with open_backend(kind, hardware.links.h2d.paced_bytes_per_s) as backend:
        grid = DecodeGrid(spec, hardware, backend, jobs, seed, progress, GridOptions(schedule))
        shapes = Grid(repeats).measure_all(jobs, grid.prepare, progress)
    return [case for shape in shapes for case in shape.cases], decode_summary(shapes, hardware)


def measure_restores(
    spec: ModelSpec,
    hardware: HardwareProfile,
    kind: str,
    prompts: Sequence[int],
    repeats: int,
    seed: int,
    progress: Progress,
) -> tuple[list[RestoreCase], dict[str, Any]]:
    """Every case of the grid of restores, and the report."""
    settings = list(default_settings(spec, hardware, prompts))
    prepare = partial(prepare_setting, spec, kind, seed)
    results = Grid(repeats).measure_all(settings, prepare, progress)
    return [case for result in results for case in result.cases], restore_summary(results)


def _summary(
    settings: Sequence[SettingResult], about: dict[str, Any], summary: dict[str, Any]
) -> dict[str, Any]:
    """The report of a grid: errors, disturbances, checks and every case.

    Args:
        about, summary: entries of one scenario only, before and after the errors.
    """
    cases = [case for setting in settings for case in setting.cases]
    errors = [abs(case.comparison.makespan_error_frac) for case in cases]
    deviations = [off for setting in settings for off in setting.runs.deviations_frac]
    environment = cases[0].measured.environment
    return {
        "device": environment["device"],
        "model": cases[0].plan.model.name,
        "dtype": cases[0].plan.model.dtype,
        **about,
        "median_abs_error_frac": median(errors),
        "max_abs_error_frac": max(errors),
        "median_spread_frac": median(case.comparison.measured_spread_frac for case in cases),
        "median_teacher_forced_error_frac": median(
            abs(case.comparison.teacher_forced_error_frac) for case in cases
        ),
        **summary,
        "repeats": len(cases[0].measured.runs),
        "runs": len(deviations),
        "disturbed_runs": sum(off > STEADY_FRAC for off in deviations),
        "machine_drifts": {setting.name: setting.drift for setting in settings},
        "machine_drifts_beside_runs": {setting.name: setting.runs.speed for setting in settings},
        "checks": {case.name: case.measured.checks for case in cases},
        "environment": environment,
        "cases": [case.to_dict() for case in cases],
    }


def decode_summary(shapes: Sequence[SettingResult], hardware: HardwareProfile) -> dict[str, Any]:
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
    return _summary(
        shapes,
        {"link_bytes_per_s": hardware.links.h2d.bytes_per_s},
        {
            "median_overlap_error_points": 100 * median(overlap_errors),
            "max_overlap_error_points": 100 * max(overlap_errors),
            "median_naive_error_frac": median(abs(one.naive_error_frac) for one in comparisons),
            "lp_measured_regret_frac": max(regrets),
            "lp_fastest_in": f"{sum(regret <= 0 for regret in regrets)} of {len(regrets)} shapes",
        },
    )


MEETING = "two-ended"
"""The policy whose two ends meet at run time."""


def restore_summary(settings: Sequence[SettingResult]) -> dict[str, Any]:
    """The report: error of every time to first token, and where the two ends met."""
    cases: list[RestoreCase] = [case for setting in settings for case in setting.cases]
    met = [case for case in cases if case.plan.policy == MEETING]
    near = sum(abs(case.meeting_error_tokens) <= case.plan.workload.chunk_tokens for case in met)
    return _summary(
        settings,
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
