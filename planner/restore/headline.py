"""The first sentence of a restore's answer: what to compute, what to load, and how soon."""

from __future__ import annotations

from planner.restore.plan import RestorePlan
from sim.graph.jobs import UNCOMPRESSED
from sim.units import ms

SAME_FRAC = 0.005
"""Two ways count as equally fast if their times differ by less than this fraction."""


def restore_headline(plan: RestorePlan) -> str:
    """What the plan does with each part of the prompt, and its time to the first token.

    It is compared with the better of computing and loading everything; a policy that another one
    beats names that one.
    """
    if plan.hardware.memory.unified:
        return plan.reason
    return f"{_what(plan)}: first token after {ms(plan.ttft_s)}{_against(plan)}."


def _what(plan: RestorePlan) -> str:
    request, projected = plan.workload, plan.projected_tokens
    n_tokens, new = request.prompt_tokens, request.prompt_tokens - request.cached_tokens
    if plan.computed_tokens == n_tokens:
        return "Compute the whole prompt"
    bits = request.tier_kv_bits
    in_bits = "" if bits == UNCOMPRESSED else f" in {bits} bits"
    if plan.computed_tokens <= new and not projected:
        by_layer = " layer by layer" if _chosen(plan) == "layer-wise" else ""
        compute = f" and compute the other {new:,}" if new > 1 else ""
        return f"Load every cached token{in_bits}{by_layer}{compute}"
    project = f", project {projected:,} from X" if projected else ""
    load = f" and load the rest{in_bits}" if plan.loaded_tokens else ""
    return f"Compute {plan.computed_tokens:,} of {n_tokens:,} tokens{project}{load}"


def _against(plan: RestorePlan) -> str:
    alone = {"computing": plan.compute_only_s, "loading": plan.load_only_s}
    better = min(alone, key=alone.__getitem__)
    fastest = _fastest(plan)
    if plan.baselines[fastest] < (1 - SAME_FRAC) * plan.ttft_s:
        return f"; {fastest} is the fastest, {ms(plan.baselines[fastest])}"
    times = alone[better] / plan.ttft_s
    if times > 1 + SAME_FRAC:
        return f", {times:.2f} times as fast as {better} alone"
    other = next(name for name in alone if name != better)
    return f"; {other} alone takes {ms(alone[other])}"


def _chosen(plan: RestorePlan) -> str:
    return _fastest(plan) if plan.policy == "auto" else plan.policy


def _fastest(plan: RestorePlan) -> str:
    return min(plan.baselines, key=plan.baselines.__getitem__)
