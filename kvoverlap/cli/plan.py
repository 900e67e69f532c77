"""`kvoverlap plan`: what to load and what to recompute."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kvoverlap.cli.output import note, print_json, progress, say, table
from planner import PARTS, Plan, choose_schedule, make_plan
from sim.catalog import find_hardware, find_model
from sim.engine.api import NO_NUMBA, check_engine, fast_engine_installed
from sim.errors import BadInput
from sim.graph.jobs import Workload
from sim.machine.profile import HardwareProfile
from sim.machine.what_if import RATES, in_dtype_of, with_memory, with_rate
from sim.model.spec import ModelSpec
from sim.units import ms, parse_bytes, parse_count, parse_rate, percent

LONG_JOB_LAYERS = 1000
"""Layers over all steps from which planning takes long enough to say so."""

Output = Annotated[Path | None, Parameter(name=["--output", "-o"])]


def plan(
    *,
    model: str,
    hardware: str,
    batch: str,
    prompt: str,
    gen: str = "1",
    policy: str = "lp",
    schedule: str = "row",
    n_batches: str = "1",
    gpus: str = "1",
    keep: Annotated[bool | None, Parameter(negative="--no-keep")] = None,
    gpu_memory: str | None = None,
    host_memory: str | None = None,
    dtype: str | None = None,
    kv_bits: str | None = None,
    set: tuple[str, ...] = (),  # noqa: A002
    engine: str | None = None,
    output: Output = None,
    json: bool = False,
) -> None:
    """Decide what to load and what to recompute, and predict how long decoding takes.

    The answer is the split of every layer and step, its simulated makespan, a lower bound for
    any split, the makespan of every other policy, and the limiting part of the machine.

    Examples:
      kvoverlap plan --model opt-13b --hardware kvpr-a100 --batch 32 --prompt 1K
      kvoverlap plan --model opt-13b --hardware kvpr-a100 --batch 32 --prompt 1K \\
        --set link.bandwidth=64GB/s
      kvoverlap plan --model opt-30b --hardware kvpr-a100 --batch 32 --prompt 512 \\
        --schedule column --n-batches 8
      kvoverlap plan --model opt-13b --hardware kvpr-a100 --batch 32 --prompt 1K --gpu-memory 40GB
      kvoverlap plan --model opt-13b --hardware kvpr-a100 --batch 32 --prompt 1K --kv-bits 4
      kvoverlap plan --model ./config.json --hardware profile.json --batch 8 --prompt 512 \\
        --gen 16 -o plan.json

    Parameters
    ----------
    model
        Name of a shipped model (`kvoverlap models`) or path of a config.json.
    hardware
        Name of a shipped profile, of a device and a link such as h100-sxm+pcie5-x16 (`kvoverlap
        hardware` lists them), or path of a profile.json.
    batch
        Sequences decoded together.
    prompt
        Tokens of each sequence whose KV is in host memory; 4K means 4096.
    gen
        Decode steps.
    policy
        lp, kvpr, load-all, recompute-all, fixed:<tokens>; or, to compare with: resident,
        hf-offloaded, flexgen (of a profile that `kvoverlap profile` measured).
    schedule
        row: all layers of a step, then the next step; weights stay on the device. column: weights
        come from host memory, and --n-batches batches pass through each layer before the next is
        loaded. auto: whichever makes more tokens a second.
    n_batches
        Batches of --batch sequences that share each loaded layer (column).
    gpus
        Identical jobs, one to a GPU, that share the profile's uplinks.
    keep
        Let policy lp keep K, V, X and (column) weights in GPU memory as far as they fit, instead of
        moving them in every step. Without it nothing stays that the schedule moves, as in KVPR;
        --gpu-memory implies it.
    gpu_memory
        What if a GPU had this much memory for the job, such as 24GiB.
    host_memory
        What if the host had this much for it.
    dtype
        float32, float16 or bfloat16; by default the model's, or the profile's if its size differs.
    kv_bits
        8 or 4: keep K and V on the host as codes of so many bits, with a scale and a minimum of
        16 bits to each 64, and dequantise them on the device. A load is then about a half or a
        quarter of its size at float16, so that less is worth recomputing; `run` reports the
        error. By default K and V are in the model's dtype.
    set
        What-if change of the hardware, such as link.bandwidth=64GB/s or compute.flops=600TFLOP/s.
    engine
        simpy, or fast: compiled, the same times within rounding. By default simpy, and fast for a
        long job where it is installed.
    output
        Write the plan here, for simulate and run.
    json
        Print JSON instead of text.
    """
    workload = Workload(
        parse_count("--batch", batch),
        parse_count("--prompt", prompt),
        parse_count("--gen", gen),
        parse_count("--n-batches", n_batches),
        parse_kv_bits(kv_bits),
    )
    n_gpus = parse_count("--gpus", gpus)
    machine = find_hardware(hardware)
    for setting in set:
        machine = apply_setting(machine, setting)
    machine = with_memory(
        machine,
        None if gpu_memory is None else parse_bytes("--gpu-memory", gpu_memory),
        None if host_memory is None else parse_bytes("--host-memory", host_memory),
    )
    spec = match_dtype(find_model(model, dtype), machine, chosen=dtype is not None)
    keeps = gpu_memory is not None if keep is None else keep
    long = workload.gen_tokens * workload.n_batches * spec.n_layers >= LONG_JOB_LAYERS
    if engine is None:
        engine = "fast" if long and fast_engine_installed() else "simpy"
    chosen = installed_engine(engine)
    with progress("plan") as tell:
        if long:
            tell("solving and simulating")
        if schedule == "auto":
            made, reason = choose_schedule(spec, machine, workload, policy, n_gpus, keeps, chosen)
            note(reason)
        else:
            made = make_plan(spec, machine, workload, policy, schedule, n_gpus, keeps, chosen)
    if output is not None:
        made.save(output)
    if json:
        print_json(plan_answer(made))
        return
    print_plan(made)
    if output is not None:
        say(f"\nplan written to {output}; next: kvoverlap simulate {output}")


def parse_kv_bits(text: str | None) -> int | None:
    """Bits of `--kv-bits`, None where it was left out."""
    return None if text is None else parse_count("--kv-bits", text)


def plan_answer(made: Plan) -> dict[str, object]:
    """The plan as `--json` prints it: the file's content with the machine by name."""
    content = made.to_dict()
    content["model"] = made.model.name
    content["hardware"] = made.hardware.name
    return content


