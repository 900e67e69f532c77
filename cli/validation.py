"""`kvoverlap validate`: profile, plan, predict, run the identical plans, compare."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from cyclopts import Parameter

from cli.devices import DEFAULT_DTYPE, measure_profile
from cli.output import print_json, progress, say, table
from planner import Plan, make_plan
from sim.catalog import find_model
from sim.compare import Comparison, compare
from sim.engine import simulate
from sim.errors import BadInput
from sim.files import read_json, write_json
from sim.hardware import HardwareProfile
from sim.memory import check_fits
from sim.model_spec import ModelSpec
from sim.quantities import ms, parse_count, parse_counts, percent
from sim.recording import Recording
from sim.workload import Workload

POLICIES = ("lp", "kvpr", "load-all", "recompute-all")
FIXED_PARTS = (0.25, 0.75)
"""Fixed splits of the grid, as parts of the prompt."""

DEFAULT_GRID = {
    "cpu": {"model": "opt-125m", "prompts": "300,500", "batches": "4,7"},
    "cuda": {"model": "opt-6.7b", "prompts": "500,1000", "batches": "12,24"},
}
"""Cases between the points that `profile` samples, not on them."""

REPORT = "report.json"


@dataclass(frozen=True)
class Case:
    """One plan of the grid with its measurement."""

    name: str
    plan: Plan
    predicted: Recording
    measured: Recording
    comparison: Comparison

    def to_dict(self) -> dict[str, Any]:
        job = self.plan.workload
        return {
            "name": self.name,
            "policy": self.plan.policy,
            "batch_size": job.batch_size,
            "prompt_tokens": job.prompt_tokens,
            "gen_tokens": job.gen_tokens,
            "recomputed_tokens": list(self.plan.steps[0].recomputed_tokens),
            "lower_bound_s": self.plan.lower_bound_s,
            "lp_objective_s": self.plan.lp_objective_s,
            **self.comparison.to_dict(),
        }


def validate(
    *,
    device: str = "auto",
    model: str | None = None,
    prompts: str | None = None,
    batches: str | None = None,
    gen: str = "2",
    repeats: int = 3,
    link: str | None = None,
    seed: int = 0,
    gate: float | None = None,
    out: Annotated[Path | None, Parameter(name="--out")] = None,
    json: bool = False,
) -> int:
    """Show how far the predictions are off on this machine: the whole loop in one command.

    Profiles the device, plans a grid of cases that calibration did not see, simulates each, runs
    the identical graph with real tensors, checks the numbers against a fully resident decode, and
    compares. On the CPU device this takes two to three minutes.

    Examples:
      kvoverlap validate
      kvoverlap validate --device cpu --link 0.4GB/s --out runs/slow-link
      kvoverlap validate --device cuda --model llama-2-7b --batches 8,16 --prompts 512,2K --gate 5

    Parameters
    ----------
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

    if repeats < 1:
        raise BadInput(f"--repeats(={repeats}) must be at least 1.")
    if gate is not None and not gate >= 0:
        raise BadInput(f"--gate(={gate}) must be a percentage of at least 0.")
    kind = resolve_device(device)
    default = DEFAULT_GRID[kind]
    spec = find_model(model or default["model"], DEFAULT_DTYPE[kind])
    steps = parse_count("--gen", gen)
    jobs = [
        Workload(batch, prompt, steps)
        for prompt in parse_counts("--prompts", prompts or default["prompts"])
        for batch in parse_counts("--batches", batches or default["batches"])
    ]
    if out is not None:
        check_out_folder(out)
    hardware = measure_profile(kind, [spec], f"this-{kind}", link)
    plans = {job: plan_grid(spec, hardware, job) for job in jobs}
    cases, checks, environment = measure(plans, kind, hardware, repeats, seed)
    report = summary(cases, checks, hardware, environment)
    if out is not None:
        write_run(out, hardware, cases, report)
    worst = float(report["max_abs_error_frac"])
    passed = gate is None or worst * 100 <= gate
    if json:
        print_json({**report, "passed": passed})
    else:
        print_report(report, cases)
        if gate is not None:
            say(f"gate {gate:g} %: {'passed' if passed else 'FAILED'}")
        if out is not None:
            say(f"everything is in {out}; look at it with: make dashboard")
    return 0 if passed else 1


def plan_grid(spec: ModelSpec, hardware: HardwareProfile, job: Workload) -> dict[str, Plan]:
    """One plan per policy and fixed split, by case name."""
    fixed = [f"fixed:{round(part * job.prompt_tokens)}" for part in FIXED_PARTS]
    shape = f"b{job.batch_size}-s{job.prompt_tokens}"
    return {
        f"{shape}-{policy.replace(':', '')}": make_plan(spec, hardware, job, policy)
        for policy in (*POLICIES, *fixed)
    }


