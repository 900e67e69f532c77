"""Text and tables of measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from kvoverlap.cli.output import print_json, say, table
from measure.interleave import STEADY_FRAC
from measure.reports import worst_quantisation
from sim.results.recording import Recording
from sim.units import counted, ms, percent


def say_restore(did: Mapping[str, int], checks: Mapping[str, Any], tier: str) -> None:
    """Tokens and checks of a restore run."""
    projected = f", {did['projected_tokens']:,} projected" if did["projected_tokens"] else ""
    say(
        f"{counted(did['computed_tokens'], 'token')} computed{projected}, "
        f"{did['loaded_tokens']:,} loaded; "
        f"the ends met at token {did['meeting_token']:,}; tier: {tier}"
    )
    say_lost(checks["recomputed_instead"])
    for share in checks.get("compute_shares", ()):
        say(
            f"compute from {share['start_s']:.3g} s on: {percent(share['measured_frac'])} of its "
            f"core measured, {percent(share['stated_frac'])} stated"
        )
    say("numbers: first token, logits, K and V equal the resident prefill")


def say_lost(recomputed: Iterable[Mapping[str, Any]]) -> None:
    """The tokens that were computed because the tier had lost them."""
    for one in recomputed:
        start, stop = one["tokens"]
        say(
            f"tokens {start} to {stop} were computed instead of loaded in {len(one['layers'])} "
            f"layers: {one['why']}"
        )


def report_timeline(
    what: str, recording: Recording, json: bool, more: Mapping[str, Any] | None = None
) -> None:
    """Print the measures of a timeline; `more` is added to the JSON."""
    timeline = recording.typical
    parts = timeline.breakdown
    lanes = {lane: timeline.busy_s(lane) for _, lane in timeline.graph.lanes}
    answer = {
        "model": timeline.graph.model.name,
        "graph_sha256": timeline.graph.sha256,
        "makespan_s": recording.makespan_s,
        "spread_frac": recording.spread_frac,
        "repeats": len(recording.runs),
        "overlap_frac": timeline.overlap_frac,
        "exposed_copy_s": timeline.exposed_copy_s,
        "busiest_lane_s": timeline.busiest_lane_s,
        "busy_s": lanes,
        "breakdown": {
            "compute_s": parts.compute_s,
            "exposed_copy_s": parts.exposed_copy_s,
            "idle_s": parts.idle_s,
        },
        "idle_s": {lane: timeline.idle_by_cause(lane) for lane in lanes},
        "critical_path": [timeline.graph.tasks[at].id for at in timeline.critical_path],
        "checks": recording.checks,
        "environment": recording.environment,
        **(more or {}),
    }
    if json:
        print_json(answer)
        return
    spread = f" (spread {percent(recording.spread_frac)} over {len(recording.runs)} runs)"
    if timeline.graph.model.assumed:
        say(timeline.graph.model.name)
    say(f"{what} makespan {ms(recording.makespan_s)}{spread if len(recording.runs) > 1 else ''}")
    say(
        f"= compute {ms(parts.compute_s)} + exposed copy {ms(parts.exposed_copy_s)} + idle "
        f"{ms(parts.idle_s)}; overlap {percent(timeline.overlap_frac)} of copy time"
    )
    ratio = timeline.makespan_s / timeline.busiest_lane_s
    steps = timeline.graph.workload.gen_tokens
    each = f", {ms(timeline.makespan_s / steps)} a step" if steps > 1 else ""
    say(f"= {ratio:.3f} x max(copy, compute) of its own tasks{each}")
    say_quantisation(recording.checks)
    rows = []
    for lane, busy in lanes.items():
        causes = sorted(timeline.idle_by_cause(lane).items(), key=lambda cause: -cause[1])
        idle = ", ".join(f"{name} {ms(value)}" for name, value in causes) or "never idle"
        rows.append((lane, ms(busy), percent(busy / timeline.makespan_s), idle))
    table("\nLanes", ("lane", "busy", "of makespan", "idle"), rows)


def say_quantisation(checks: Mapping[str, Any]) -> None:
    """Errors of the quantised cache, if a run measured them."""
    if "kv_quantisation_error" in checks:
        kv, logits = (checks[f"{what}_quantisation_error"] for what in ("kv", "logits"))
        tokens = "equal" if checks["tokens_equal_unquantised"] else "differ from"
        say(
            f"quantised cache: K and V off by {percent(kv)}, logits by {percent(logits)} of the "
            f"largest; greedy tokens {tokens} the unquantised ones"
        )


def print_decode_report(report: dict[str, Any]) -> None:
    """Every case of a grid of decodes with its error, then the errors over all."""

    def cells(case: dict[str, Any]) -> tuple[str, ...]:
        split = sorted(case["recomputed_tokens"])
        return (
            str(split[len(split) // 2]),
            *_error_cells(case, "makespan_error_frac"),
            percent(case["overlap_predicted_frac"]),
            percent(case["overlap_measured_frac"]),
            percent(case["naive_error_frac"], signed=True),
        )

    columns = ("recomputed", *ERROR_COLUMNS, "overlap pred.", "overlap meas.", "max() error")
    link = f"link {report['link_bytes_per_s'] / 1e9:.2g} GB/s"
    _print_cases(report, link, columns, cells, ";")
    say("max() error: what max(copy, compute) would have predicted instead")
    _say_errors(report)
    say(
        f"overlap off by {report['median_overlap_error_points']:.1f} points, worst "
        f"{report['max_overlap_error_points']:.1f}; corrected "
        f"{report['median_corrected_overlap_error_points']:.1f}, worst "
        f"{report['max_corrected_overlap_error_points']:.1f}"
    )
    say(
        "corrected, over all runs: the lp plan was the fastest measured, within twice "
        f"the noise, in {report['lp_corrected_fastest_in']}; at worst "
        f"{percent(report['lp_corrected_regret_frac'])} slower than the best"
    )
    for shape, one in report["lp_corrected_regrets"].items():
        say(
            f"  {shape}: lp {percent(one['frac'], signed=True)} against {one['other']} "
            f"(noise {_noise(one['noise_frac'])})"
        )
    say(
        f"uncorrected, by the medians of all runs: in {report['lp_fastest_in']}; at worst "
        f"{percent(report['lp_measured_regret_frac'])} slower"
    )
    _say_disturbed(report)
    before, during = report["machine_drifts"], report["machine_drifts_beside_runs"]
    for part, what in (("flops", "large"), ("hbm", "small")):
        drifts = [
            f"{percent(before[shape][part] - 1, signed=True)} "
            f"({percent(during[shape][part] - 1, signed=True)})"
            for shape in before
        ]
        say(f"time of {what} matmuls before (during) each shape's runs, against the profile:")
        say(f"  {', '.join(drifts)}")
    n = len(report["checks"])
    say(f"numbers: tokens, logits, K and V equal the resident decode in all {n} cases")
    say_quantisation(worst_quantisation(report["checks"].values()))
    say(f"device: {report['device']}")


def print_restore_report(report: dict[str, Any]) -> None:
    """Every restore with its error, then the errors over all."""

    def cells(case: dict[str, Any]) -> tuple[str, ...]:
        did = case["measured"]
        return (
            *_error_cells(case, "ttft_error_frac"),
            f"{did['computed_tokens']}/{did['projected_tokens']}/{did['loaded_tokens']}",
            str(case["predicted"]["meeting_token"]),
            str(did["meeting_token"]),
        )

    columns = (*ERROR_COLUMNS, "computed/projected/loaded", "meet pred.", "meet meas.")
    _print_cases(report, "time to first token", columns, cells)
    n = len(report["cases"])
    _say_errors(report)
    say(
        f"two ends met within one chunk of the prediction in "
        f"{percent(report['meeting_within_one_chunk_frac'])} of {report['meeting_cases']} cases"
    )
    right = sum(one["predicted"] == one["measured"] for one in report["fastest"].values())
    say(f"the policy predicted fastest was in {right} of {len(report['fastest'])} settings")
    _say_disturbed(report)
    for case in report["cases"]:
        say_lost(case["recomputed_instead"])
    say(f"numbers: first token, logits, K, V equal the resident prefill in all {n} cases")
    say(f"device: {report['device']}")


ERROR_COLUMNS = ("predicted", "measured", "error", "corrected", "noise")


def _error_cells(case: dict[str, Any], error: str) -> tuple[str, ...]:
    corrected, noise = case["corrected_error_frac"], case["corrected_noise_frac"]
    return (
        ms(case["predicted_makespan_s"]),
        ms(case["measured_makespan_s"]),
        percent(case[error], signed=True),
        percent(corrected, signed=True) if case["judged"] else "not judged",
        _noise(noise) + " *"[noise is not None and abs(corrected) <= 2 * noise],
    )


def _noise(frac: float | None) -> str:
    return "unknown" if frac is None else percent(frac)


def _print_cases(
    report: dict[str, Any],
    what: str,
    columns: Sequence[str],
    cells: Callable[[dict[str, Any]], tuple[str, ...]],
    end: str = "",
) -> None:
    rows = [(case["name"], *cells(case)) for case in report["cases"]]
    table(f"{report['model']} ({report['dtype']}), {what}", ("case", *columns), rows)
    say("")
    say(
        "error: predicted for the speed before the runs, minus measured; corrected: predicted for "
        "the speed around each run; noise: its standard error, * if the error is within twice that"
        f"{end}"
    )


def _say_errors(report: dict[str, Any]) -> None:
    n = len(report["cases"])
    say(
        f"{n} cases: median |error| {percent(report['median_abs_error_frac'])}, worst "
        f"{percent(report['max_abs_error_frac'])}; given measured task times "
        f"{percent(report['median_teacher_forced_error_frac'])}"
    )
    say(
        f"corrected, {report['judged_cases']} judged cases: median |error| "
        f"{percent(report['median_abs_corrected_error_frac'])}, worst "
        f"{percent(report['max_abs_corrected_error_frac'])}"
    )
    for sentence in report["left_out"]:
        say(sentence)


def _say_disturbed(report: dict[str, Any]) -> None:
    say(
        f"{report['disturbed_runs']} of {report['runs']} runs were disturbed (reference kernels "
        f"around them differed by over {percent(STEADY_FRAC)}, or others had more than half of the "
        f"core). Corrected errors are over all runs; measured is the median of the "
        f"{report['repeats']} least disturbed. Other processes had "
        f"{percent(1 - report['median_core_share'])} of the compute core."
    )


def print_adaptation_report(report: dict[str, Any]) -> None:
    """Predicted and measured time of each way to restore, by drop."""
    say(
        f"{report['model']} ({report['dtype']}), {report['prompt_tokens']:,} tokens, link "
        f"{report['link_bytes_per_s'] / 1e9:.2g} GB/s, planned for {ms(report['planned_s'])}"
    )
    labels = {
        "stale": "lp, planned for the whole machine",
        "replanned": "lp, planned again",
        "two-ended": "two-ended, without a plan",
    }
    for name, drop in report["drops"].items():
        stale_s = drop["ways"][0]["measured_s"]
        rows = [
            (
                labels[way["name"]],
                ms(way["predicted_s"]),
                ms(way["measured_s"]),
                percent(way["predicted_s"] / way["measured_s"] - 1, signed=True),
                percent(way["measured_s"] / stale_s - 1, signed=True),
            )
            for way in drop["ways"]
        ]
        title = f"\n{name}: {drop['lane']} at {percent(drop['frac'])} from {ms(drop['start_s'])} on"
        table(title, ("restore", "predicted", "measured", "error", "against stale"), rows)
        for share in drop["compute_shares"]:
            say(
                f"compute from {ms(share['start_s'])} on: {percent(share['measured_frac'])} of "
                f"its core, {percent(share['stated_frac'])} stated"
            )
        for move in drop["moves"]:
            say(
                f"at {ms(move['at_s'])}, after a task of {move['lane']}: now "
                f"{move['computed_tokens']:,} tokens are computed"
            )
    say("numbers: first token, logits, K and V equal the resident prefill after every run")
    say(f"device: {report['device']}")
