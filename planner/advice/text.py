"""An answer in sentences."""

from __future__ import annotations

from math import inf

from planner.advice.advice import Advice, Evidence
from planner.advice.decoding import LOAD, NO_ROOM, RECOMPUTE, SPLIT
from planner.advice.reuse import Reuse
from planner.decode.sensitivity import MIN_SAVING_FRAC, PARTS
from sim.units import ms, percent

WAY = {
    LOAD: "loading alone wins",
    RECOMPUTE: "recomputing alone wins",
    SPLIT: "a split wins",
    NO_ROOM: "the machine has no room",
}

WHAT_RUNTIMES_DO = (
    "No serving runtime streams the cache of a running request step by step or recomputes from X: "
    "the step times above are those of `kvoverlap run` and `generate`. What runtimes do is keep K "
    "and V of finished prompts in host memory and load them for a later request with the same "
    "prefix; the settings below size that."
)


def conclusions(advice: Advice) -> str:
    """The answer as one paragraph."""
    found = [_verdict(advice), _gain(advice), _kept(advice), _pays(advice), _crossover(advice)]
    if advice.slo is not None:
        found.append(_slo(advice))
    if advice.reuse is not None:
        found.append(reuse_words(advice.reuse, advice.plan.workload.prompt_tokens))
    return " ".join(one for one in found if one)


def _verdict(advice: Advice) -> str:
    plan = advice.plan
    recomputed, attended = plan.steps[0].median_layer
    ways = {
        LOAD: "load all of the cache; recomputing a part would save next to nothing",
        RECOMPUTE: "recompute all of the cache from X; loading a part would save next to nothing",
        SPLIT: f"recompute {recomputed:,} of {attended:,} past tokens in the median layer from X "
        "and load the rest",
    }
    way = ways[advice.from_host]
    if advice.fits:
        way = (
            "Keep the KV cache in GPU memory, which has room for all of it: a step takes "
            f"{ms(advice.kept_step_s)}. Where it has to be in host memory, {way}"
        )
    column = ", whose weights come layer by layer," if plan.schedule == "column" else ""
    return f"{way[0].upper()}{way[1:]}. Such a step{column} takes {ms(plan.makespan_s)}."


def _gain(advice: Advice) -> str:
    plan, evidence = advice.plan, advice.evidence
    load_s = plan.baselines["load-all"]
    if advice.gain_range is None:
        sure = no_evidence(evidence, plan.source)
    else:
        low, high = advice.gain_range
        sure = (
            f"Nine of ten ratios of two makespans in {evidence.cases} recorded cases on devices of "
            f"kind {evidence.device_kind!r} were predicted within "
            f"{percent(evidence.ratio_error_frac or 0.0)}: between {low:.2f} and {high:.2f} times."
        )
    if advice.from_host == LOAD:
        return sure if advice.gain_range is None else ""
    budget = ", for which there is no memory" if advice.ways.load_s == inf else ""
    return f"That is {advice.gain:.2f} times as fast as loading all ({ms(load_s)}{budget}). {sure}"


def no_evidence(evidence: Evidence, source: str) -> str:
    """What to say of errors that nobody has measured."""
    kind = f"kind {evidence.device_kind!r}"
    if evidence.device_kind == "none":
        kind = "such a machine, its profile being made from published figures"
    return (
        f"There is no recording of {kind}, so how far off that is has not been measured; the "
        f"weakest of its hardware figures is {source}."
    )


def _kept(advice: Advice) -> str:
    if advice.fits or advice.kept_step_s >= advice.plan.makespan_s:
        return ""
    return f"With what is left of GPU memory put to use (`plan --keep`), {ms(advice.kept_step_s)}."


def _pays(advice: Advice) -> str:
    most = advice.pays_most
    if most.saved_frac < MIN_SAVING_FRAC:
        return "No single part of the machine limits: 10 % more of any one saves next to nothing."
    name, what = PARTS[most.part]
    return (
        f"Of the hardware the {name} pays most: 10 % more {what} saves {percent(most.saved_frac)}."
    )


def _crossover(advice: Advice) -> str:
    *before, last = advice.by_context
    phrases = [f"{WAY[one.verdict]} up to {one.last_tokens:,} tokens" for one in before]
    phrases.append(f"{WAY[last.verdict]} {'beyond' if before else 'at every length'}")
    batch = advice.plan.workload.batch_size
    return (
        f"With batch {batch} and the cache in host memory, {', '.join(phrases)} (looked at from "
        f"{advice.by_context[0].first_tokens:,} to {last.last_tokens:,} tokens)."
    )


def _slo(advice: Advice) -> str:
    slo = advice.slo
    if slo is None:
        return ""
    most = f"the largest batch of such prompts that meets it is {slo.largest_batch:,}"
    if not slo.largest_batch:
        most = "not even one sequence meets it: shorten the prompt or change the machine"
    verb = "meets" if slo.met else "misses"
    return f"A step of {ms(slo.step_s)} {verb} the {ms(slo.slo_s)} asked for; {most}."


def reuse_words(found: Reuse, prompt_tokens: int) -> str:
    """What loading the prompt for a later request is worth."""
    least = found.least_tokens
    crossing = "computing wins at any length"
    if least is not None:
        crossing = f"loading wins from {least:,} tokens on" if least > 1 else "loading always wins"
    guessed = (
        "; the profile has no figures for prefill attention, the products' rate is taken"
        if found.guessed
        else ""
    )
    return (
        f"A later request that begins with the same {prompt_tokens:,} tokens has its first token "
        f"after {ms(found.load_s)} where they are loaded from host memory and "
        f"{ms(found.compute_s)} where they are computed, {ms(found.split_s)} where both ends are "
        f"worked on at once; {crossing}{guessed}."
    )
