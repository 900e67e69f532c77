"""`kvoverlap plan`: choose what to load and what to recompute."""

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from kvoverlap.cli.options import (
    Count,
    Engine,
    Gen,
    Json,
    MachineOptions,
    ModelOptions,
    PlanOutput,
    StepJob,
    installed_engine,
)
from kvoverlap.cli.output import note, policy_table, print_json, progress, say, table
from planner.decode.headline import headline
from planner.decode.make import choose_schedule, plan_decode
from planner.decode.plan import DecodePlan
from planner.job import Job, PlanOptions
from planner.parts import PART_NAMES
from planner.task_times import beyond_calibration, describe_sources
from sim.engine.api import AUTO
from sim.graph.jobs import Workload
from sim.model.spec import ModelSpec
from sim.units import counted, ms, percent

LONG_JOB_LAYERS = 1000
"""Layers over all steps from which planning takes long enough to say so."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DecodeJob(StepJob):
    """Several decode steps of one or several batches."""

    gen: Gen = 1
    n_batches: Annotated[
        Count,
        Parameter(help="Batches of --batch sequences that share each loaded layer (column)."),
    ] = 1

    def workload(self, model: ModelSpec) -> Workload:
        bits = self.host_kv_bits(model)
        return Workload(self.batch, self.prompt, self.gen, self.n_batches, bits)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Planning:
    """How a decode job is planned."""

    policy: Annotated[
        str,
        Parameter(
            help="lp (optimal), kvpr, load-all, recompute-all, or fixed:<tokens>. To compare with: "
            "resident, hf-offloaded, flexgen (needs a profile by `kvoverlap profile`), llama.cpp, "
            "llama.cpp-ring. With --runtime lp is the runtime's own way."
        ),
    ] = "lp"
    schedule: Annotated[
        str,
        Parameter(
            help="row: all layers of a step, then the next step; weights stay on the GPU. column: "
            "weights are loaded from host memory, and --n-batches batches pass through each layer "
            "before the next is loaded. auto: the one with more tokens/s."
        ),
    ] = "row"
    gpus: Annotated[
        Count,
        Parameter(
            help="Identical jobs that share the profile's uplinks, each on one GPU, or on --tp."
        ),
    ] = 1
    keep: Annotated[
        bool | None,
        Parameter(
            negative="--no-keep",
            help="Keep K, V, X and (column) weights in GPU memory as far as they fit; the default "
            "of policy lp. With --no-keep every step moves them all, as in KVPR.",
        ),
    ] = None
    resident_layers: Annotated[
        Count | None,
        Parameter(
            help="With --runtime llama.cpp: layers whose K and V stay in GPU memory, by default "
            "none."
        ),
    ] = None
    engine: Engine = AUTO


def plan(
    *,
    model: ModelOptions,
    machine: MachineOptions,
    job: DecodeJob,
    planning: Planning = Planning(),
    output: PlanOutput = None,
    json: Json = False,
) -> None:
    """Decide what to keep, load and recompute, and predict how long decoding takes.

    The first sentence says what to do with the KV cache and how long a step takes:
    in GPU memory as far as it fits, and offloaded to host memory. The split, its
    simulated makespan, the makespan of every other policy, and the bottleneck
    follow.

    For example:
      kvoverlap plan --model opt-13b --hardware kvpr-a100 --batch 32 --prompt 1K
      kvoverlap plan --model opt-13b --hardware kvpr-a100 --batch 32 --prompt 1K \\
          --no-keep --set link.bandwidth=64GB/s
      kvoverlap plan --model opt-30b --hardware kvpr-a100 --batch 32 --prompt 512 \\
          --schedule column --n-batches 8
      kvoverlap plan --model opt-13b --hardware kvpr-a100 --batch 32 --prompt 1K \\
          --gpu-memory 40GB
      kvoverlap plan --model opt-13b --hardware kvpr-a100 --batch 32 --prompt 1K \\
          --kv-bits 4
      kvoverlap plan --model qwen3-8b --hardware h200 --batch 1 --prompt 9000 \\
          --runtime vllm
      kvoverlap plan --model ./config.json --hardware profile.json --batch 8 \\
          --prompt 512 --gen 16 -o plan.json
    """
    hardware = machine.load()
    spec = model.load(hardware)
    workload = job.workload(spec)
    runtime = machine.serving
    best = planning.policy == "lp" and (runtime is None or runtime.plans_itself)
    keep = best if planning.keep is None else planning.keep
    long = workload.gen_tokens * workload.n_batches * spec.n_layers >= LONG_JOB_LAYERS
    asked = Job(spec, hardware, workload)
    options = PlanOptions(
        policy=planning.policy,
        schedule=planning.schedule,
        gpus=planning.gpus,
        keep=keep,
        engine=installed_engine(planning.engine),
        runtime=runtime,
        resident_layers=planning.resident_layers,
    )
    with progress("plan") as steps:
        if long:
            steps("solving and simulating")
        if planning.schedule == "auto":
            made, reason = choose_schedule(asked, options)
            note(reason)
        else:
            made = plan_decode(asked, options)
    if output is not None:
        made.save(output)
    if json:
        print_json(made.answer())
        return
    print_plan(made)
    if output is not None:
        say(f"\nplan written to {output}; next: kvoverlap simulate {output}")


def print_plan(made: DecodePlan) -> None:
    """The plan as text and tables."""
    job, first = made.workload, made.steps[0]
    middle, attended = first.median_layer
    say(f"{headline(made)}\n")
    if made.runtime is not None:
        say(f"{made.runtime.decode_text}\n")
    say(
        f"{made.model.name} ({made.model.dtype}) on {made.hardware.name}: "
        f"{f'{job.n_batches} x ' if job.n_batches > 1 else ''}batch {job.batch_size}, prompt "
        f"{job.prompt_tokens:,}, {counted(job.gen_tokens, 'step')}, policy {made.policy}, "
        f"schedule {made.schedule}"
        f"{f', tensor parallel on {tp} GPUs' if (tp := made.model.tensor_parallel) > 1 else ''}"
        f"{f', {made.jobs} jobs at once' if made.jobs > 1 else ''}"
        f"{f', KV cache in {job.kv_bits} bits' if job.kv_bits else ''}"
    )
    if not made.fully_resident:
        say(
            f"recompute {middle:,} of {attended:,} past tokens in the median layer (from "
            f"{min(first.recomputed_tokens):,} to {max(first.recomputed_tokens):,}), load the rest"
        )
        if words := made.residency.describe():
            say(words)
    bound = ""
    if made.gpus == 1 and made.lower_bound_s <= made.makespan_s and not made.fully_resident:
        bound = f" (no split can beat {ms(made.lower_bound_s)})"
    say(f"predicted {ms(made.makespan_s)}{bound}; {made.tokens_per_s:,.1f} tokens/s")
    say(describe_sources(made))
    if (outside := beyond_calibration(made)) is not None:
        say(outside)
    say(made.bottleneck)
    say("")
    times = {made.policy: made.makespan_s, **made.baselines}
    if made.offloaded is not None and made.offloaded.makespan_s > times["lp"]:
        times["lp --no-keep"] = made.offloaded.makespan_s
    policy_table("Policies", "makespan", times, "load-all")
    say("")
    worth = sorted(made.sensitivities, key=lambda one: -one.saved_frac)
    rows = [
        (f"{PART_NAMES[one.part][0]}, 10 % more {PART_NAMES[one.part][1]}", percent(one.saved_frac))
        for one in worth
    ]
    table("What would help", ("part", "saves"), rows)
