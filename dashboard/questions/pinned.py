"""A question as one line of text, for the address of a page that compares it with another.

The text has the form of an address's query: `model=opt-13b&hardware=kvpr-a100&batch=32`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, urlencode

from dashboard.controls.traces import read_trace_text, trace_text
from dashboard.questions.decode import Changes, Question
from dashboard.questions.restore import AUTO, RestoreQuestion
from sim.errors import BadInput
from sim.graph.jobs import KV, RestoreRequest, Workload
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec

ModelOf = Callable[[str], ModelSpec]
MachineOf = Callable[[str], HardwareProfile]

MODEL, HARDWARE, POLICY = "model", "hardware", "policy"
YES = "true"

JOB = {
    "batch_size": int,
    "prompt_tokens": int,
    "gen_tokens": int,
    "n_batches": int,
    "kv_bits": int,
}
PLAN = {"schedule": str, "tp": int, "ep": int}
CHANGES = {
    "link": float,
    "flops": float,
    "hbm": float,
    "gpus": int,
    "both_ways": float,
    "device_gib": float,
}
REQUEST = {
    "prompt_tokens": int,
    "cached_tokens": int,
    "tier": str,
    "chunk_tokens": int,
    "io_chunk_tokens": int,
    "gpu_share": float,
    "tier_kv_bits": int,
}
RESTORE = {"link_bytes_per_s": float, "cached_data": str, "tp": int, "ep": int}
"""Fields of the questions and how their texts are read; None is left out."""

NAMES = {
    MODEL: "Model",
    HARDWARE: "Machine",
    "batch_size": "Batch",
    "prompt_tokens": "Prompt (tokens)",
    "gen_tokens": "Decode steps",
    "n_batches": "Batches through each layer",
    "kv_bits": "KV cache in host memory (bits)",
    "schedule": "Schedule",
    "tp": "GPUs that share the model",
    "ep": "GPUs that the experts are divided over",
    "keep": "Keep in GPU memory what fits",
    POLICY: "Policy",
    "link": "Link, times the profile's",
    "flops": "FLOP/s, times the profile's",
    "hbm": "Device memory rate, times the profile's",
    "gpus": "GPUs per switch",
    "both_ways": "Copy rate while both directions copy",
    "device_gib": "Device memory (GiB)",
    "cached_tokens": "Cached tokens",
    "tier": "The prefix is cached",
    "chunk_tokens": "Prefill chunk (tokens)",
    "io_chunk_tokens": "Load chunk (tokens)",
    "gpu_share": "GPU share",
    "tier_kv_bits": "Cached K and V (bits)",
    "link_bytes_per_s": "Rate of the link (bytes/s)",
    "cached_data": "What is cached",
    "availability": "Availability",
    "foresight": "The policies know this in advance",
    "run": "Run",
    "case": "Case",
}


def _fields(made: object, names: Mapping[str, Any]) -> dict[str, str]:
    values = {name: getattr(made, name) for name in names}
    return {name: f"{value}" for name, value in values.items() if value is not None}


def _read(values: Mapping[str, str], kinds: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    return {name: kind(values[name]) for name, kind in kinds.items() if name in values}


def question_text(question: Question, policy: str = "lp") -> str:
    """A decode question and its policy."""
    changed = {
        name: text
        for name, text in _fields(question.changes, CHANGES).items()
        if text != _fields(Changes(), CHANGES).get(name)
    }
    return urlencode(
        {
            MODEL: question.whole.name,
            HARDWARE: question.reference,
            **_fields(question.workload, JOB),
            **_fields(question, PLAN),
            "keep": YES if question.keep else "false",
            POLICY: policy,
            **changed,
        }
    )


def read_question(text: str, model_of: ModelOf, machine_of: MachineOf) -> tuple[Question, str]:
    """The question and policy of a text of `question_text`.

    Args:
        model_of, machine_of: find a model and a machine of the menus by name.

    Raises:
        BadInput: the text holds no such question.
        KvOverlapError: its model or machine is unknown.
    """
    values = _values(text)
    try:
        model, reference = model_of(values[MODEL]), values[HARDWARE]
        made = Question(
            model,
            machine_of(reference),
            reference,
            Workload(**_read(values, JOB)),
            changes=Changes(**_read(values, CHANGES)),
            keep=values["keep"] == YES,
            **_read(values, PLAN),
        )
        return made, values[POLICY]
    except (KeyError, TypeError, ValueError):
        raise _unusable(text) from None


def restore_text(question: RestoreQuestion, policy: str = AUTO) -> str:
    """A restore question and its policy."""
    return urlencode(
        {
            MODEL: question.whole.name,
            HARDWARE: question.reference,
            **_fields(question.request, REQUEST),
            **_fields(question, RESTORE),
            POLICY: policy,
            "availability": trace_text(question.availability),
            "foresight": YES if question.foresight else "false",
        }
    )


def read_restore(
    text: str, model_of: ModelOf, machine_of: MachineOf
) -> tuple[RestoreQuestion, str]:
    """The question and policy of a text of `restore_text`.

    Raises:
        BadInput: the text holds no such question.
        KvOverlapError: its model or machine is unknown.
    """
    values = _values(text)
    try:
        reference = values[HARDWARE]
        made = RestoreQuestion(
            model_of(values[MODEL]),
            machine_of(reference),
            reference,
            RestoreRequest(**_read(values, REQUEST)),
            **{"cached_data": KV, **_read(values, RESTORE)},
        )
        trace = read_trace_text(values.get("availability", ""))
        foresight = values.get("foresight") == YES
        return replace(made, availability=trace, foresight=foresight), values[POLICY]
    except (KeyError, TypeError, ValueError):
        raise _unusable(text) from None


def _values(text: str) -> dict[str, str]:
    return dict(parse_qsl(text, keep_blank_values=True))


def _unusable(text: str) -> BadInput:
    return BadInput(f"the pinned A of this link (={text[:60]}) is no question; unpin it.")


def differences(one: str, other: str) -> list[tuple[str, str, str]]:
    """Name of each input in which two texts differ, with both values."""
    left, right = _values(one), _values(other)
    return [
        (NAMES.get(name, name), left.get(name) or "-", right.get(name) or "-")
        for name in {**left, **right}
        if left.get(name) != right.get(name)
    ]
