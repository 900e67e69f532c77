"""`kvoverlap simulate` and `compare`: predicted timelines and their errors."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kvoverlap.cli.device_options import PRINT_ONLY, TimelineOutput, check_distinct
from kvoverlap.cli.options import (
    Engine,
    Gate,
    Json,
    OutputFile,
    PlanFile,
    installed_engine,
    parse_seed,
    parsed_by,
)
from kvoverlap.cli.output import note, print_json, progress, say, shown_frac, table
from kvoverlap.cli.reports import report_timeline
from planner import DecodePlan, Job, Plan, PlanOptions, plan_split
from sim.errors import BadInput, Mismatch
from sim.files import document_kind
from sim.graph.timeline import Timeline
from sim.machine.profile import HardwareProfile
from sim.results.compare import Comparison, compare
from sim.results.recording import Recording
from sim.results.trace import read_trace
from sim.traces.compare import TraceComparison, compare_with_trace
from sim.traces.measured import MeasuredTrace, holds_trace, open_trace
from sim.units import error_text, ms, percent


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


def compare_verb(
    predicted: Path,
    measured: Path,
    *,
    step: Annotated[
        int | None,
        Parameter(
            converter=parsed_by(parse_seed),
            metavar="INT",
            help="Compare with this step of a trace of another program, counted from 0 as "
            "`kvoverlap trace` lists them. By default the whole trace.",
        ),
    ] = None,
    gate: Gate = None,
    json: Json = False,
) -> int:
    """Compare a predicted and a measured timeline of the same graph, task by task.

    Errors are predicted minus measured. With --gate the exit status is 1 when the
    makespan error exceeds it. A trace of another program has no tasks of the graph:
    its sums are compared (span, kernels, copies, overlap, exposed copy, idle).

    For example:
      kvoverlap compare predicted.json measured.json
      kvoverlap compare predicted.json measured.trace.json.gz
      kvoverlap compare predicted.json measured.json --gate 5
      kvoverlap compare predicted.json vllm.pt.trace.json.gz --step 3

    Parameters
    ----------
    predicted
        A timeline written by `kvoverlap simulate -o`, or a plan, which is simulated.
    measured
        A timeline written by `kvoverlap run -o`, or a trace of it written by `--trace`;
        or a trace of another program, or what `kvoverlap trace -o` wrote of one.
    """
    guess = prediction_in(predicted)
    truth: Recording | MeasuredTrace = (
        opened_trace(measured, guess) if holds_trace(measured) else Recording.load(measured)
    )
    if step is not None and isinstance(truth, Recording):
        raise BadInput(f"--step(={step}) is for traces of other programs; leave it out.")
    if (guess.source, truth.source) != ("predicted", "measured"):
        raise Mismatch(
            f"{predicted} is {guess.source} and {measured} is {truth.source}; give the predicted "
            "timeline first and the measured one second."
        )
    result = (
        compare(guess, truth)
        if isinstance(truth, Recording)
        else compare_with_trace(guess.typical, truth, step)
    )
    passed = gate is None or abs(result.makespan_error_frac) * 100 <= gate
    if json:
        named = {"model": guess.graph.model.name}
        print_json({**named, **result.to_dict(), "passed": passed})
    else:
        if guess.graph.model.assumed:
            say(guess.graph.model.name)
        if isinstance(result, Comparison):
            print_comparison(result)
        else:
            print_trace_comparison(result)
        if gate is not None:
            say(f"\ngate {gate:g} %: {'passed' if passed else 'FAILED'}")
    return 0 if passed else 1


def prediction_in(path: Path) -> Recording:
    """A timeline in a file, or that of the plan in it."""
    if document_kind(path) not in Plan.kinds:
        return Recording.load(path)
    plan = Plan.load(path)
    return Recording("predicted", plan.hardware, (plan.simulate(),))


def opened_trace(path: Path, guess: Recording) -> Recording | MeasuredTrace:
    """A trace: a recording of the predicted graph if kvoverlap wrote it."""
    with progress("compare") as steps:
        found = open_trace(path, steps)
    if found.events.graph_sha256 is None:
        return found
    timeline = read_trace(path, guess.graph, "measured")
    return Recording("measured", guess.hardware, (timeline,))


def print_trace_comparison(result: TraceComparison) -> None:
    """Sums of a prediction and of a trace of another program."""
    say(
        f"predicted {ms(result.predicted_makespan_s)}, measured "
        f"{ms(result.measured_makespan_s)} ({result.subject}), "
        f"{percent(result.makespan_error_frac, signed=True)}"
    )
    say("The trace has no tasks of the predicted graph: sums are compared.")
    rows = []
    for name, (guess, truth) in result.seconds.items():
        error = f"{(guess - truth) * 1e3:+.2f} ms"
        relative = percent(guess / truth - 1, signed=True) if truth else ""
        rows.append((name, ms(guess), ms(truth), error, relative))
    for name, (one, other) in result.overlap_frac.items():
        points = ""
        if one is not None and other is not None:
            points = f"{100 * (one - other):+.1f} points"
        rows.append((f"{name} overlap", shown_frac(one), shown_frac(other), points, ""))
    table("\nSums", ("", "predicted", "measured", "error", "relative"), rows)
    for sentence in result.notes:
        note(sentence)


def print_comparison(result: Comparison) -> None:
    say(
        f"predicted {ms(result.predicted_makespan_s)}, measured {ms(result.measured_makespan_s)}: "
        f"{error_text(result.makespan_error_frac)} (repeats differ by "
        f"{percent(result.measured_spread_frac)})"
    )
    say(
        f"overlap {percent(result.overlap_predicted_frac)} predicted, "
        f"{percent(result.overlap_measured_frac)} measured; exposed copy "
        f"{ms(result.exposed_copy_predicted_s)} and {ms(result.exposed_copy_measured_s)}"
    )
    say(
        f"error of the scheduling model alone, from measured task times: "
        f"{percent(result.teacher_forced_error_frac, signed=True)}; of the simple formula "
        f"max(copy, compute): {percent(result.naive_error_frac, signed=True)}"
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
