"""Compare the numbers of a run with those of a resident reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hw.cache.reference import ResidentDecode, ResidentPrefill
from hw.model.quantise import nearest_original
from sim.errors import WrongNumbers
from sim.graph.tasks import TaskGraph
from sim.model.kv_format import QuantisedRow
from sim.model.spec import ModelSpec

TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest difference from the resident decode, relative to its largest magnitude."""

CHUNK_ELEMENTS = 2**26
"""Elements compared at a time, which bounds the memory of a comparison."""


def clear_margin(dtype: str) -> float:
    """Margin above which rounding in `dtype` cannot change the choice of a token."""
    return 0.0 if dtype == "float32" else TOLERANCE[dtype]


@dataclass(frozen=True)
class RunNumbers:
    """Results of a run; lists have one entry for each batch.

    Rows of the cache are in host memory, slots on the device.

    Args:
        row: format of a quantised host cache, or None.
        tokens: [steps, B], predicted by each step.
        logits: [B, V] of the last step.
        appended: for each layer K and V of the new tokens, [steps, B, 2, H_kv, D], or their rows.
        in_slots: [S, B, 2, H_kv, D] that the last attention of each slot read, by (batch, layer).
        prompt: K and V, in the last layer, of prompt tokens that the last step attends to.
    """

    graph: TaskGraph
    row: QuantisedRow | None
    tokens: list[Tensor]
    logits: list[Tensor]
    appended: list[list[Tensor]]
    in_slots: dict[tuple[int, int], Tensor]
    prompt: list[Tensor]


def verify(
    run: RunNumbers, references: Sequence[ResidentDecode], unquantised: Sequence[ResidentDecode]
) -> dict[str, float | bool]:
    """Compare a run with the resident decode of each batch.

    Compared are the greedy tokens (below 32 bit only clear choices), the last logits, the K and V
    appended to the cache, and all K and V, loaded and recomputed, that the slots still hold.

    Args:
        references: decodes that read the same rows as the run, quantised or not.
        unquantised: decodes that read no quantised rows; the distance from them is reported.

    Raises:
        WrongNumbers: tokens differ, or a tensor differs by more than `TOLERANCE`.
    """
    dtype = run.graph.model.dtype
    limit = TOLERANCE[dtype]
    tokens_equal = not any(
        bool(((mine != theirs.tokens) & (theirs.margins > clear_margin(dtype))).any())
        for mine, theirs in zip(run.tokens, references, strict=True)
    )
    result: dict[str, float | bool] = {
        "tokens_equal": tokens_equal,
        "logits_difference": _logits_difference(run, references),
        "kv_appended_difference": max(
            _stored_difference(run, mine, theirs)
            for batch, reference in zip(run.appended, references, strict=True)
            for mine, theirs in zip(batch, reference.new_kv, strict=True)
        ),
        "kv_in_slots_difference": _slots_difference(run, references),
    }
    if run.row is not None:
        result["kv_prompt_difference"] = _prompt_difference(run, unquantised)
    worst = max(value for value in result.values() if not isinstance(value, bool))
    if not tokens_equal or not worst <= limit:
        raise WrongNumbers(
            f"the run of graph {run.graph.sha256[:12]} differs from the resident decode "
            f"({result}); the limit is {limit}."
        )
    if run.row is not None:
        result |= _quantisation_errors(run, unquantised)
    return result


def _slots_difference(run: RunNumbers, references: Sequence[ResidentDecode]) -> float:
    return max(
        relative_difference(kv, references[batch].last_kv[layer])
        for (batch, layer), kv in run.in_slots.items()
        if layer in references[batch].last_kv
    )


def _logits_difference(run: RunNumbers, references: Sequence[ResidentDecode]) -> float:
    return max(
        relative_difference(mine, theirs.logits)
        for mine, theirs in zip(run.logits, references, strict=True)
    )


def _stored_difference(run: RunNumbers, stored: Tensor, kv: Tensor) -> float:
    """Difference of stored K and V from the reference; if quantised, beyond their rounding."""
    if stored.dtype == torch.uint8 and run.row is not None:
        stored = nearest_original(kv, stored.to(kv.device), run.row)
    return relative_difference(stored, kv)


def _prompt_difference(run: RunNumbers, unquantised: Sequence[ResidentDecode]) -> float:
    """Difference of the last layer's prompt rows from K and V at full precision."""
    last = run.graph.model.n_layers - 1
    return max(
        _stored_difference(run, rows, reference.last_kv[last][: rows.shape[0]])
        for rows, reference in zip(run.prompt, unquantised, strict=True)
    )


def _quantisation_errors(
    run: RunNumbers, unquantised: Sequence[ResidentDecode]
) -> dict[str, float | bool]:
    """Errors due to quantisation, relative to the largest magnitude."""
    tokens = zip(run.tokens, unquantised, strict=True)
    return {
        "tokens_equal_unquantised": all(mine.equal(ours.tokens) for mine, ours in tokens),
        "kv_quantisation_error": _slots_difference(run, unquantised),
        "logits_quantisation_error": _logits_difference(run, unquantised),
    }


def relative_difference(mine: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference over the largest magnitude of `theirs`; infinite for NaN.

    If either tensor is on a GPU, the GPU compares them, `CHUNK_ELEMENTS` at a time.
    """
    if not theirs.numel():
        return 0.0
    device = theirs.device if mine.device.type == "cpu" else mine.device
    rows = max(1, CHUNK_ELEMENTS * theirs.shape[0] // theirs.numel())
    differences, magnitudes = [], []
    for chunk, expected in zip(mine.split(rows), theirs.split(rows), strict=True):
        expected = expected.to(device).float()
        differences.append((chunk.to(device).float() - expected).abs().max())
        magnitudes.append(expected.abs().max())
    worst = torch.stack(differences).max() / torch.stack(magnitudes).max()  # NaN stays NaN
    difference = float(worst)
    return math.inf if math.isnan(difference) else difference


def verify_restore(
    model: ModelSpec,
    kv: Sequence[Tensor],
    logits: Tensor,
    reference: ResidentPrefill,
    cached_tokens: int,
) -> dict[str, float | bool]:
    """Compare a restore with the reference: K and V, logits, first token.

    Of a layer with a window only the K and V count that new tokens attend to, and theirs. Below 32
    bit the first token counts only if the reference's choice was clear.

    Args:
        kv: for each layer [S, 1, 2, H_kv, D], restored.
        logits: [1, V] after the last token.
        cached_tokens: number of tokens before the new ones.

    Raises:
        WrongNumbers: the first token differs, or a tensor differs by more than `TOLERANCE`.
    """
    limit = TOLERANCE[model.dtype]
    first, expected = int(logits.argmax()), int(reference.cache.next_tokens)
    kv_difference = max(
        relative_difference(mine[first_row:], theirs[first_row:])
        for layer, (mine, theirs) in enumerate(zip(kv, reference.cache.kv, strict=True))
        for first_row in [model.first_token(layer, cached_tokens)]
    )
    found: dict[str, float | bool] = {
        "tokens_equal": first == expected or reference.margin <= clear_margin(model.dtype),
        "logits_difference": relative_difference(logits, reference.logits),
        "kv_difference": kv_difference,
    }
    worst = max(found["logits_difference"], kv_difference)
    if not found["tokens_equal"] or not worst <= limit:
        raise WrongNumbers(
            f"the restore differs from the resident prefill ({found}); the limit is {limit}."
        )
    return found
