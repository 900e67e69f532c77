"""The first sentences of an answer: what to do with the KV cache, and the time of a step."""

from __future__ import annotations

from math import inf

from planner.decode.make import LP
from planner.decode.plan import DecodePlan, Offloaded
from planner.decode.split import Residency
from planner.decode.ways import LOAD, PARTLY_RESIDENT, RECOMPUTE, RESIDENT
from sim.graph.memory import weights_beyond
from sim.model.kv_format import host_row_bytes
from sim.units import ms


def headline(plan: DecodePlan) -> str:
    """What to do with the KV cache and how long a step then takes; with several steps, the mean.

    The fastest of the plan's alternatives comes first, whatever the policy of the plan.
    """
    named = ""
    if plan.hardware.memory.unified:
        took = _step(plan, plan.makespan_s)
        return f"{plan.hardware.no_link_note} With the cache where it is: {took}."
    if plan.policy not in (LP, RESIDENT) or plan.offloaded is None:
        named = f"Policy {plan.policy}: {_step(plan, plan.makespan_s)}."
    if plan.offloaded is None:
        return named
    return " ".join(filter(None, (_too_large(plan), named, _answer(plan, plan.offloaded))))


def verdict(plan: DecodePlan) -> str:
    """The headline in a word or two: what is kept, or how an offloaded cache is obtained."""
    if plan.hardware.memory.unified:
        return RESIDENT
    if plan.offloaded is None:
        return plan.policy
    kept, _ = _kept(plan, plan.offloaded)
    if kept == Residency.nothing(plan.model):
        return plan.offloaded.way
    return RESIDENT if kept.kv_tokens == _whole(plan).kv_tokens else PARTLY_RESIDENT


def _too_large(plan: DecodePlan) -> str:
    beyond = weights_beyond(plan.model, plan.hardware.memory.job_device_bytes)
    if beyond is None:
        return ""
    gpus = "one GPU" if plan.model.tensor_parallel == 1 else "these GPUs"
    return f"Does not fit on {gpus}: {beyond}. With the weights loaded layer by layer:"


def _answer(plan: DecodePlan, offloaded: Offloaded) -> str:
    resident, fastest_s = _kept(plan, offloaded)
    if resident == Residency.nothing(plan.model):
        return _offloaded(plan, offloaded)
    how = f"{_keep(plan, resident)}: {_step(plan, fastest_s)}."
    return f"{how} {_if_offloaded(plan, offloaded)}"


def _kept(plan: DecodePlan, offloaded: Offloaded) -> tuple[Residency, float]:
    """What the fastest alternative keeps in GPU memory, and its makespan in seconds."""
    nothing = Residency.nothing(plan.model)
    whole_s, fastest_s = plan.baselines.get(RESIDENT, inf), plan.baselines[LP]
    resident = plan.residency if plan.policy == LP else nothing
    if resident != nothing and fastest_s <= whole_s:
        return resident, fastest_s
    if whole_s < offloaded.makespan_s:
        return _whole(plan), whole_s
    return nothing, offloaded.makespan_s


def _whole(plan: DecodePlan) -> Residency:
    return Residency.whole_cache(plan.model, plan.workload)


def _keep(plan: DecodePlan, resident: Residency) -> str:
    kv, x, prompt = resident.kv_tokens, resident.x_tokens, plan.workload.prompt_tokens
    n_layers, whole, parts = plan.model.n_layers, kv.count(prompt), []
    if whole == n_layers:
        parts.append("the cache")
    elif whole and set(kv) == {0, prompt}:
        parts.append(f"the cache of {whole} of {n_layers} layers")
    elif any(kv):
        parts.append(f"{sum(kv) / n_layers:,.0f} of {prompt:,} tokens of each layer")
    if any(x):
        parts.append(f"X of {sum(x) / n_layers:,.0f}{' more' if any(kv) else ' tokens'}")
    if weights := len(resident.weight_layers):
        parts.append(f"the weights of {weights} of {n_layers} layers")
    kept = f"Keep {' and '.join(parts)} in GPU memory"
    recomputed, _ = plan.steps[0].median_layer
    if whole == n_layers:
        return kept
    if recomputed and plan.policy == LP:
        return f"{kept}, recompute {recomputed:,} and load the rest"
    return f"{kept} and load the rest"


def _if_offloaded(plan: DecodePlan, offloaded: Offloaded) -> str:
    took = ms(offloaded.makespan_s / plan.workload.gen_tokens)
    if offloaded.way == LOAD:
        return f"If it must be offloaded: load everything, {took}. {_no_recomputing(plan)}"
    how = f"{offloaded.recomputed_tokens:,} of {offloaded.attended_tokens:,} tokens"
    how += _windowed(plan, offloaded)
    if offloaded.way == RECOMPUTE:
        how = "every token from X"
    return f"If it must be offloaded: {took}, recomputing {how}."


def _offloaded(plan: DecodePlan, offloaded: Offloaded) -> str:
    took = _step(plan, offloaded.makespan_s)
    if offloaded.way == LOAD:
        return f"Load everything: {took}. {_no_recomputing(plan)}"
    if offloaded.way == RECOMPUTE:
        return f"Recompute every token from X: {took}. Loading a part saves less than 1 %."
    return (
        f"Recompute {offloaded.recomputed_tokens:,} of {offloaded.attended_tokens:,} tokens"
        f"{_windowed(plan, offloaded)} from X and load the rest: {took}."
    )


def _windowed(plan: DecodePlan, offloaded: Offloaded) -> str:
    """Which layers are meant, where others attend to more tokens and recompute none."""
    most = max(plan.steps[0].layer_tokens)
    return " of layers with a window" if offloaded.attended_tokens < most else ""


def _no_recomputing(plan: DecodePlan) -> str:
    model, bits = plan.model, plan.workload.kv_bits
    layers = [layer for layer in range(model.n_layers) if model.splits(layer)]
    if not layers:
        return "No layer reads rows that it could recompute from X."
    kv_bytes = max(host_row_bytes(model, bits, layer) for layer in layers)
    times = model.x_token_bytes / kv_bytes
    if times <= 1:
        return "Recomputing a part saves less than 1 %."
    size = "twice" if times == 2 else f"{times:.3g} times"
    on_each = " on each GPU" if plan.model.tensor_parallel > 1 else ""
    return (
        f"Recomputing does not pay here: this model's X is {size} the size of its K and V{on_each}."
    )


def _step(plan: DecodePlan, seconds: float) -> str:
    return f"{ms(seconds / plan.workload.gen_tokens)} a step"
