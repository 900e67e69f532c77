"""`kvoverlap profile` and `run`: the verbs that measure a device."""

from dataclasses import asdict
from pathlib import Path

from kvoverlap.cli.device_options import (
    PRINT_ONLY,
    Device,
    Link,
    PlanDevice,
    TimelineOutput,
    device_for,
)
from kvoverlap.cli.options import AssumeLike, Json, NewFile, PlanFile, Repeats, Seed
from kvoverlap.cli.output import print_json, progress, say, table
from kvoverlap.cli.reports import report_timeline, say_restore
from kvoverlap.cli.table_errors import print_table_errors
from measure.calibrate import measure_profile, specs_to_profile
from measure.run import run as measure
from planner import Plan
from sim.errors import BadInput
from sim.lanes import HOST
from sim.machine.availability import Availability
from sim.machine.cross_validation import leave_one_out
from sim.machine.profile import HardwareProfile
from sim.units import percent


def profile(
    *,
    output: NewFile,
    device: Device = "auto",
    model: tuple[str, ...] = (),
    assume_like: AssumeLike = None,
    link: Link = None,
    check: bool = False,
    json: Json = False,
) -> None:
    """Measure this machine and write a hardware profile to plan with.

    It measures matmuls over rows, decode attention over batch and context,
    element-wise kernels, copies in both directions and within the host over size,
    how lanes slow each other down, launch and hand-over times, chunked prefill, and
    direct reads of the disk that holds temporary files. A value is the median of
    its samples; that of a kernel on a CPU is the least, because others share its
    core. The file holds every sample. On the CPU device this takes one to two
    minutes.

    For example:
      kvoverlap profile -o profile.json
      kvoverlap profile --device cpu --link 0.4GB/s --check -o profile.json
      kvoverlap profile --device cuda --model opt-13b --model llama-3.1-8b \\
          -o profile.json

    Parameters
    ----------
    model
        Model whose matrix shapes are measured; repeat for several. Default: opt-125m on cpu,
        opt-1.3b, 6.7b, 13b and llama-3.1-8b on cuda, as far as they fit.
    check
        Also print the leave-one-out errors: each point predicted from its neighbours.
    """
    from hw import resolve_device

    kind = resolve_device(device)
    specs = specs_to_profile(kind, model, assume_like)
    with progress("profile") as steps:
        made = measure_profile(kind, specs, output.name.partition(".")[0], link, steps)
    made.save(output)
    errors = leave_one_out(made) if check else ()
    if json:
        names = [spec.name for spec in specs]
        checks = [asdict(kind) for kind in errors]
        print_json({**made.to_dict(), "models": names, "checks": checks})
        return
    print_profile(made)
    for spec in specs:
        if spec.assumed:
            say(f"shapes of {spec.name}")
    if check:
        say("")
        print_table_errors(errors)
    say(f"\nprofile written to {output}; next: kvoverlap plan --hardware {output} ...")


def print_profile(made: HardwareProfile) -> None:
    """The profile's main figures."""
    pace = made.links.h2d.paced_bytes_per_s
    rows = [
        ("matrix products, best", f"{made.gemm.flops_per_s / 1e12:.3g} TFLOP/s"),
        ("attention, best", f"{made.attention.bytes_per_s / 1e9:.3g} GB/s"),
        ("h2d link", f"{made.links.h2d.bytes_per_s / 1e9:.3g} GB/s"),
        ("d2h link", f"{made.links.d2h.bytes_per_s / 1e9:.3g} GB/s"),
        ("host copies, pageable to pinned", f"{made.links.of(HOST).bytes_per_s / 1e9:.3g} GB/s"),
        ("lane gap", f"{made.dispatch.gap_s * 1e6:.1f} us"),
        ("hand-over between lanes", f"{made.dispatch.handover_s * 1e6:.1f} us"),
    ]
    if made.restore is not None and made.restore.prefill is not None:
        rate = made.restore.prefill.attention_flops_per_s.value
        rows.append(("attention of prefill, best", f"{rate / 1e12:.3g} TFLOP/s"))
        rows += [
            (f"{tier.lane}, direct reads", f"{tier.bytes_per_s.value / 1e9:.3g} GB/s")
            for tier in made.restore.tiers
        ]
    rows += [
        (f"{entry.lane} while {entry.while_busy} works", percent(entry.rate))
        for entry in made.interference
    ]
    table(f"{made.name}: {made.description}, {made.dtype}", ("figure", "measured"), rows)
    if pace is not None:
        say(f"the link is emulated: real copies, paced to {pace / 1e9:g} GB/s")


def run(
    plan: PlanFile,
    *,
    device: PlanDevice = "auto",
    repeats: Repeats = 5,
    seed: Seed = 0,
    result: TimelineOutput = PRINT_ONLY,
    availability: Path | None = None,
    cache: Path | None = None,
) -> None:
    """Run a plan on a device with real tensors and measure when each task ran.

    The model's architecture is real, its weights and prompts are random from
    --seed. The numbers are checked against a decode with the whole cache resident,
    or a restore's against computing the whole prompt: the run fails if they differ.

    For example:
      kvoverlap run plan.json -o measured.json
      kvoverlap run restore.json --availability drop.csv
      kvoverlap run restore.json --cache prefix.kv
      kvoverlap run plan.json --device cuda --repeats 9 \\
          --trace measured.trace.json.gz

    Parameters
    ----------
    availability
        For restores: a trace as for `kvoverlap restore`, by default the plan's. The cpu device
        follows it with paced links and with a load that competes for the computing core.
    cache
        For restores from ssd: the cache file, which is written if it does not exist. Damaged
        chunks of an existing file are computed instead.
    """
    loaded = Plan.load(plan)
    kind = device_for(loaded.hardware, device)
    for name, value in (("availability", availability), ("cache", cache)):
        if value is not None and loaded.tier is None:
            raise BadInput(f"--{name}(={value}) is for restores; {plan} is of a decode.")
    if cache is not None and loaded.tier != "ssd":
        raise BadInput(f"--cache(={cache}) is for tier ssd, not {loaded.tier}.")
    traced = None if availability is None else Availability.load(availability)
    with progress("run") as steps:
        recording = measure(loaded, kind, repeats, seed, steps, traced, cache)
    result.write(recording)
    did = loaded.token_counts(recording.typical)
    more = {"ttft_s": recording.makespan_s, **did} if did else {}
    report_timeline("measured", recording, result.json, more)
    if did and not result.json:
        say("")
        say_restore(did, recording.checks, str(recording.environment["tier"]))
