"""`kvoverlap validate`: profile, plan, predict, run the identical plans, compare."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from kvoverlap.cli.output import print_json, progress, say
from kvoverlap.cli.plan import parse_kv_bits
from kvoverlap.cli.reports import print_adaptation_report, print_report, print_restore_report
from measure.adaptation import measure_adaptation
from measure.calibrate import DEFAULT_DTYPE, measure_profile
from measure.decode_grid import Case
from measure.reports import measure_decodes, measure_restores
from measure.restore_grid import RestoreCase
from sim.catalog import find_model
from sim.errors import BadInput, UnknownName
from sim.files import read_json, write_json
from sim.graph.jobs import Workload
from sim.machine.profile import HardwareProfile
from sim.results.accuracy import CASE, CASES, MEASURED
from sim.units import parse_count, parse_counts

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
        with progress("profile") as steps:
            hardware = measure_profile(
                kind, [spec], f"this-{kind}", link, steps, sorted(used_bits), False
            )
        with progress("validate") as steps:
            cases, report = measure_decodes(
                spec, hardware, kind, jobs, repeats, seed, schedule, steps
            )
        show = partial(print_report, report, cases)
    else:
        _check_untouched(batches=batches, gen=gen, schedule=schedule, n_batches=n_batches)
        _check_untouched(kv_bits=kv_bits)
        lengths = parse_counts("--prompts", prompts or RESTORE_PROMPTS[scenario][kind])
        if scenario == "adapt" and (kind != "cpu" or len(lengths) > 1):
            raise BadInput("--scenario adapt is for one of --prompts and --device cpu.")
        with progress("profile") as steps:
            hardware = measure_profile(kind, [spec], f"this-{kind}", link, steps, ())
        if scenario == "restore":
            with progress("validate") as steps:
                cases, report = measure_restores(
                    spec, hardware, kind, lengths, repeats, seed, steps
                )
            show = partial(print_restore_report, report)
        else:
            with progress("validate") as steps:
                report = measure_adaptation(spec, hardware, kind, lengths[0], repeats, seed, steps)
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
