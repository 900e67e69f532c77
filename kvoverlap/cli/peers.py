"""`kvoverlap peers`: other systems and our plans decode the same job on this machine."""

from dataclasses import dataclass, replace
from typing import Any

from cyclopts import Parameter

from kvoverlap.cli.device_options import PlanDevice
from kvoverlap.cli.options import (
    AssumeLike,
    Batch,
    Gen,
    Json,
    Model,
    Prompt,
    Repeats,
    Seed,
    match_dtype,
)
from kvoverlap.cli.output import note, print_json, progress, say, table
from measure.calibrate import DECODES, DEFAULT_DTYPE, measure_profile
from measure.other_systems import measure_other_systems
from planner.decode.problem import check_workload
from sim.catalog import find_hardware, find_model
from sim.graph.jobs import Workload
from sim.units import counted, ms, percent


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SharedJob:
    """The decode job of every system."""

    batch: Batch
    prompt: Prompt
    gen: Gen = 8


def peers(
    *,
    model: Model,
    job: SharedJob,
    assume_like: AssumeLike = None,
    hardware: str | None = None,
    device: PlanDevice = "auto",
    repeats: Repeats = 5,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Compare other systems with our plans on one job: step time, GB/s, tokens.

    All use the same random weights and prompts, in interleaved repeats:
    transformers with its cache on the device and with its cache offloaded (CUDA
    only), and our plans load-all, kvpr and lp. A system that cannot run here is
    listed with the reason.

    For example:
      kvoverlap peers --model opt-125m --batch 4 --prompt 300
      kvoverlap peers --model opt-6.7b --hardware profile.json --batch 32 \\
          --prompt 1K --gen 16

    Parameters
    ----------
    hardware
        Profile that our plans are made for; by default this machine is profiled first.
    """
    from hw import open_backend, resolve_device

    workload = Workload(job.batch, job.prompt, job.gen)
    machine = None if hardware is None else find_hardware(hardware)
    made_for = "none" if machine is None else machine.device_kind
    kind = resolve_device(made_for if device == "auto" and made_for != "none" else device)
    spec = find_model(model, None, assume_like).dequantised()
    check_workload(spec, workload)
    if machine is None:
        spec = replace(spec, dtype=DEFAULT_DTYPE[kind])
        with progress("profile") as steps:
            machine = measure_profile(kind, [spec], f"this-{kind}", None, steps, DECODES)
    elif kind != made_for:
        note(f"the plans are made for {machine.name}; this run measures the {kind} device")
    spec = match_dtype(spec, machine, chosen=False)
    pace = machine.links.h2d.paced_bytes_per_s
    with progress("peers") as steps, open_backend(kind, pace) as backend:
        report = measure_other_systems(spec, machine, backend, workload, repeats, seed, steps)
    if json:
        print_json(report)
    else:
        print_other_systems(report)


def print_other_systems(report: dict[str, Any]) -> None:
    """Step times, ratios and achieved GB/s of a report, and why a system did not run."""
    n_tokens = report["gen_tokens"] * report["batch_size"]
    rows = []
    for line in report["peers"]:
        if line["not_run"] is not None:
            continue
        rate, bound = line["achieved_bytes_per_s"], line["ratio_to_max_copy_compute"]
        agree = "yes" if line["tokens_equal"] else "NO"
        rows.append(
            (
                line["name"],
                ms(line["median_step_s"]),
                percent(line["spread_frac"]),
                f"{1 / line['ratio_to_load_all']:.2f}",
                "-" if bound is None else f"{bound:.3f}",
                f"{line['copied_bytes_per_step'] / 1e9:,.3f} GB",
                "-" if rate is None else f"{rate / 1e9:,.2f}",
                f"{agree}, {line['tokens_compared']} of {n_tokens}",
            )
        )
    title = (
        f"{report['model']} ({report['dtype']}), other systems: batch {report['batch_size']}, "
        f"prompt {report['prompt_tokens']:,}, {counted(report['gen_tokens'], 'step')}, "
        f"{report['repeats']} interleaved repeats"
    )
    columns = (
        "decoding by",
        "step",
        "spread",
        "times as fast as load-all",
        "x max()",
        "copied a step",
        "GB/s",
        "tokens equal",
    )
    table(title, columns, rows)
    for line in report["peers"]:
        if line["not_run"] is not None:
            say(f"{line['name']}: not run: {line['not_run']}")
    say("x max(): time / max(copy, compute) of its own tasks; tokens equal: to a resident decode,")
    say("over the clear choices before the first near-tie that came out differently")
    if report["head_start_s"] > 0:
        say(
            f"our plans are timed on the device, which starts up to {ms(report['head_start_s'])} "
            "after the host began to launch; others from the host's first call"
        )
    say(f"device: {report['device']}")
