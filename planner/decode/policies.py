"""How each policy splits the past tokens between recomputing and loading.

=============== =============================================================================
lp              optimum of the exact LP, refined in the simulator where costs are not linear
kvpr            closed form of KVPR (arXiv 2411.17089, section 3.2), at most the prompt
load-all        load K and V of every token
recompute-all   recompute K and V of every token from X
fixed:<tokens>  the same number of recomputed tokens in every layer and step, at most a layer's
                window
resident        the whole KV cache stays on the device, as in runtimes without offloading
                (gpt-fast); no offloading policy can be faster
hf-offloaded    transformers' offloaded cache (`other_systems`)
flexgen         FlexGen's staging through pinned memory, and barriers (`other_systems`)
llama.cpp       llama.cpp's `-nkvo`: copy a layer, then attend (`other_systems`)
llama.cpp-ring  the same with the copy of the next layer meanwhile (`other_systems`)
=============== =============================================================================
"""

from __future__ import annotations

from functools import cache
from math import ceil, floor

from planner.decode.other_systems import RUNTIME_SYSTEMS
from sim.errors import BadInput, UnknownName
from sim.graph.jobs import Workload
from sim.machine.profile import HardwareProfile
from sim.model.kv_format import host_row_bytes
from sim.model.spec import ModelSpec

POLICIES = ("lp", "kvpr", "load-all", "recompute-all", "resident", *RUNTIME_SYSTEMS)
BASELINES = ("load-all", "recompute-all", "kvpr")


def check_policy(policy: str) -> None:
    """Refuse an unknown policy, as `fixed_tokens` does."""
    fixed_tokens(policy)


def fixed_tokens(policy: str) -> int | None:
    """The token count of a `fixed:<tokens>` policy, or None for a named policy.

    Raises:
        UnknownName: neither a named policy nor `fixed:` with a whole number.
    """
    if policy in POLICIES:
        return None
    head, _, tail = policy.partition(":")
    if head == "fixed" and tail.isascii() and tail.isdigit():
        return int(tail)
    if head == "fixed":
        raise BadInput(f"policy {policy!r}: fixed:<tokens> needs a whole number, as in fixed:256.")
    raise UnknownName("policy", policy, (*POLICIES, "fixed:<tokens>"))


def baseline_split(
    policy: str, model: ModelSpec, workload: Workload, hardware: HardwareProfile
) -> list[list[int]]:
    """Recomputed tokens `[step][layer]` of a policy that needs no solver."""
    fixed = fixed_tokens(policy)
    split = []
    if fixed is not None and fixed > workload.prompt_tokens:
        raise BadInput(
            f"policy {policy!r}: at most the {workload.prompt_tokens} tokens of the prompt "
            "can be recomputed in every step."
        )

    @cache
    def count(context_tokens: int, layer: int) -> int:
        if fixed is not None:
            return min(fixed, context_tokens)
        if policy in ("load-all", "resident", *RUNTIME_SYSTEMS):
            return 0
        if policy == "recompute-all":
            return context_tokens
        if policy == "kvpr":
            return kvpr_tokens(model, workload, hardware, context_tokens, layer)
        raise BadInput(f"policy {policy!r} needs the LP; it is not a baseline.")

    examples = [model.kind_of.index(kind) for kind in model.kind_of]
    for step in range(workload.gen_tokens):
        past = workload.context_tokens(step)
        contexts = [model.layer_context(layer, past) for layer in range(model.n_layers)]
        split.append(
            [
                count(context, examples[layer]) if model.splits(layer) else 0
                for layer, context in enumerate(contexts)
            ]
        )
    return split


def kvpr_tokens(
    model: ModelSpec,
    workload: Workload,
    hardware: HardwareProfile,
    context_tokens: int,
    layer: int = 0,
) -> int:
    """KVPR's split point: `argmin_l X(l)/v + max(recompute(l)/F, KV(s'-l)/v)`, 0 <= l <= prompt.

    With b sequences, hidden size h and p bytes an element, X(l) = b*l*h*p, KV(n) = 2*b*n*h_kv*p
    (of a quantised cache its own bytes) and recompute(l) = 4*b*l*h*h_kv FLOP (with latent attention
    what a token caches takes the place of 2*h_kv); for MHA this is `l = s'*p*F / (2*h*v + p*F)`. F
    and v are one rate each, as the paper's profiler measures them: the profile's best
    matrix-product and link rates. Source: arXiv 2411.17089, equations 4 to 8, checked against the
    released scheduler's 671 and 499 tokens (s'=1024, b=32, h=5120, 312 TFLOP/s, 32 and 64 GB/s).
    """
    link, flops = hardware.links.h2d.bytes_per_s, hardware.gemm.flops_per_s
    x_s = workload.batch_size * model.x_token_bytes / link
    kv_s = workload.batch_size * host_row_bytes(model, workload.kv_bits, layer) / link
    row_size = model.layers[layer].attention.kv_size
    recompute_s = 2 * workload.batch_size * model.hidden_size * row_size / flops

    def objective(tokens: int) -> float:
        return tokens * x_s + max(tokens * recompute_s, (context_tokens - tokens) * kv_s)

    crossing = context_tokens * kv_s / (recompute_s + kv_s)
    bound = min(workload.prompt_tokens, context_tokens)
    candidates = {0, bound, min(bound, floor(crossing)), min(bound, ceil(crossing))}
    return min(sorted(candidates), key=objective)