def measure(
    plans: dict[Workload, dict[str, Plan]],
    kind: str,
    hardware: HardwareProfile,
    repeats: int,
    seed: int,
) -> tuple[list[Case], dict[str, dict[str, Any]], dict[str, Any]]:
    """Run every plan; the cases of one shape take turns, so that a drifting machine shows."""
    from hw import (
        Executor,
        HostCache,
        open_backend,
        prefill,
        prompt_ids,
        random_weights,
        resident_decode,
    )

    cases: list[Case] = []
    checks: dict[str, dict[str, Any]] = {}
    pace = hardware.links.h2d.paced_bytes_per_s
    total = sum(len(group) for group in plans.values())
    with progress("validate") as steps, open_backend(kind, pace) as backend:
        spec = next(iter(next(iter(plans.values())).values())).model
        longest = Workload(
            max(job.batch_size for job in plans), max(job.prompt_tokens for job in plans), 1
        )
        memory = backend.memory()
        for group in plans.values():
            for plan in group.values():
                graph = plan.simulated_graph()
                check_fits(graph, memory.device_bytes, memory.host_bytes / 2, f"this {kind} device")
        steps("making weights", 0.0)
        weights = random_weights(spec, seed, backend.device)
        source = HostCache.empty(spec, longest, backend)
        steps("prefilling prompts", 0.0)
        prefill(weights, prompt_ids(spec, longest, seed), source)
        for job, group in plans.items():
            cache = HostCache.empty(spec, job, backend)
            cache.take_prefix(source, job.prompt_tokens)
            reference = resident_decode(weights, cache, job)
            graphs = {name: plan.simulated_graph() for name, plan in group.items()}
            executors = {
                name: Executor(graph, group[name].graph_sha256, weights, cache, backend)
                for name, graph in graphs.items()
            }
            for executor in executors.values():
                executor.run()
            runs: dict[str, list[Any]] = {name: [] for name in group}
            for number in range(repeats):
                for name, executor in executors.items():
                    done = (len(cases) + len(group) * number / repeats) / total
                    steps(f"{name.rsplit('-', 1)[0]}, repeat {number + 1} of {repeats}", done)
                    runs[name].append(executor.run())
                    if number == repeats - 1:
                        checks[name] = executor.check(reference)
            environment = backend.environment()
            for name, plan in group.items():
                predicted = Recording("predicted", hardware, (simulate(graphs[name], hardware),))
                measured = Recording(
                    "measured", hardware, tuple(runs[name]), environment, checks[name]
                )
                cases.append(Case(name, plan, predicted, measured, compare(predicted, measured)))
    return cases, checks, environment


def summary(
    cases: list[Case],
    checks: dict[str, dict[str, Any]],
    hardware: HardwareProfile,
    environment: dict[str, Any],
) -> dict[str, Any]:
    """The report: errors per case and over all, regret of the LP's plans, equality of numbers."""
    errors = [abs(case.comparison.makespan_error_frac) for case in cases]
    overlaps = [
        abs(case.comparison.overlap_predicted_frac - case.comparison.overlap_measured_frac)
        for case in cases
    ]
    shapes: dict[Workload, list[Case]] = {}
    for case in cases:
        shapes.setdefault(case.plan.workload, []).append(case)
    regrets = [
        next(c for c in group if c.plan.policy == "lp").measured.makespan_s
        / min(c.measured.makespan_s for c in group)
        - 1.0
        for group in shapes.values()
    ]
    return {
        "device": environment["device"],
        "model": cases[0].plan.model.name,
        "dtype": cases[0].plan.model.dtype,
        "link_bytes_per_s": hardware.links.h2d.bytes_per_s,
        "median_abs_error_frac": median(errors),
        "max_abs_error_frac": max(errors),
        "max_overlap_error_points": 100 * max(overlaps),
        "median_spread_frac": median(case.comparison.measured_spread_frac for case in cases),
        "median_teacher_forced_error_frac": median(
            abs(case.comparison.teacher_forced_error_frac) for case in cases
        ),
        "median_naive_error_frac": median(abs(case.comparison.naive_error_frac) for case in cases),
        "lp_measured_regret_frac": max(regrets),
        "lp_fastest_in": f"{sum(regret <= 0 for regret in regrets)} of {len(regrets)} shapes",
        "checks": checks,
        "environment": environment,
        "cases": [case.to_dict() for case in cases],
    }


def print_report(report: dict[str, Any], cases: list[Case]) -> None:
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
    say("error: predicted - measured; spread: slowest - fastest repeat (* covers the error);")
    say("max() error: what max(copy, compute) would have predicted instead")
    say(
        f"median |error| {percent(report['median_abs_error_frac'])}, worst "
        f"{percent(report['max_abs_error_frac'])}, overlap within "
        f"{report['max_overlap_error_points']:.1f} points; median spread "
        f"{percent(report['median_spread_frac'])}; given measured task times "
        f"{percent(report['median_teacher_forced_error_frac'])}"
    )
    say(
        f"the lp plan was the fastest measured in {report['lp_fastest_in']}; at worst "
        f"{percent(max(0.0, report['lp_measured_regret_frac']))} slower than the best"
    )
    n = len(report["checks"])
    say(f"numbers: tokens, logits, K and V equal the resident decode in all {n} cases")
    say(f"device: {report['device']}")


def check_out_folder(out: Path) -> None:
    """Refuse to write over a folder that holds something other than an earlier run."""
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out(={out}) is a file; name a folder.")
    if out.is_dir() and any(out.iterdir()):
        if not (out / REPORT).is_file():
            raise BadInput(f"--out(={out}) holds other files; name a new or earlier run's folder.")
        read_json(out / REPORT, "validation")


def write_run(
    out: Path, hardware: HardwareProfile, cases: list[Case], report: dict[str, Any]
) -> None:
    """Profile, plans and measured timelines; the report comes last, so that it means all."""
    (out / REPORT).unlink(missing_ok=True)
    hardware.save(out / "profile.json")
    known = {case.name for case in cases}
    if (out / "cases").is_dir():
        for old in (out / "cases").iterdir():
            if old.name not in known:
                for name in ("plan.json", "measured.json.gz"):
                    (old / name).unlink(missing_ok=True)
                old.rmdir()
    for case in cases:
        case.plan.save(out / "cases" / case.name / "plan.json")
        case.measured.save(out / "cases" / case.name / "measured.json.gz")
    write_json(out / REPORT, "validation", report)
