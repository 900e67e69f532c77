"""`kvoverlap generate`: a real checkpoint decodes with its KV cache in host memory."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from kvoverlap.cli.device_options import PRINT_ONLY, Link, PlanDevice, TimelineOutput, device_for
from kvoverlap.cli.options import AssumeLike, Count, match_dtype
from kvoverlap.cli.output import note, out, print_json, progress, say
from kvoverlap.cli.tokenizer import TextCodec, check_prompts, read_prompt_ids
from measure.calibrate import DECODES, DEFAULT_DTYPE, link_pace, measure_profile
from planner import DecodePlan, Job, PlanOptions, make_plan
from sim.catalog import find_hardware, is_shipped
from sim.errors import BadInput, Mismatch
from sim.graph.jobs import Workload
from sim.graph.timeline import Timeline
from sim.machine.profile import HardwareProfile
from sim.model.spec import DTYPE_BYTES, ModelSpec
from sim.results.recording import Recording
from sim.units import counted, ms, percent

if TYPE_CHECKING:
    from hw.model.checkpoint import Checkpoint
    from hw.run.generate import Generated

AUTO = "auto"


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """The prompts: one as text, or several as token ids."""

    prompt: Annotated[
        str | None, Parameter(help="Text to continue; needs tokenizer.json in the directory.")
    ] = None
    prompt_ids: Annotated[
        Path | None,
        Parameter(
            help="JSON file with a list of token ids, or with equally long lists that are decoded "
            "as one batch."
        ),
    ] = None

    def read(self, codec: TextCodec) -> list[list[int]]:
        """Token ids of every prompt."""
        if self.prompt is not None and self.prompt_ids is None:
            return [codec.encode(self.prompt)]
        if self.prompt is None and self.prompt_ids is not None:
            return read_prompt_ids(self.prompt_ids)
        raise BadInput("give either --prompt TEXT or --prompt-ids FILE, and not both.")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PlanChoice:
    """The plan file, or how to plan now."""

    plan: Annotated[
        str, Parameter(help="A plan file for this model and job, or auto to plan now.")
    ] = AUTO
    policy: Annotated[
        str | None,
        Parameter(
            help="Policy of --plan auto: lp (default), kvpr, load-all, recompute-all, or "
            "fixed:<tokens>."
        ),
    ] = None
    hardware: Annotated[
        str | None,
        Parameter(
            help="Profile that --plan auto plans for, by name or path. Without it this device is "
            "profiled first."
        ),
    ] = None
    dtype: Annotated[
        str | None,
        Parameter(
            help="float32, float16 or bfloat16. By default the plan's, or the profile's, or the "
            "checkpoint's on cuda and float32 on cpu."
        ),
    ] = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class WeightsOptions:
    """The checkpoint, and how its config is read."""

    weights: Annotated[
        Path,
        Parameter(
            help="Directory with config.json and safetensors files of a family that runs "
            "(docs/models.md). Weights in FP8 or MXFP4 are dequantised as they are loaded."
        ),
    ]
    assume_like: AssumeLike = None


def generate(
    *,
    source: WeightsOptions,
    max_new_tokens: Count,
    prompt: PromptOptions = PromptOptions(),
    choice: PlanChoice = PlanChoice(),
    device: PlanDevice = "auto",
    link: Link = None,
    warm_ups: Annotated[int, Parameter(name="--warm-ups")] = 0,
    result: TimelineOutput = PRINT_ONLY,
) -> None:
    """Continue prompts with a real model, greedily, under a plan.

    The prefill gives the first new token and fills the KV cache in host memory.
    Every further token is a step of the plan, whose simulated graph is executed.
    The graph is static: all steps are decoded and timed, and the printed text ends
    at the model's end-of-text token. Below float32, near-ties between tokens may be
    decided otherwise than by transformers.

    For example:
      kvoverlap generate --weights ./opt-1.3b --prompt "The sea" \\
          --max-new-tokens 32
      kvoverlap generate --weights ./llama --prompt-ids batch.json \\
          --max-new-tokens 64 --hardware profile.json --policy load-all
      kvoverlap generate --weights ./llama --prompt-ids batch.json \\
          --max-new-tokens 64 --plan plan.json --json -o measured.json

    Parameters
    ----------
    max_new_tokens
        New tokens of each prompt, N; the plan has N - 1 steps.
    warm_ups
        Times that all steps are decoded before the measured time.
    """
    weights, n_new, dtype = source.weights, max_new_tokens, choice.dtype
    check_choices(choice, n_new)
    if warm_ups < 0:
        raise BadInput(f"--warm-ups(={warm_ups}) must be at least 0.")
    if n_new == 1 and (result.output is not None or result.trace is not None):
        raise BadInput(
            "--output and --trace need decode steps; --max-new-tokens(=1) must be at least 2."
        )
    from hw import open_backend, resolve_device
    from hw.model.checkpoint import Checkpoint
    from hw.run.generate import DecodeSteps
    from hw.run.generate import generate as decode

    checkpoint = Checkpoint.open(weights, source.assume_like)
    if checkpoint.stored_bits is not None:
        note(
            f"weights are stored in {checkpoint.stored_bits} bits and dequantised as they are "
            "loaded; the plan and the run have them in the dtype that is computed with."
        )
    codec = TextCodec.of(weights)
    prompts = prompt.read(codec)
    check_prompts(prompts, n_new, checkpoint.model)

    if n_new == 1:
        made, kind = None, resolve_device(device)
        spec = computed_dtype(checkpoint.model, kind, dtype)
    else:
        job = Workload(len(prompts), len(prompts[0]), n_new - 1)
        if choice.plan == AUTO:
            made = plan_on_the_spot(checkpoint.model, job, choice, device, link)
        else:
            made = load_fitting_plan(Path(choice.plan), checkpoint, job, dtype)
        spec, kind = made.model, device_for(made.hardware, device)
    steps = None
    if made is not None:
        steps = DecodeSteps(made.simulate(), warm_ups)
    pace = _pace(made, kind, link)
    with progress("generate") as steps_progress, open_backend(kind, pace) as backend:
        generated = decode(checkpoint, spec, prompts, steps, backend, steps_progress)
        environment = backend.environment()
    answer = generation_answer(spec, kind, len(prompts[0]), codec, generated)
    if made is not None and generated.decode is not None:
        recording = Recording("measured", made.hardware, (generated.decode,), environment)
        result.write(recording)
        answer["decode"] = decode_answer(made, generated.decode)
    if result.json:
        print_json(answer)
    else:
        print_generation(answer)


def _pace(made: DecodePlan | None, kind: str, link: str | None) -> float | None:
    """Pace of the emulated link: the one asked for, or else that of the plan's machine."""
    if link is None and made is not None:
        return made.hardware.links.h2d.paced_bytes_per_s
    return link_pace(kind, link)


