"""`kvoverlap validate --scenario restore`: how far predicted restores are off on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from cli.output import progress, say, table
from cli.restore_grid import RestoreCase, RestoreGrid, SettingResult, default_settings
from cli.restore_runs import say_lost
from cli.rounds import STEADY_FRAC
from sim.hardware import HardwareProfile
from sim.model_spec import ModelSpec
from sim.quantities import ms, percent

MEETING = "two-ended"
"""The policy whose ends meet wherever they do."""


def measure_restores(
    spec: ModelSpec,
    hardware: HardwareProfile,
    kind: str,
    prompts: Sequence[int],
    repeats: int,
    seed: int,
) -> tuple[list[RestoreCase], dict[str, Any]]:
    """Every case of the grid of restores, and the report."""
    settings = list(default_settings(spec, hardware, prompts))
    with progress("validate") as tell:
        grid = RestoreGrid(spec, kind, repeats, seed, tell)
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


def print_restore_report(report: dict[str, Any]) -> None:
    """Every case with its error, then the figures over all."""
    cases = report["cases"]
    rows = []
    for case in cases:
        did, expected = case["measured"], case["predicted"]
        beyond = abs(case["ttft_error_frac"]) > case["measured_spread_frac"]
        rows.append(
            (
                case["name"],
                ms(case["predicted_makespan_s"]),
                ms(case["measured_makespan_s"]),
                percent(case["ttft_error_frac"], signed=True),
                percent(case["measured_spread_frac"]) + (" " if beyond else "*"),
                f"{did['computed_tokens']}/{did['projected_tokens']}/{did['loaded_tokens']}",
                str(expected["meeting_token"]),
                str(did["meeting_token"]),
            )
        )
    columns = (
        "case",
        "predicted",
        "measured",
        "error",
        "spread",
        "computed/projected/loaded",
        "meet pred.",
        "meet meas.",
    )
    table(f"{report['model']} ({report['dtype']}), time to first token", columns, rows)
    say("")
    say("error: predicted - measured; spread: interquartile range of the repeats, * covers error")
    say(
        f"{len(cases)} restores: median |error| {percent(report['median_abs_error_frac'])}, worst "
        f"{percent(report['max_abs_error_frac'])}; median spread "
        f"{percent(report['median_spread_frac'])}; given measured task times "
        f"{percent(report['median_teacher_forced_error_frac'])}"
    )
    say(
        f"two ends met within one chunk of the prediction in "
        f"{percent(report['meeting_within_one_chunk_frac'])} of {report['meeting_cases']} cases"
    )
    right = sum(one["predicted"] == one["measured"] for one in report["fastest"].values())
    say(f"the policy predicted fastest was in {right} of {len(report['fastest'])} settings")
    say(
        f"{report['disturbed_runs']} of {report['runs']} runs were disturbed (reference products "
        f"beside them were off by over {percent(STEADY_FRAC)}); of each case the "
        f"{report['repeats']} steadiest count"
    )
    for case in cases:
        say_lost(case["recomputed_instead"])
    say(f"numbers: first token, logits, K, V equal the resident prefill in all {len(cases)} cases")
    say(f"device: {report['device']}")
