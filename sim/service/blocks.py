"""Bytes of a block of cached tokens."""

from __future__ import annotations

from sim.graph.jobs import RestoreRequest
from sim.model.spec import ModelSpec


def block_bytes(model: ModelSpec, block_tokens: int, kv_bits: int = 16) -> int:
    """Bytes of K and V of a block in all layers and on all GPUs that share the model.

    A layer with a window counts in full, because any block may be the end of a later prefix.

    Args:
        kv_bits: of one value where it is cached; 16 for the model's dtype.
    """
    bits = RestoreRequest(prompt_tokens=2, cached_tokens=1, tier_kv_bits=kv_bits).kv_token_bits(
        model
    )
    return model.tensor_parallel * model.n_layers * block_tokens * bits // 8