def apply_setting(hardware: HardwareProfile, setting: str) -> HardwareProfile:
    """Apply one `--set key=rate` to a profile.

    Raises:
        BadInput: no `=`, an unknown key, or a value that is not a rate.
    """
    key, equals, value = setting.partition("=")
    if not equals or key not in RATES:
        raise BadInput(f"--set {setting}: must be KEY=RATE with KEY one of {', '.join(RATES)}.")
    return with_rate(hardware, key, parse_rate(f"--set {key}", value))


def match_dtype(model: ModelSpec, hardware: HardwareProfile, chosen: bool) -> ModelSpec:
    """The model in the profile's element size, unless the user chose a dtype that it lacks.

    Raises:
        BadInput: the chosen dtype has another size than the profile's figures are for.
    """
    fitting = in_dtype_of(model, hardware, chosen)
    if fitting is not model:
        name = hardware.name
        note(f"using {fitting.dtype}, which profile {name} was made for, not {model.dtype}")
    return fitting


def print_plan(made: Plan) -> None:
    """The plan in words and tables."""
    first = made.steps[0]
    middle, attended = first.median_layer
    say(
        f"{made.model.name} ({made.model.dtype}) on {made.hardware.name}: "
        f"{made.workload.n_batches} x batch {made.workload.batch_size}, prompt "
        f"{made.workload.prompt_tokens}, {made.workload.gen_tokens} step(s), policy {made.policy}, "
        f"schedule {made.schedule}"
        f"{f', {made.gpus} GPUs at once' if made.gpus > 1 else ''}"
        f"{f', KV cache in {bits} bits' if (bits := made.workload.kv_bits) else ''}"
    )
    kept = f"; {words}" if (words := made.residency.words()) else ""
    say(
        f"recompute {middle} of {attended} past tokens in the median layer "
        f"(from {min(first.recomputed_tokens)} to {max(first.recomputed_tokens)}), load the rest"
        f"{kept}"
    )
    say(
        f"predicted {ms(made.makespan_s)} (LP objective {ms(made.lp_objective_s)}, no split can "
        f"beat {ms(made.lower_bound_s)}); {made.tokens_per_s:,.1f} tokens/s; hardware figures: "
        f"{made.source}"
    )
    if made.out_of_range_tasks:
        n_tasks = len(made.lower().tasks)
        say(
            f"{made.out_of_range_tasks} of {n_tasks} tasks lie outside what {made.hardware.name} "
            "was measured for: their times hold the rate of the nearest sample"
        )
    say(made.bottleneck)
    say("")
    base = made.baselines["load-all"]
    rows = [(name, ms(value), f"{value / base:.3f}") for name, value in made.baselines.items()]
    if made.policy not in made.baselines:
        rows.append((made.policy, ms(made.makespan_s), f"{made.makespan_s / base:.3f}"))
    table("Policies", ("policy", "makespan", "x load-all"), rows)
    say("")
    worth = sorted(made.sensitivities, key=lambda one: -one.saved_frac)
    rows = [
        (
            f"{PARTS[one.part][0]}, 10 % more {PARTS[one.part][1]}",
            percent(one.saved_by_duals_frac),
            percent(one.saved_frac),
        )
        for one in worth
    ]
    table("What would help", ("part", "saves, by the duals", "solved again"), rows)


def installed_engine(name: str) -> str:
    """The engine `name`, or SimPy with a note where numba is missing.

    Raises:
        UnknownName: no such engine.
    """
    check_engine(name)
    if name == "fast" and not fast_engine_installed():
        note(f"{NO_NUMBA} Simulating with SimPy.")
        return "simpy"
    return name
