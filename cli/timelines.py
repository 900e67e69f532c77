"""`kvoverlap simulate` and `compare`: predicted timelines, and how far off they were."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cli.engines import installed_engine
from cli.output import print_json, say, table
from cli.plans import Output
from planner import load_plan, plan_split
from planner.restore import RestorePlan
from sim.compare import Comparison, compare
from sim.engine import simulate
from sim.errors import BadInput, Mismatch
from sim.hardware import HardwareProfile
from sim.quantities import ms, percent
from sim.recording import Recording
from sim.timeline import Timeline
from sim.trace import is_trace, read_trace, write_trace


def simulate_verb(
    plan: Path,
    *,
    output: Output = None,
    trace: Path | None = None,
    plan_out: Path | None = None,
    engine: str = "simpy",
    json: bool = False,
) -> None:
    """Predict the timeline of a plan: when every load, recomputation and layer runs.

    Examples:
      kvoverlap simulate plan.json
      kvoverlap simulate plan.json -o predicted.json --trace predicted.trace.json.gz
      kvoverlap simulate edited-plan.json --plan-out new-plan.json

    Parameters
    ----------
    plan
        A plan written by `kvoverlap plan -o` or `kvoverlap restore -o`.
    output
        Write the predicted timeline here, for compare.
    trace
        Write a Chrome trace here; open it at ui.perfetto.dev.
    plan_out
        Write the plan here with the simulation of its present split, after editing one by hand.
    engine
        simpy, or fast: compiled, the same times within rounding.
    json
        Print JSON instead of text.
    """
    loaded = load_plan(plan)
    if isinstance(loaded, RestorePlan):
        if plan_out is not None:
            raise BadInput(f"--plan-out is for edited decode plans; {plan} is of a restore.")
        timeline = simulate(
            loaded.simulated_graph(),
            loaded.hardware,
            installed_engine(engine),
            loaded.availability,
        )
        report_prediction(timeline, loaded.hardware, output, trace, json)
        return
    graph = loaded.lower() if plan_out is not None else loaded.simulated_graph()
    timeline = simulate(graph, loaded.hardware, installed_engine(engine))
    if plan_out is not None:
        edited = loaded
        if graph.sha256 != loaded.graph_sha256:
            split = [step.recomputed_tokens for step in loaded.steps]
            edited = plan_split(
                loaded.model,
                loaded.hardware,
                loaded.workload,
                split,
                loaded.schedule,
                loaded.residency,
            )
        edited.save(plan_out)
    report_prediction(timeline, loaded.hardware, output, trace, json)


def report_prediction(
    timeline: Timeline,
    hardware: HardwareProfile,
    output: Path | None,
    trace: Path | None,
    json: bool,
) -> None:
    """Write a predicted timeline where that is asked for, and print its measures."""
    recording = Recording("predicted", hardware, (timeline,))
    if output is not None:
        recording.save(output)
    if trace is not None:
        write_trace(timeline, trace, "predicted")
    report_timeline("predicted", recording, json)


def report_timeline(
    what: str, recording: Recording, json: bool, more: Mapping[str, Any] | None = None
) -> None:
    """Print the measures of a timeline; JSON with what there is `more` to say."""
    timeline = recording.typical
    parts = timeline.breakdown
    lanes = {lane: timeline.busy_s(lane) for _, lane in timeline.graph.lanes}
    answer = {
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
    say(f"{what} makespan {ms(recording.makespan_s)}{spread if len(recording.runs) > 1 else ''}")
    say(
        f"= compute {ms(parts.compute_s)} + exposed copy {ms(parts.exposed_copy_s)} + idle "
        f"{ms(parts.idle_s)}; overlap {percent(timeline.overlap_frac)} of copy time"
    )
    ratio = timeline.makespan_s / timeline.busiest_lane_s
    say(
        f"= {ratio:.3f} x max(copy, compute) of its own tasks, "
        f"{ms(timeline.makespan_s / timeline.graph.workload.gen_tokens)} a step"
    )
    say_quantisation(recording.checks)
    rows = []
    for lane, busy in lanes.items():
        causes = sorted(timeline.idle_by_cause(lane).items(), key=lambda cause: -cause[1])
        idle = ", ".join(f"{name} {ms(value)}" for name, value in causes) or "never idle"
        rows.append((lane, ms(busy), percent(busy / timeline.makespan_s), idle))
    table("\nLanes", ("lane", "busy", "of makespan", "idle"), rows)


def say_quantisation(checks: Mapping[str, Any]) -> None:
    """What quantising the cache changed, where a run measured it."""
    if "kv_quantisation_error" in checks:
        kv, logits = (checks[f"{what}_quantisation_error"] for what in ("kv", "logits"))
        tokens = "equal" if checks["tokens_equal_unquantised"] else "differ from"
        say(
            f"quantised cache: K and V off by {percent(kv)}, logits by {percent(logits)} of the "
            f"largest; greedy tokens {tokens} the unquantised ones"
        )


def compare_verb(
    predicted: Path, measured: Path, *, gate: float | None = None, json: bool = False
) -> int:
    """Compare a predicted and a measured timeline of the same graph, task by task.

    Errors are predicted minus measured. With --gate the exit status is 1 when the makespan error
    exceeds it.

    Examples:
      kvoverlap compare predicted.json measured.json
      kvoverlap compare predicted.json measured.trace.json.gz
      kvoverlap compare predicted.json measured.json --gate 5

    Parameters
    ----------
    predicted
        A timeline written by `kvoverlap simulate -o`.
    measured
        A timeline written by `kvoverlap run -o`, or a trace of it written by `--trace`.
    gate
        Largest makespan error in per cent for exit status 0.
    json
        Print JSON instead of text.
    """
    if gate is not None and not gate >= 0:
        raise BadInput(f"--gate(={gate}) must be a percentage of at least 0.")
    guess = Recording.load(predicted)
    if is_trace(measured):
        timeline = read_trace(measured, guess.graph, "measured")
        truth = Recording("measured", guess.hardware, (timeline,))
    else:
        truth = Recording.load(measured)
    if (guess.source, truth.source) != ("predicted", "measured"):
        raise Mismatch(
            f"{predicted} is {guess.source} and {measured} is {truth.source}; give the predicted "
            "timeline first and the measured one second."
        )
    result = compare(guess, truth)
    passed = gate is None or abs(result.makespan_error_frac) * 100 <= gate
    if json:
        print_json({**result.to_dict(), "passed": passed})
    else:
        print_comparison(result)
        if gate is not None:
            say(f"\ngate {gate:g} %: {'passed' if passed else 'FAILED'}")
    return 0 if passed else 1


def print_comparison(result: Comparison) -> None:
    say(
        f"predicted {ms(result.predicted_makespan_s)}, measured {ms(result.measured_makespan_s)}, "
        f"{percent(result.makespan_error_frac, signed=True)} "
        f"(repeat spread {percent(result.measured_spread_frac)})"
    )
    say(
        f"overlap {percent(result.overlap_predicted_frac)} predicted, "
        f"{percent(result.overlap_measured_frac)} measured; exposed copy "
        f"{ms(result.exposed_copy_predicted_s)} and {ms(result.exposed_copy_measured_s)}"
    )
    say(
        f"given the measured task times: {percent(result.teacher_forced_error_frac, signed=True)}; "
        f"max(copy, compute) alone: {percent(result.naive_error_frac, signed=True)}"
    )
    rows = [
        (
            error.task_id,
            ms(error.predicted_s),
            ms(error.measured_s),
            f"{error.error_s * 1e3:+.2f} ms",
            percent(error.error_frac, signed=True),
        )
        for error in result.worst_tasks
    ]
    table("\nWorst tasks", ("task", "predicted", "measured", "error", "relative"), rows)
