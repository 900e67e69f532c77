"""Which plan `kvoverlap generate` decodes under: a given file's, or one made on the spot."""

from __future__ import annotations

import shlex
from dataclasses import fields, replace
from pathlib import Path

from cli.devices import DEFAULT_DTYPE, measure_profile
from cli.output import note, progress
from cli.plans import match_dtype
from planner import Plan, make_plan
from sim.catalog import find_hardware, is_shipped
from sim.errors import BadInput, Mismatch
from sim.hardware import HardwareProfile
from sim.model_spec import DTYPE_BYTES, ModelSpec
from sim.workload import Workload

AUTO = "auto"
DEFAULT_POLICY = "lp"


def computed_dtype(spec: ModelSpec, kind: str, dtype: str | None) -> ModelSpec:
    """The model in the chosen dtype, or else its own on a GPU and float32 on the cpu device."""
    own = spec.dtype if kind == "cuda" else DEFAULT_DTYPE[kind]
    return replace(spec, dtype=dtype or own)


def plan_on_the_spot(
    spec: ModelSpec,
    job: Workload,
    policy: str | None,
    hardware: str | None,
    device: str,
    dtype: str | None,
    link: str | None,
) -> Plan:
    """Plan a job, for a given machine or for this device, which is then profiled first."""
    from hw import resolve_device

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
        machine = measure_profile(kind, [model], f"this-{kind}", link, restores=False)
    with progress("plan") as tell:
        tell("solving and simulating")
        return make_plan(model, machine, job, policy or DEFAULT_POLICY)


def load_fitting_plan(
    path: Path, directory: Path, spec: ModelSpec, job: Workload, dtype: str | None
) -> Plan:
    """Read a plan and check that it is one for these weights and this job.

    The model's name may differ, so that a plan for a shipped name fits that model's weights.

    Raises:
        Mismatch: names what differs and the command that makes the right plan.
    """
    made = Plan.load(path)
    wanted = replace(spec, name=made.model.name, dtype=dtype or made.model.dtype)
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
        f"{plan_command(path, directory, made, wanted.dtype, job)}"
    )


def _differences(theirs: ModelSpec | Workload, ours: ModelSpec | Workload) -> list[str]:
    """Fields of a plan's part that are not as wanted, in words."""
    pairs = [(one.name, getattr(theirs, one.name), getattr(ours, one.name)) for one in fields(ours)]
    return [f"{name} {value} and not {wanted}" for name, value, wanted in pairs if value != wanted]


def plan_command(path: Path, directory: Path, made: Plan, dtype: str, job: Workload) -> str:
    """The `kvoverlap plan` that makes of `made` a plan for these weights and this job."""
    policy = DEFAULT_POLICY if made.policy == "edited" else made.policy
    arguments = {
        "--model": directory.resolve() / "config.json",
        "--hardware": _hardware_argument(made.hardware),
        "--batch": job.batch_size,
        "--prompt": job.prompt_tokens,
        "--gen": job.gen_tokens,
        "--dtype": dtype,
        "--policy": policy,
        "--schedule": made.schedule,
        "-o": path.with_name(f"generate-{path.name}"),
    }
    words = [str(word) for argument in arguments.items() for word in argument]
    return shlex.join(["kvoverlap", "plan", *words])


def _hardware_argument(hardware: HardwareProfile) -> str:
    """Its name if it is shipped; else the file that `profile` would have given that name."""
    return hardware.name if is_shipped(hardware.name) else f"{hardware.name}.json"


def check_choices(
    plan: str, policy: str | None, hardware: str | None, dtype: str | None, max_new_tokens: int
) -> None:
    """Refuse options that contradict each other before anything slow happens.

    Raises:
        BadInput: names the option to leave out.
    """
    if dtype is not None and dtype not in DTYPE_BYTES:
        raise BadInput(f"--dtype(={dtype}) must be one of {', '.join(DTYPE_BYTES)}.")
    if plan == AUTO:
        return
    for name, value in (("--policy", policy), ("--hardware", hardware)):
        if value is not None:
            raise BadInput(f"{name}(={value}): plan {plan} holds its own; leave {name} out.")
    if max_new_tokens == 1:
        raise BadInput(
            f"--plan(={plan}): --max-new-tokens 1 is the prefill's and nothing is planned; leave "
            "--plan out."
        )
