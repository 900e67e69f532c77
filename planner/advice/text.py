"""Text of an advice."""

from __future__ import annotations

from math import ceil, inf

from planner.advice.advice import Advice, Evidence
from planner.advice.reuse import Reuse
from planner.advice.runtime_settings import VLLM_MEMORY_FRAC
from planner.decode.sensitivity import MIN_SAVING_FRAC
from planner.decode.ways import LOAD, NO_ROOM, RECOMPUTE, RESIDENT, SPLIT
from planner.parts import PART_NAMES
from planner.task_times import describe_sources
from sim.units import ms, percent

WAY = {
    LOAD: "loading everything is fastest",
    RECOMPUTE: "recomputing everything is fastest",
    SPLIT: "a split is fastest",
    NO_ROOM: "the machine has too little memory",
}

ABOUT_RUNTIMES = (
    "No serving runtime loads the cache of a running request in every step or recomputes it from "
    "X: the step times above are those of `kvoverlap run` and `generate`. Runtimes keep K and V of "
    "finished prompts in host memory and load them for a later request with the same prefix. The "
    "settings below size that cache."
)


def describe(advice: Advice) -> str:
    """The advice as one paragraph."""
    return " ".join(reasons(advice))


def reasons(advice: Advice) -> list[str]:
    """Reasons of the advice and what would help, a sentence or two each."""
    unified = advice.plan.hardware.memory.unified
    found = [_memory_share(advice), _gain(advice), _upgrade(advice)]
    if not unified:
        found.append(_crossover(advice))
    if advice.slo is not None:
        found.append(_slo(advice))
    if advice.reuse is not None:
        tokens = advice.plan.workload.prompt_tokens
        found.append((_reuse_in_place if unified else describe_reuse)(advice.reuse, tokens))
    return [one for one in found if one]


def _memory_share(advice: Advice) -> str:
    """The setting without which vLLM's part of GPU memory is too small for a resident cache."""
    needed = advice.device_frac
    if advice.verdict != RESIDENT or needed <= VLLM_MEMORY_FRAC:
        return ""
    return (
        f"Weights and cache take {percent(needed)} of GPU memory and vLLM uses "
        f"{percent(VLLM_MEMORY_FRAC)} by default: set --gpu-memory-utilization "
        f"{ceil(100 * needed) / 100:.2f}."
    )


def _gain(advice: Advice) -> str:
    plan, evidence = advice.plan, advice.evidence
    load_s = plan.baselines["load-all"]
    if advice.gain_range is None:
        certainty = no_evidence(evidence, describe_sources(plan))
    else:
        low, high = advice.gain_range
        certainty = (
            f"In {evidence.cases} recorded cases on devices of kind {evidence.device_kind!r}, 90 % "
            "of the ratios of two makespans were predicted within "
            f"{percent(evidence.ratio_error_frac or 0.0)}: between {low:.2f} and {high:.2f} times."
        )
    if advice.from_host == LOAD:
        return certainty if advice.gain_range is None else ""
    budget = ", which does not fit the memory" if advice.ways.load_s == inf else ""
    loading = f"loading everything ({ms(load_s)}{budget})"
    return (
        f"With the cache in host memory, the best split ({ms(plan.makespan_s)}) is "
        f"{advice.gain:.2f} times as fast as {loading}. {certainty}"
    )


def no_evidence(evidence: Evidence, sources: str) -> str:
    """The sentence for a kind of device without recordings."""
    kind = f"kind {evidence.device_kind!r}"
    if evidence.device_kind == "none":
        kind = "such a machine, whose profile has published values"
    return (
        f"There is no recording of {kind}, so the error of this prediction is unknown; {sources}."
    )


def _upgrade(advice: Advice) -> str:
    upgrade = advice.best_upgrade
    if upgrade.saved_frac < MIN_SAVING_FRAC:
        return "No single part of the machine limits: 10 % more of any one saves less than 0.05 %."
    name, what = PART_NAMES[upgrade.part]
    where = "The" if advice.plan.hardware.memory.unified else "For a cache in host memory the"
    return (
        f"{where} best upgrade is the {name}: 10 % more {what} saves {percent(upgrade.saved_frac)}."
    )


def _crossover(advice: Advice) -> str:
    *before, last = advice.by_context
    phrases = [f"{WAY[one.verdict]} up to {one.last_tokens:,} tokens" for one in before]
    phrases.append(f"{WAY[last.verdict]} {'beyond' if before else 'at every length'}")
    batch = advice.plan.workload.batch_size
    return (
        f"With batch {batch} and the cache in host memory, {', '.join(phrases)} (searched from "
        f"{advice.by_context[0].first_tokens:,} to {last.last_tokens:,} tokens)."
    )


def _slo(advice: Advice) -> str:
    slo = advice.slo
    if slo is None:
        return ""
    largest = f"the largest batch of such prompts that meets it is {slo.largest_batch:,}"
    if not slo.largest_batch:
        largest = "not even one sequence meets it: shorten the prompt or change the machine"
    verb = "meets" if slo.met else "misses"
    return f"A step of {ms(slo.step_s)} {verb} the limit of {ms(slo.slo_s)}; {largest}."


def _reuse_in_place(found: Reuse, prompt_tokens: int) -> str:
    return (
        f"A later request that begins with the same {prompt_tokens:,} tokens has its first token "
        f"after {ms(found.load_s)} if their K and V were kept, and {ms(found.compute_s)} if they "
        "are computed again."
    )


def describe_reuse(found: Reuse, prompt_tokens: int) -> str:
    """The sentence on a later request with the same prompt."""
    least = found.least_tokens
    faster = "computing is faster at every length"
    if least is not None:
        faster = (
            f"loading is faster from {least:,} tokens" if least > 1 else "loading is always faster"
        )
    guessed = (
        "; the profile has no times of prefill attention, so the matmul rate is used"
        if found.guessed
        else ""
    )
    return (
        f"A later request that begins with the same {prompt_tokens:,} tokens has its first token "
        f"after {ms(found.load_s)} if they are loaded from host memory, {ms(found.compute_s)} if "
        f"they are computed, and {ms(found.split_s)} if the first are computed while the others "
        f"are loaded; {faster}{guessed}."
    )
