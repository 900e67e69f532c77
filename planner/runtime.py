"""A job as a serving runtime does it: its machine, its token budget, and what it keeps resident."""

from __future__ import annotations

from dataclasses import replace

from sim.errors import BadInput
from sim.graph.jobs import RestoreRequest, Workload
from sim.machine.profile import HardwareProfile
from sim.machine.runtime import Runtime
from sim.model.spec import ModelSpec


def decode_machine(
    runtime: Runtime, hardware: HardwareProfile, model: ModelSpec, workload: Workload
) -> HardwareProfile:
    """The machine on which a runtime decodes; its host time of all steps comes first."""
    return runtime.drives(hardware, model, runtime.step_s.value * workload.gen_tokens)


def restore_machine(
    runtime: Runtime, hardware: HardwareProfile, model: ModelSpec
) -> HardwareProfile:
    """The machine on which a runtime restores a prefix; its host time comes first."""
    driven = runtime.drives(hardware, model, runtime.request_s.value)
    if runtime.prefill_frac.value < 1:
        driven = driven.with_faster("flops", runtime.prefill_frac.value)
    return driven


def restore_request(runtime: Runtime, request: RestoreRequest) -> RestoreRequest:
    """The request with the token budget of the runtime's steps."""
    budget = int(runtime.step_tokens.value)
    return replace(request, chunk_tokens=budget) if budget else request


def resident_layers(
    runtime: Runtime | None, layers: int | None, model: ModelSpec, workload: Workload
) -> tuple[int, ...] | None:
    """Resident K and V of each layer where a runtime keeps the first `layers` in GPU memory.

    Raises:
        BadInput: the runtime has no such setting, or the model fewer layers.
    """
    if layers is None:
        return None
    if runtime is None or not runtime.resident_layers.value:
        name = "kvoverlap" if runtime is None else runtime.name
        raise BadInput(
            f"resident_layers(={layers}): {name} does not choose whole layers; use it with "
            "--runtime llama.cpp."
        )
    if not 0 <= layers <= model.n_layers:
        raise BadInput(
            f"resident_layers(={layers}) must be from 0 to the {model.n_layers} layers of "
            f"{model.name}."
        )
    prompt = workload.prompt_tokens
    return tuple(prompt if layer < layers else 0 for layer in range(model.n_layers))
