"""Summaries of a grid of measured cases: errors, regret, drift."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from measure.decode_grid import Case, GridOptions, GridRun, ShapeResult, shape_name
from measure.interleave import STEADY_FRAC
from measure.restore_grid import RestoreCase, RestoreGrid, SettingResult, default_settings
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
    steps: Progress,
) -> tuple[list[Case], dict[str, Any]]:
    """Every case of a grid of decodes, and the report."""
    from hw import open_backend

    pace = hardware.links.h2d.paced_bytes_per_s
    with open_backend(kind, pace) as backend:
        grid = GridRun(spec, hardware, backend, jobs, repeats, seed, steps, GridOptions(schedule))
        shapes = [grid.measure(job, number / len(jobs)) for number, job in enumerate(jobs)]
    return [case for shape in shapes for case in shape.cases], summary(shapes, hardware)


def summary(shapes: list[ShapeResult], hardware: HardwareProfile) -> dict[str, Any]:
    """The report: errors per case and over all, regret of the LP's plans, equality of numbers."""
    cases = [case for shape in shapes for case in shape.cases]
    errors = [abs(case.comparison.makespan_error_frac) for case in cases]
    overlaps = [
        abs(case.comparison.overlap_predicted_frac - case.comparison.overlap_measured_frac)
        for case in cases
    ]
    regrets = [
        next(case for case in shape.cases if case.plan.policy == "lp").measured.makespan_s
        / min(case.measured.makespan_s for case in shape.cases)
        - 1.0
        for shape in shapes
    ]
    deviations = [off for shape in shapes for off in shape.deviations_frac]
    environment = cases[0].measured.environment
    return {
        "device": environment["device"],
        "model": cases[0].plan.model.name,
        "dtype": cases[0].plan.model.dtype,
        "link_bytes_per_s": hardware.links.h2d.bytes_per_s,
        "median_abs_error_frac": median(errors),
        "max_abs_error_frac": max(errors),
        "median_overlap_error_points": 100 * median(overlaps),
        "max_overlap_error_points": 100 * max(overlaps),
        "median_spread_frac": median(case.comparison.measured_spread_frac for case in cases),
        "median_teacher_forced_error_frac": median(
            abs(case.comparison.teacher_forced_error_frac) for case in cases
        ),
        "median_naive_error_frac": median(abs(case.comparison.naive_error_frac) for case in cases),
        "lp_measured_regret_frac": max(regrets),
        "lp_fastest_in": f"{sum(regret <= 0 for regret in regrets)} of {len(regrets)} shapes",
        "repeats": len(cases[0].measured.runs),
        "runs": len(deviations),
        "disturbed_runs": sum(off > STEADY_FRAC for off in deviations),
        "machine_drifts": {
            shape_name(shape.cases[0].plan.workload): shape.drift for shape in shapes
        },
        "machine_drifts_beside_runs": {
            shape_name(shape.cases[0].plan.workload): shape.beside for shape in shapes
        },
        "checks": {case.name: case.measured.checks for case in cases},
        "environment": environment,
        "cases": [case.to_dict() for case in cases],
    }


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


MEETING = "two-ended"
"""The policy whose ends meet wherever they do."""


def measure_restores(
    spec: ModelSpec,
    hardware: HardwareProfile,
    kind: str,
    prompts: Sequence[int],
    repeats: int,
    seed: int,
    steps: Progress,
) -> tuple[list[RestoreCase], dict[str, Any]]:
    """Every case of the grid of restores, and the report."""
    settings = list(default_settings(spec, hardware, prompts))
    grid = RestoreGrid(spec, kind, repeats, seed, steps)
    results = [
        grid.measure(setting, number / len(settings)) for number, setting in enumerate(settings)
    ]
    return [case for result in results for case in result.cases], restore_summary(results)


def restore_summary(settings: list[SettingResult]) -> dict[str, Any]:
    """The report: error of every time to first token, and where the two ends met."""
    cases = [case for setting in settings for case in setting.cases]
    errors = [abs(case.comparison.makespan_error_frac) for case in cases]
    met = [case for case in cases if case.plan.policy == MEETING]
    near = sum(abs(case.meeting_error_tokens) <= case.plan.workload.chunk_tokens for case in met)
    deviations = [off for setting in settings for off in setting.rounds.deviations_frac]
    environment = cases[0].measured.environment
    return {
        "scenario": "restore",
        "device": environment["device"],
        "model": cases[0].plan.model.name,
        "dtype": cases[0].plan.model.dtype,
        "median_abs_error_frac": median(errors),
        "max_abs_error_frac": max(errors),
        "median_spread_frac": median(case.comparison.measured_spread_frac for case in cases),
        "median_teacher_forced_error_frac": median(
            abs(case.comparison.teacher_forced_error_frac) for case in cases
        ),
        "meeting_within_one_chunk_frac": near / len(met),
        "meeting_cases": len(met),
        "fastest": {setting.name: _fastest(setting) for setting in settings},
        "repeats": len(cases[0].measured.runs),
        "runs": len(deviations),
        "disturbed_runs": sum(off > STEADY_FRAC for off in deviations),
        "machine_drifts": {setting.name: setting.drift for setting in settings},
        "machine_drifts_beside_runs": {setting.name: setting.rounds.beside for setting in settings},
        "checks": {case.name: case.measured.checks for case in cases},
        "environment": environment,
        "cases": [case.to_dict() for case in cases],
    }


def _fastest(setting: SettingResult) -> dict[str, str]:
    """The policy with the least time to first token, by prediction and by measurement."""
    predicted = min(setting.cases, key=lambda case: case.comparison.predicted_makespan_s)
    measured = min(setting.cases, key=lambda case: case.comparison.measured_makespan_s)
    return {"predicted": predicted.plan.policy, "measured": measured.plan.policy}
