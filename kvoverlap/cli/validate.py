"""`kvoverlap validate`: profile, plan, predict, run the identical plans, compare."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kvoverlap.cli.options import parse_kv_bits
from kvoverlap.cli.output import print_json, progress, say
from kvoverlap.cli.reports import print_adaptation_report, print_report, print_restore_report
from measure.validation import ValidationRequest, check_out_folder
from measure.validation import validate as measure
from sim.errors import BadInput
from sim.units import parse_count, parse_counts


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
    """Measure the prediction errors on this machine: the whole loop in one command.

    Profiles the device, plans a grid of cases that calibration did not sample, simulates each, runs
    the identical graph with real tensors, checks the numbers against a fully resident decode, and
    compares. On the CPU device this takes about three minutes.

    With --scenario restore, the cases are restores from host memory and from a cache file at
    several bandwidths, each by five policies, and checked against computing the whole prompt. With
    --scenario adapt, the link or the device slows down during a restore: an unchanged split, a
    split that is planned again, and claims are compared.

    For example:
      kvoverlap validate
      kvoverlap validate --scenario restore --out runs/restores
      kvoverlap validate --scenario adapt --device cpu
      kvoverlap validate --device cpu --link 0.4GB/s --out runs/slow-link
      kvoverlap validate --schedule column --n-batches 2 --batches 3,5 --prompts 200,350
      kvoverlap validate --device cuda --model llama-2-7b --batches 8,16 --prompts 512,2K --gate 5

    Parameters
    ----------
    scenario
        decode, restore or adapt; --batches, --gen, --schedule, --n-batches and --kv-bits are for
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
        8 or 4: K and V are quantised in host memory; the report has the quantisation error.
    repeats
        Measured repeats of every case, interleaved with the other cases of its shape.
    link
        Pace of the emulated link of the cpu device; by default about half of the cache is then
        recomputed.
    seed
        Seed of weights and prompts.
    gate
        Exit with status 1 if a case's makespan error exceeds this many per cent.
    out
        Folder for the profile, every plan, every measured timeline and the report.
    json
        Print JSON instead of text.
    """
    if gate is not None and not gate >= 0:
        raise BadInput(f"--gate(={gate}) must be a percentage of at least 0.")
    request = ValidationRequest(
        scenario,
        device,
        model,
        None if prompts is None else parse_counts("--prompts", prompts),
        None if batches is None else parse_counts("--batches", batches),
        parse_count("--gen", gen),
        schedule,
        parse_count("--n-batches", n_batches),
        parse_kv_bits(kv_bits),
        repeats,
        link,
        seed,
    )
    request.resolve()
    if out is not None:
        check_out_folder(out)
    with progress("validate") as shown:
        made = measure(request, shown)
    if out is not None:
        made.save(out)
    report = made.report
    passed = gate is None or report["max_abs_error_frac"] * 100 <= gate
    if json:
        print_json({**report, "passed": passed})
        return 0 if passed else 1
    show = {
        "decode": partial(print_report, report),
        "restore": partial(print_restore_report, report),
        "adapt": partial(print_adaptation_report, report),
    }
    show[scenario]()
    if gate is not None:
        say(f"gate {gate:g} %: {'passed' if passed else 'FAILED'}")
    if out is not None:
        say(f"everything is in {out}; look at it with: make dashboard")
    return 0 if passed else 1