def generation_answer(
    model: ModelSpec, kind: str, prompt_tokens: int, codec: TextCodec, result: Generated
) -> dict[str, Any]:
    """The generated texts up to their end-of-text tokens, as `--json` prints them."""
    rows = [codec.until_end(row) for row in result.tokens]
    return {
        "model": model.name,
        "dtype": model.dtype,
        "device": kind,
        "batch_size": len(rows),
        "prompt_tokens": prompt_tokens,
        "max_new_tokens": len(result.tokens[0]),
        "token_ids": rows,
        "text": None if codec.tokenizer is None else [codec.decode(row) for row in rows],
        "prefill_s": result.prefill_s,
        "memory": asdict(result.peaks),
        "decode": None,
    }


def decode_answer(made: DecodePlan, timeline: Timeline) -> dict[str, Any]:
    """Times of the decode steps, as `--json` prints them."""
    n_steps = made.workload.gen_tokens
    return {
        "policy": made.policy,
        "hardware": made.hardware.name,
        "graph_sha256": made.graph_sha256,
        "steps": n_steps,
        "recomputed_tokens": made.steps[0].recomputed_tokens,
        "makespan_s": timeline.makespan_s,
        "predicted_makespan_s": made.makespan_s,
        "tokens_per_s": made.workload.batch_size * n_steps / timeline.makespan_s,
        "step_s": timeline.makespan_s / n_steps,
        "busiest_lane_step_s": timeline.busiest_lane_s / n_steps,
        "exposed_copy_s": timeline.exposed_copy_s,
        "overlap_frac": timeline.overlap_frac,
    }


def print_generation(answer: dict[str, Any]) -> None:
    """Text or ids of each prompt, then times and memory."""
    for number, ids in enumerate(answer["token_ids"]):
        text = ids if answer["text"] is None else answer["text"][number]
        label = f"[{number}] " if answer["batch_size"] > 1 else ""
        out.line(f"{label}{text}")
    say(
        f"\n{answer['model']} ({answer['dtype']}) on {answer['device']}: batch "
        f"{answer['batch_size']}, prompt {answer['prompt_tokens']}, {answer['max_new_tokens']} new "
        "tokens"
    )
    say(f"prefill {ms(answer['prefill_s'])}")
    decode, memory = answer["decode"], answer["memory"]
    if decode is not None:
        ratio = decode["step_s"] / decode["busiest_lane_step_s"]
        say(
            f"decode {decode['tokens_per_s']:,.1f} tokens/s: {counted(decode['steps'], 'step')} in "
            f"{ms(decode['makespan_s'])} under policy {decode['policy']}, predicted "
            f"{ms(decode['predicted_makespan_s'])} on {decode['hardware']}"
        )
        say(
            f"step {ms(decode['step_s'])} = {ratio:.3f} x max(copy, compute) of its own tasks; "
            f"exposed copy {ms(decode['exposed_copy_s'])}, overlap "
            f"{percent(decode['overlap_frac'])} of copy time"
        )
    say(
        f"memory: device {_mib(memory['device_bytes'])} ({memory['device_source']}), host "
        f"{_mib(memory['host_bytes'])} (KV cache, activations), process at most "
        f"{_mib(memory['process_bytes'])} (getrusage)"
    )


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:,.1f} MiB"


DEFAULT_POLICY = "lp"


