"""`kvoverlap simulate` and `compare`: predicted timelines and their errors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kvoverlap.cli.options import (
    PRINT_ONLY,
    Engine,
    Gate,
    Json,
    OutputFile,
    PlanFile,
    TimelineOutput,
    check_distinct,
    installed_engine,
)
from kvoverlap.cli.output import print_json, say, table
from kvoverlap.cli.reports import report_timeline
from planner import DecodePlan, Job, Plan, PlanOptions, plan_split
from sim.errors import BadInput, Mismatch
from sim.graph.timeline import Timeline
from sim.machine.profile import HardwareProfile
from sim.results.compare import Comparison, compare
from sim.results.recording import Recording
from sim.results.trace import is_trace, read_trace
from sim.units import ms, percent


def simulate_verb(
    plan: PlanFile,
    *,
    plan_out: Annotated[
        OutputFile | None,
        Parameter(
            help="Write the plan here with a new simulation of its split, after editing the file."
        ),
    ] = None,
    engine: Engine = "simpy",
    result: TimelineOutput = PRINT_ONLY,
) -> None:
    """Predict the timeline of a plan: when every load, recomputation and layer runs.

    For example:
      kvoverlap simulate plan.json
      kvoverlap simulate plan.json -o predicted.json \\
          --trace predicted.trace.json.gz
      kvoverlap simulate edited-plan.json --plan-out new-plan.json
    """
    engine = installed_engine(engine)
    check_distinct(plan_out, result.output, result.trace)
    loaded = Plan.load(plan)
    if plan_out is not None:
        if not isinstance(loaded, DecodePlan):
            raise BadInput(f"--plan-out is for edited decode plans; {plan} is of a restore.")
        loaded = with_new_simulation(loaded)
        loaded.save(plan_out)
    report_prediction(loaded.simulate(engine), loaded.hardware, result)


def with_new_simulation(plan: DecodePlan) -> DecodePlan:
    """The plan of the same split, simulated again if it was edited."""
    if plan.lower().sha256 == plan.graph_sha256:
        return plan
    return plan_split(
        Job(plan.model, plan.hardware, plan.workload),
        [step.recomputed_tokens for step in plan.steps],
        plan.residency,
        PlanOptions(schedule=plan.schedule, gpus=plan.jobs),
    )


def report_prediction(
    timeline: Timeline,
    hardware: HardwareProfile,
    result: TimelineOutput,
) -> None:
    """Write a predicted timeline to the chosen files, and print its measures."""
    recording = Recording("predicted", hardware, (timeline,))
    result.write(recording)
    report_timeline("predicted", recording, result.json)


def compare_verb(predicted: Path, measured: Path, *, gate: Gate = None, json: Json = False) -> int:
    """Compare a predicted and a measured timeline of the same graph, task by task.

    Errors are predicted minus measured. With --gate the exit status is 1 when the
    makespan error exceeds it.

    For example:
      kvoverlap compare predicted.json measured.json
      kvoverlap compare predicted.json measured.trace.json.gz
      kvoverlap compare predicted.json measured.json --gate 5

    Parameters
    ----------
    predicted
        A timeline written by `kvoverlap simulate -o`.
    measured
        A timeline written by `kvoverlap run -o`, or a trace of it written by `--trace`.
    """
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
