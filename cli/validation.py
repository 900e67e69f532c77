"""`kvoverlap validate`: profile, plan, predict, run the identical plans, compare."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from cyclopts import Parameter

from cli.adapt_validation import measure_adaptation, print_adaptation_report
from cli.devices import DEFAULT_DTYPE, measure_profile
from cli.grid import Case, GridOptions, GridRun, ShapeResult, shape_name
from cli.output import print_json, progress, say, table
from cli.plans import parse_kv_bits
from cli.restore_grid import RestoreCase
from cli.restore_validation import measure_restores, print_restore_report
from cli.rounds import STEADY_FRAC
from cli.timelines import say_quantisation
from sim.accuracy import CASE, CASES, MEASURED
from sim.catalog import find_model
from sim.errors import BadInput, UnknownName
from sim.files import read_json, write_json
from sim.hardware import HardwareProfile
from sim.model_spec import ModelSpec
from sim.quantities import ms, parse_count, parse_counts, percent
from sim.workload import Workload

DEFAULT_GRID = {
    "cpu": {"model": "opt-125m", "prompts": "300,500", "batches": "4,7"},
    "cuda": {"model": "opt-6.7b", "prompts": "500,1000", "batches": "10,20"},
}
"""No attention and no recomputation of these cases is of a size that `profile` samples."""

SCENARIOS = ("decode", "restore", "adapt")
RESTORE_PROMPTS = {
    "restore": {"cpu": "500,900", "cuda": "2K,8K"},
    "adapt": {"cpu": "900", "cuda": ""},
}
DECODE_OPTIONS = {"gen": "2", "schedule": "row", "n_batches": "1"}
"""What only decodes have, where it is not None."""

REPORT = "report.json"
PLAN = "plan.json"


def validate(
    *,
    scenario: str = "decode",
    device: str = "auto",
    model: str | None = None,
    prompts: str | None = None,
    batches: str | None = None,
    gen: str = "2",
    schedule: str = "row",
    n_batches: str = "1",
    kv_bits: str | None = None,
    repeats: int = 4,
    link: str | None = None,
    seed: int = 0,
    gate: float | None = None,
    out: Annotated[Path | None, Parameter(name="--out")] = None,
    json: bool = False,
) -> int:
    """Show how far the predictions are off on this machine: the whole loop in one command.

    Profiles the device, plans a grid of cases that calibration did not see, simulates each, runs
    the identical graph with real tensors, checks the numbers against a fully resident decode, and
    compares. On the CPU device this takes about three minutes.

    With --scenario restore the grid is of restores, from host memory and from a cache file at
    several bandwidths, each by five policies, and checked against computing the whole prompt. With
    --scenario adapt bandwidth or device are taken away in mid-restore, which a split that is kept,
    one that is planned again, and claims each have to cope with.

    Examples:
      kvoverlap validate
      kvoverlap validate --scenario restore --out runs/restores
      kvoverlap validate --scenario adapt --device cpu
      kvoverlap validate --device cpu --link 0.4GB/s --out runs/slow-link
      kvoverlap validate --schedule column --n-batches 2 --batches 3,5 --prompts 200,350
      kvoverlap validate --device cuda --model llama-2-7b --batches 8,16 --prompts 512,2K --gate 5

    Parameters
    ----------
    scenario
        decode, restore or adapt; --batches, --gen, --schedule, --n-batches and --kv-bits are of
        decodes.
    device
        auto, cpu or cuda.
    model
        Architecture to validate with; default opt-125m on cpu, opt-6.7b on cuda.
    prompts
        Comma-separated prompt lengths.
    batches
        Comma-separated batch sizes.
    gen
        Decode steps of every case.
    schedule
        row, or column with --n-batches batches that share each loaded layer.
    n_batches
        Batches that pass through each layer (column).
    kv_bits
        8 or 4: K and V lie quantised in host memory; what that changes is reported.
    repeats
        Measured repetitions of every case, in turn with the other cases of its shape.
    link
        Pace of the emulated link of the cpu device; by default one that makes the choice close.
    seed
        Seed of weights and prompts.
    gate
        Exit with status 1 when a case's makespan error exceeds this many per cent.
    out
        Folder for the profile, every plan, every measured timeline and the report.
    json
        Print JSON instead of text.
    """
    from hw import resolve_device

    if scenario not in SCENARIOS:
        raise UnknownName("scenario", scenario, SCENARIOS)
    if repeats < 1:
        raise BadInput(f"--repeats(={repeats}) must be at least 1.")
    if gate is not None and not gate >= 0:
        raise BadInput(f"--gate(={gate}) must be a percentage of at least 0.")
    kind = resolve_device(device)
    default = DEFAULT_GRID[kind]
    spec = find_model(model or default["model"], DEFAULT_DTYPE[kind])
    if out is not None:
        check_out_folder(out)
    cases: Sequence[Case] | Sequence[RestoreCase] = ()
    if scenario == "decode":
        jobs = [
            Workload(
                batch,
                prompt,
                parse_count("--gen", gen),
                parse_count("--n-batches", n_batches),
                parse_kv_bits(kv_bits),
            )
            for prompt in parse_counts("--prompts", prompts or default["prompts"])
            for batch in parse_counts("--batches", batches or default["batches"])
        ]
        used_bits = {job.kv_bits for job in jobs if job.kv_bits is not None}
        hardware = measure_profile(kind, [spec], f"this-{kind}", link, sorted(used_bits), False)
        cases, report = measure_decodes(spec, hardware, kind, jobs, repeats, seed, schedule)
        show = partial(print_report, report, cases)
    else:
        _check_untouched(batches=batches, gen=gen, schedule=schedule, n_batches=n_batches)
        _check_untouched(kv_bits=kv_bits)
        lengths = parse_counts("--prompts", prompts or RESTORE_PROMPTS[scenario][kind])
        if scenario == "adapt" and (kind != "cpu" or len(lengths) > 1):
            raise BadInput("--scenario adapt is for one of --prompts and --device cpu.")
        hardware = measure_profile(kind, [spec], f"this-{kind}", link, ())
        if scenario == "restore":
            cases, report = measure_restores(spec, hardware, kind, lengths, repeats, seed)
            show = partial(print_restore_report, report)
        else:
            report = measure_adaptation(spec, hardware, kind, lengths[0], repeats, seed)
            show = partial(print_adaptation_report, report)
    if out is not None:
        write_run(out, hardware, cases, report)
    worst = float(report["max_abs_error_frac"])
    passed = gate is None or worst * 100 <= gate
    if json:
        print_json({**report, "passed": passed})
    else:
        show()
        if gate is not None:
            say(f"gate {gate:g} %: {'passed' if passed else 'FAILED'}")
        if out is not None:
            say(f"everything is in {out}; look at it with: make dashboard")
    return 0 if passed else 1


def _check_untouched(**options: str | None) -> None:
    """Refuse options that say nothing about restores."""
    for name, value in options.items():
        if value != DECODE_OPTIONS.get(name):
            raise BadInput(
                f"--{name.replace('_', '-')}(={value}) is of decodes; leave it out of restores."
            )


def measure_decodes(
    spec: ModelSpec,
    hardware: HardwareProfile,
    kind: str,
    jobs: Sequence[Workload],
    repeats: int,
    seed: int,
    schedule: str,
) -> tuple[list[Case], dict[str, Any]]:
    """Every case of a grid of decodes, and the report."""
    from hw import open_backend

    pace = hardware.links.h2d.paced_bytes_per_s
    with progress("validate") as tell, open_backend(kind, pace) as backend:
        grid = GridRun(spec, hardware, backend, jobs, repeats, seed, tell, GridOptions(schedule))
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


def print_report(report: dict[str, Any], cases: Sequence[Case]) -> None:
    """The table a newcomer sees first, and what it means."""
    rows = []
    for case in cases:
        result = case.comparison
        split = sorted(case.plan.steps[0].recomputed_tokens)
        beyond = abs(result.makespan_error_frac) > result.measured_spread_frac
        rows.append(
            (
                case.name,
                str(split[len(split) // 2]),
                ms(result.predicted_makespan_s),
                ms(result.measured_makespan_s),
                percent(result.makespan_error_frac, signed=True),
                percent(result.measured_spread_frac) + (" " if beyond else "*"),
                percent(result.overlap_predicted_frac),
                percent(result.overlap_measured_frac),
                percent(result.naive_error_frac, signed=True),
            )
        )
    columns = (
        "case",
        "recomputed",
        "predicted",
        "measured",
        "error",
        "spread",
        "overlap pred.",
        "overlap meas.",
        "max() error",
    )
    link = report["link_bytes_per_s"] / 1e9
    table(f"{report['model']} ({report['dtype']}), link {link:.2g} GB/s", columns, rows)
    say("")
    say("error: predicted - measured; spread: interquartile range of the repeats, * covers error;")
    say("max() error: what max(copy, compute) would have predicted instead")
    say(
        f"median |error| {percent(report['median_abs_error_frac'])}, worst "
        f"{percent(report['max_abs_error_frac'])}; overlap off by "
        f"{report['median_overlap_error_points']:.1f} points, worst "
        f"{report['max_overlap_error_points']:.1f}; median spread "
        f"{percent(report['median_spread_frac'])}; given measured task times "
        f"{percent(report['median_teacher_forced_error_frac'])}"
    )
    say(
        f"the lp plan was the fastest measured in {report['lp_fastest_in']}; at worst "
        f"{percent(max(0.0, report['lp_measured_regret_frac']))} slower than the best"
    )
    runs, disturbed = report["runs"], report["disturbed_runs"]
    say(
        f"{disturbed} of {runs} runs were disturbed (reference products beside them were off by "
        f"over {percent(STEADY_FRAC)}); of each case the {report['repeats']} steadiest count"
    )
    before, beside = report["machine_drifts"], report["machine_drifts_beside_runs"]
    for part, what in (("flops", "large"), ("hbm", "small")):
        drifts = [
            f"{percent(before[shape][part] - 1, signed=True)} "
            f"({percent(beside[shape][part] - 1, signed=True)})"
            for shape in before
        ]
        say(f"time of {what} products before (beside) each shape's runs, against the profile:")
        say(f"  {', '.join(drifts)}")
    n = len(report["checks"])
    say(f"numbers: tokens, logits, K and V equal the resident decode in all {n} cases")
    say_quantisation(worst_quantisation(report["checks"].values()))
    say(f"device: {report['device']}")


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


def check_out_folder(out: Path) -> None:
    """Refuse to write over a folder that holds something other than an earlier run."""
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out(={out}) is a file; name a folder.")
    if out.is_dir() and any(out.iterdir()):
        if not (out / REPORT).is_file():
            raise BadInput(f"--out(={out}) holds other files; name a new or earlier run's folder.")
        read_json(out / REPORT, "validation")


def write_run(
    out: Path,
    hardware: HardwareProfile,
    cases: Sequence[Case] | Sequence[RestoreCase],
    report: dict[str, Any],
) -> None:
    """Profile, plans and measured timelines; the report comes last, so that it means all."""
    (out / REPORT).unlink(missing_ok=True)
    hardware.save(out / "profile.json")
    known = {case.name for case in cases}
    if (out / CASES).is_dir():
        for old in (out / CASES).iterdir():
            if old.name not in known:
                for name in (PLAN, MEASURED, CASE):
                    (old / name).unlink(missing_ok=True)
                old.rmdir()
    for case in cases:
        case.plan.save(out / CASES / case.name / PLAN)
        case.save(out / CASES / case.name)
    write_json(out / REPORT, "validation", report)
