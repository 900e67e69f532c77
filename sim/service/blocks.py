"""Bytes of a block of cached tokens."""

from __future__ import annotations

from sim.graph.jobs import RestoreRequest
from sim.model.spec import ModelSpec


def block_bytes(
    model: ModelSpec, block_tokens: int, kv_bits: int = 16, with_x: bool = False
) -> int:
    """Bytes of K and V of a block in all layers and on all GPUs that share the model.

    A layer with a window counts in full, and a state, and index keys, with every block, because any
    block may be the end of a later prefix.

    Args:
        kv_bits: of one value where it is cached; 16 for the model's dtype.
        with_x: X of the layers that can project K and V from it is stored, too.
    """
    request = RestoreRequest(
        prompt_tokens=block_tokens + 1, cached_tokens=block_tokens, tier_kv_bits=kv_bits
    )
    layers = range(model.n_layers)
    bits = sum(request.layer_kv_bits(model, layer, 0, block_tokens) for layer in layers)
    others = model.index_bytes(block_tokens) + model.state_bytes
    if with_x:
        projecting = sum(model.projects(layer) for layer in layers)
        others += projecting * block_tokens * model.x_token_bytes
    return model.tensor_parallel * (bits // 8 + others)
