"""The prefix as a prefill without any restoring leaves it, and how near a restore came to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hw.backends import Backend
from hw.cache import HostCache, prefill
from hw.verify import TOLERANCE, relative_difference
from hw.weights import Weights
from sim.errors import WrongNumbers
from sim.host_rows import HostRows
from sim.model_spec import ModelSpec
from sim.workload import Workload


@dataclass(frozen=True)
class ResidentPrefill:
    """What computing the whole prompt at once gives.

    Args:
        prompt: [S] token ids, on the host.
        cache: K, V and X of all its tokens, in memory that copy lanes read.
        logits: [1, V] behind the last token.
    """

    prompt: Tensor
    cache: HostCache
    logits: Tensor

    @property
    def margin(self) -> float:
        """How far the best logit leads the second, relative to the largest."""
        best, second = self.logits.float().topk(2, dim=-1).values.unbind(-1)
        return float((best - second) / self.logits.float().abs().max())


def resident_prefill(weights: Weights, prompt: Tensor, backend: Backend) -> ResidentPrefill:
    """Compute a prompt, [S] token ids, in one go; every layer keeps all of its tokens."""
    model, n_tokens = weights.model, prompt.shape[0]
    everything = HostRows(0, n_tokens, (0, 0), (0, n_tokens))
    job = Workload(batch_size=1, prompt_tokens=n_tokens, gen_tokens=1)
    cache = HostCache.empty(model, job, backend, rows=[everything] * model.n_layers)
    logits = prefill(weights, prompt[None], cache)
    return ResidentPrefill(prompt, cache, logits)


def verify_restore(
    model: ModelSpec, kv: Sequence[Tensor], logits: Tensor, reference: ResidentPrefill
) -> dict[str, float | bool]:
    """Compare a restore with the reference: K and V of all tokens in all layers, and what follows.

    Below 32 bit the first token counts only where the reference's choice was clear.

    Args:
        kv: for each layer [S, 1, 2, H_kv, D], restored.
        logits: [1, V] behind the last token.

    Raises:
        WrongNumbers: the first token differs, or a tensor differs by more than `TOLERANCE`.
    """
    limit = TOLERANCE[model.dtype]
    first, expected = int(logits.argmax()), int(reference.cache.next_tokens)
    least_margin = 0.0 if model.dtype == "float32" else limit
    kv_difference = max(
        relative_difference(mine, theirs)
        for mine, theirs in zip(kv, reference.cache.kv, strict=True)
    )
    found: dict[str, float | bool] = {
        "tokens_equal": first == expected or reference.margin <= least_margin,
        "logits_difference": relative_difference(logits, reference.logits),
        "kv_difference": kv_difference,
    }
    worst = max(found["logits_difference"], kv_difference)
    if not found["tokens_equal"] or not worst <= limit:
        raise WrongNumbers(
            f"the restore differs from the resident prefill ({found}); the limit is {limit}."
        )
    return found