def computed_dtype(spec: ModelSpec, kind: str, dtype: str | None) -> ModelSpec:
    """The model in the chosen dtype, or else its own on a GPU and float32 on the cpu device."""
    own = spec.dtype if kind == "cuda" else DEFAULT_DTYPE[kind]
    return replace(spec, dtype=dtype or own)


def plan_on_the_spot(
    spec: ModelSpec,
    job: Workload,
    choice: PlanChoice,
    device: str,
    link: str | None,
) -> DecodePlan:
    """A plan for the chosen profile, or for this device, which is then profiled first."""
    from hw import resolve_device

    hardware, dtype = choice.hardware, choice.dtype
    if hardware is not None:
        machine = find_hardware(hardware)
        model = match_dtype(replace(spec, dtype=dtype or spec.dtype), machine, dtype is not None)
    else:
        kind = resolve_device(device)
        model = computed_dtype(spec, kind, dtype)
        note(
            f"profiling this {kind} device for {model.name}; `kvoverlap profile -o FILE` keeps a "
            "profile, --hardware FILE uses it"
        )
        with progress("profile") as steps:
            machine = measure_profile(kind, [model], f"this-{kind}", link, steps, DECODES)
    with progress("plan") as steps:
        steps("solving and simulating")
        return make_plan(Job(model, machine, job), PlanOptions(policy=choice.policy))


def load_fitting_plan(
    path: Path, checkpoint: Checkpoint, job: Workload, dtype: str | None
) -> DecodePlan:
    """Read a plan and check that it is one for these weights and this job.

    The model's name may differ, so that a plan for a shipped name fits that model's weights.

    Raises:
        Mismatch: names what differs and the command that makes the right plan.
    """
    made = DecodePlan.load(path)
    if made.model.has_stored_weights:
        raise Mismatch(
            f"--plan {path} is for weights in {made.model.weight_bits or 'fewer'} bits, which are "
            f"dequantised to {made.model.dtype} when they are loaded; plan them with --dequantise, "
            "or leave --plan out."
        )
    wanted = replace(checkpoint.model, name=made.model.name, dtype=dtype or made.model.dtype)
    differing = _differences(made.model, wanted) + _differences(made.workload, job)
    if not differing:
        return made
    what = ", ".join(differing)
    if DTYPE_BYTES[wanted.dtype] != DTYPE_BYTES[made.hardware.dtype]:
        raise Mismatch(
            f"--plan {path} is for {what}, and its machine {made.hardware.name} was profiled in "
            f"{made.hardware.dtype}; leave --dtype out."
        )
    raise Mismatch(
        f"--plan {path} is for {what}; make the right one with: "
        f"{plan_command(path, checkpoint, made, wanted.dtype, job)}"
    )


def _differences(theirs: ModelSpec | Workload, ours: ModelSpec | Workload) -> list[str]:
    """Fields of the plan that differ from the wanted ones, as text."""
    pairs = [(one.name, getattr(theirs, one.name), getattr(ours, one.name)) for one in fields(ours)]
    return [f"{name} {value} and not {wanted}" for name, value, wanted in pairs if value != wanted]


def plan_command(
    path: Path, checkpoint: Checkpoint, made: DecodePlan, dtype: str, job: Workload
) -> str:
    """The `kvoverlap plan` that makes a plan like `made` for these weights and this job."""
    policy = DEFAULT_POLICY if made.policy == "edited" else made.policy
    arguments = {
        "--model": checkpoint.directory.resolve() / "config.json",
        "--hardware": _hardware_argument(made.hardware),
        "--batch": job.batch_size,
        "--prompt": job.prompt_tokens,
        "--gen": job.gen_tokens,
        "--dtype": dtype,
        "--policy": policy,
        "--schedule": made.schedule,
        "-o": path.with_name(f"generate-{path.name}"),
    }
    if checkpoint.model.assumed:
        arguments["--assume-like"] = checkpoint.model.family
    stored = [] if checkpoint.stored_bits is None else ["--dequantise"]
    options = [str(text) for argument in arguments.items() for text in argument]
    return shlex.join(["kvoverlap", "plan", *options, *stored])


def _hardware_argument(hardware: HardwareProfile) -> str:
    """The name of a shipped profile, or else the usual file name of a profile of this name."""
    return hardware.name if is_shipped(hardware.name) else f"{hardware.name}.json"


def check_choices(choice: PlanChoice, max_new_tokens: int) -> None:
    """Refuse options that contradict each other.

    Raises:
        BadInput: names the option to leave out.
    """
    plan, dtype = choice.plan, choice.dtype
    if dtype is not None and dtype not in DTYPE_BYTES:
        raise BadInput(f"--dtype(={dtype}) must be one of {', '.join(DTYPE_BYTES)}.")
    if plan == AUTO:
        return
    for name, value in (("--policy", choice.policy), ("--hardware", choice.hardware)):
        if value is not None:
            raise BadInput(f"{name}(={value}): plan {plan} holds its own; leave {name} out.")
    if max_new_tokens == 1:
        raise BadInput(
            f"--plan(={plan}): the prefill gives the only token of --max-new-tokens 1; leave "
            "--plan out."
        )
