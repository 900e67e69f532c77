"""`kvoverlap validate`: profile, plan, predict, run the identical plans, compare."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kvoverlap.cli.device_options import THIS_DEVICE, DeviceOptions
from kvoverlap.cli.options import AssumeLike, Count, Counts, Gate, Json, Repeats
from kvoverlap.cli.output import print_json, progress, say
from kvoverlap.cli.reports import print_adaptation_report, print_decode_report, print_restore_report
from measure.validation import ValidationRequest, check_out_folder
from measure.validation import validate as measure


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Cases:
    """The cases to measure."""

    scenario: Annotated[
        str,
        Parameter(
            help="decode, restore or adapt; --batches, --gen, --schedule, --n-batches and "
            "--kv-bits are for decodes."
        ),
    ] = "decode"
    model: Annotated[
        str | None,
        Parameter(help="Architecture to validate with; default opt-125m on cpu, opt-6.7b on cuda."),
    ] = None
    assume_like: AssumeLike = None
    prompts: Annotated[Counts, Parameter(help="Comma-separated prompt lengths.")] = None
    batches: Annotated[Counts, Parameter(help="Comma-separated batch sizes.")] = None
    gen: Annotated[Count, Parameter(help="Decode steps of every case.")] = 2
    schedule: Annotated[
        str,
        Parameter(help="row, or column with --n-batches batches that share each loaded layer."),
    ] = "row"
    n_batches: Annotated[
        Count, Parameter(help="Batches that pass through each layer (column).")
    ] = 1
    kv_bits: Annotated[
        Count | None,
        Parameter(
            help="8 or 4: K and V are quantised in host memory; the report has the quantisation "
            "error."
        ),
    ] = None


def validate(
    *,
    cases: Cases = Cases(),
    machine: DeviceOptions = THIS_DEVICE,
    minutes: Annotated[
        float | None,
        Parameter(
            help="Time limit; by default 2.5 for decodes on the cpu device, 8 on cuda, none for "
            "the other scenarios. Repeats end when it is over; cases that it does not allow are "
            "left out."
        ),
    ] = None,
    repeats: Repeats = 4,
    gate: Gate = None,
    out: Path | None = None,
    json: Json = False,
) -> int:
    """Measure the prediction errors on this machine: the whole loop in one command.

    Profiles the device for the sizes of a grid of cases, plans the cases, simulates
    each, runs the identical graph with real tensors, checks the numbers against a
    fully resident decode, and compares. On the CPU device this takes at most 2.5
    minutes.

    Each run is also compared with a prediction for the machine's speed around that
    run: the corrected error. --gate judges the corrected errors. If the machine is
    too unsteady to judge, the first line says so, and a gate ends with status 2.

    With --scenario restore, the cases are restores from host memory and from a
    cache file at several bandwidths, each by five policies, and checked against
    computing the whole prompt. With --scenario adapt, the link or the device slows
    down during a restore: an unchanged split, a split that is planned again, and
    two-ended are compared.

    For example:
      kvoverlap validate
      kvoverlap validate --scenario restore --out runs/restores
      kvoverlap validate --scenario adapt --device cpu
      kvoverlap validate --device cpu --link 0.4GB/s --out runs/slow-link
      kvoverlap validate --schedule column --n-batches 2 --batches 3,5 \\
          --prompts 200,350
      kvoverlap validate --device cuda --model llama-2-7b --batches 8,16 \\
          --prompts 512,2K --gate 5

    Parameters
    ----------
    out
        Folder for the profile, every plan, every measured timeline and the report.
    """
    request = ValidationRequest(
        cases.scenario,
        machine.device,
        cases.model,
        cases.prompts,
        cases.batches,
        cases.gen,
        cases.schedule,
        cases.n_batches,
        cases.kv_bits,
        repeats,
        machine.link,
        machine.seed,
        minutes,
        cases.assume_like,
    )
    request.resolve()
    if out is not None:
        check_out_folder(out)
    with progress("validate") as shown:
        made = measure(request, shown)
    if out is not None:
        made.save(out)
    report = made.report
    unsteady = report.get("unsteady")
    worst_frac = report.get("max_abs_corrected_error_frac", report["max_abs_error_frac"])
    passed = gate is None or (None if unsteady else worst_frac * 100 <= gate)
    status = {True: 0, False: 1, None: 2}[passed]
    if json:
        print_json({**report, "passed": passed})
        return status
    if unsteady:
        say(unsteady)
    show = {
        "decode": print_decode_report,
        "restore": print_restore_report,
        "adapt": print_adaptation_report,
    }
    show[cases.scenario](report)
    if gate is not None:
        verdict = {True: "passed", False: "FAILED", None: "not judged"}[passed]
        say(f"gate {gate:g} %: {verdict}")
    if out is not None:
        say(f"everything is in {out}; look at it with: make dashboard")
    return status
