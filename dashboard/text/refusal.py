"""Refusals in the terms of the pages; on the command line they name options."""

from __future__ import annotations

import re

from sim.errors import KvOverlapError, PlannerFailed

WORDS = (
    (r"prompt_tokens \+ gen_tokens \(=(\d+)\)", r"prompt and decode steps together (\1 tokens)"),
    (r"prompt_tokens\(=(\d+)\)", r"the prompt (\1 tokens)"),
    (r"cached_tokens\(=(\d+)\)", r"the cached part (\1 tokens)"),
    (r"kv_bits\(=(\d+)\)", r"a KV cache of \1 bits"),
    (r"n_batches\(=(\d+)\)", r"batches through each layer (\1)"),
    (r"gpus\(=(\d+)\)", r"\1 GPUs"),
    (r"--tp\(=(\d+)\)", r"\1 GPUs that share the model"),
    (r"--runtime\(=([^)]+)\)", r"runtime \1"),
    (r": --tp \d+\)", ")"),
    (r"--schedule (\w+)", r"schedule \1"),
)
"""Arguments of messages, and what the controls call them."""

NO_PLAN = "The planner finds no plan for these settings."


def describe_refusal(error: KvOverlapError) -> str:
    """Why there is no answer, as a sentence without options of the command line.

    A message is the rule, a semicolon and the next step; the pages offer buttons for the next step.
    """
    if isinstance(error, PlannerFailed):
        return NO_PLAN
    text = str(error)
    rule, _, step = text.partition("; ")
    if step and re.search(r"--|\blower\b|\bleave\b|\buse\b|\bchoose\b|\braise\b", step):
        text = f"{rule}."
    text = in_page_terms(text)
    starts = re.match(r"(the|a|batches|prompt|every|policy|runtime) ", text)
    return text[:1].upper() + text[1:] if starts else text


def in_page_terms(text: str) -> str:
    """A text of the planner in which arguments have the names of the controls."""
    for pattern, words in WORDS:
        text = re.sub(pattern, words, text)
    return text
