"""`kvoverlap advise`: a recommendation with its reasons and the matching runtime settings."""

from typing import Annotated

from cyclopts import Parameter

from kvoverlap.cli.options import (
    Decimal,
    Engine,
    Json,
    MachineOptions,
    ModelOptions,
    StepJob,
    installed_engine,
)
from kvoverlap.cli.output import note, policy_table, print_json, say, table
from planner.advice import Advice, RuntimeGap, advise, describe
from planner.advice.text import ABOUT_RUNTIMES
from sim.catalog import RECORDINGS
from sim.engine.api import AUTO
from sim.errors import BadInput
from sim.units import ms, percent


def advise_verb(
    *,
    model: ModelOptions,
    machine: MachineOptions,
    job: StepJob,
    slo_ms: Annotated[
        Decimal | None,
        Parameter(
            help="Limit of a decode step in milliseconds. The answer says whether it is met, and "
            "the largest batch that meets it."
        ),
    ] = None,
    engine: Engine = AUTO,
    json: Json = False,
) -> None:
    """Recommend what to do with a KV cache: keep it, load, recompute, or split.

    The first sentence is the recommendation. A paragraph follows: the gain over
    loading everything, the best hardware upgrade, the context lengths at which the
    recommendation for an offloaded cache changes, and whether a step is within
    --slo-ms. Tables follow: every policy's time, and the matching settings of
    serving runtimes.

    For example:
      kvoverlap advise --model opt-13b --hardware kvpr-a100 --batch 32 --prompt 1K
      kvoverlap advise --model llama-3.1-8b --hardware h100-sxm --batch 64 \\
          --prompt 8K --slo-ms 50
      kvoverlap advise --model llama-3.1-8b --hardware h100-sxm+pcie5-x16 \\
          --batch 64 --prompt 8K --gpu-memory 94GB --set link.bandwidth=100GB/s \\
          --kv-bits 8
      kvoverlap advise --model llama-3.1-8b --hardware h100-sxm --batch 1 \\
          --prompt 50000 --runtime vllm
      kvoverlap advise --model ./config.json --hardware profile.json --batch 8 \\
          --prompt 4K --json
    """
    if slo_ms is not None and not 0 < slo_ms < float("inf"):
        raise BadInput(f"--slo-ms(={slo_ms}) must be a time above 0, in milliseconds.")
    hardware = machine.load()
    slo_s = None if slo_ms is None else slo_ms / 1e3
    spec = model.load(hardware)
    found = advise(
        spec,
        hardware,
        job.workload(spec),
        RECORDINGS,
        slo_s,
        installed_engine(engine),
        machine.serving,
    )
    if json:
        print_json(found.to_dict())
        return
    _print(found)


def _print(found: Advice) -> None:
    plan, job = found.plan, found.plan.workload
    say(f"{found.headline}\n")
    say(
        f"{plan.model.name} ({plan.model.dtype}) on {plan.hardware.name}, batch {job.batch_size}, "
        f"prompt {job.prompt_tokens:,}, schedule {plan.schedule}"
        f"{f', KV cache in {job.kv_bits} bits' if job.kv_bits else ''}\n"
    )
    say(describe(found))
    policy_table("\nA decode step", "step", found.step_s_by_policy, "load-all")
    if found.gap is not None:
        _print_gap(found.gap)
        return
    if not found.settings:
        note("no settings for serving runtimes: " + _why_no_settings(found))
        return
    say(f"\n{ABOUT_RUNTIMES}")
    settings = [(one.runtime, f"{one.setting} {one.value}", one.why) for one in found.settings]
    table("\nSettings", ("runtime", "setting", "why"), settings)
    for page in dict.fromkeys(one.page for one in found.settings):
        say(f"documented at {page}")


def _print_gap(gap: RuntimeGap) -> None:
    """What the runtime leaves on the table, and the command line that comes closest."""
    say(f"\n{gap.sentence}")
    say(f"{gap.how}.\n")
    rows = [
        (one.label, ms(one.seconds), f"{gap.own.seconds / one.seconds:.2f}")
        for one in sorted((gap.own, *gap.variants, gap.best), key=lambda one: one.seconds)
    ]
    table(gap.what[:1].upper() + gap.what[1:], ("way", "time", "times as fast"), rows)
    closest = gap.closest
    if not closest.launch:
        note(f"no setting of {gap.runtime} changes this; documented at {closest.page}")
        return
    asks = [f"{gap.host_bytes / 2**30:,.1f} GiB of host memory"]
    if closest.sets_gpu_memory:
        asks.append(
            f"{percent(gap.gpu_frac)} of GPU memory, which then holds {gap.pool_tokens:,} tokens"
        )
    say(f"\nClosest: {closest.label}. It asks for {' and '.join(asks)}:")
    say(f"  {closest.launch}")
    say(f"documented at {closest.page}")


def _why_no_settings(found: Advice) -> str:
    if found.reuse is None:
        return "GPU memory is too small for the weights and one such request."
    if found.plan.hardware.memory.unified:
        return "host memory is GPU memory here, so there is nothing to offload to."
    if found.reuse.least_tokens is None:
        return "recomputing a prefix is faster than loading it, at every length."
    return "the profile's link is an emulated one."
