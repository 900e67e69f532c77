"""Parts of a description that many families share, in all spellings of their fields."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sim.model.attention import (
    FullAttention,
    LatentAttention,
    MultiHeadLatent,
    SparseIndex,
    check_sizes,
)
from sim.model.layers import AnyAttention, Dense, Experts, Layer
from sim.model.readers.fields import CHUNKED, FULL, SLIDING, Config

HIDDEN = "hidden_size"


def heads(config: Config, **changes: Any) -> FullAttention:
    """K and V of heads, as most families spell their sizes."""
    n_heads = config.size("num_attention_heads", "n_head")
    head_dim = config.optional_size("head_dim", "attention_head_dim")
    return FullAttention(
        n_heads=n_heads,
        n_kv_heads=config.optional_size("num_key_value_heads", "num_kv_heads") or n_heads,
        head_dim=head_dim or max(1, config.size(HIDDEN) // n_heads),
        **changes,
    )


def mlp(config: Config, gated: bool = True) -> Dense:
    return Dense(config.size("intermediate_size"), gated)


def experts(config: Config, *widths: str, gated: bool = True) -> Experts:
    """Routed and shared experts; `widths` are the spellings of the width of one."""
    width = config.size(*widths, "moe_intermediate_size")
    n_shared = config.size("n_shared_experts", "num_shared_experts", default=0, least=0)
    spelled = ("moe_shared_expert_intermediate_size", "shared_expert_intermediate_size")
    one_shared = config.optional_size(*spelled, "share_expert_dim", "shared_intermediate_size")
    if one_shared is not None:
        n_shared = max(1, n_shared)
    active = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "top_k_experts")
    return Experts(
        n_routed=config.size("n_routed_experts", "num_local_experts", "num_experts"),
        n_active=config.size(*active),
        width=width,
        shared_width=n_shared * (one_shared or width),
        gated=gated,
        latent=config.optional_size("moe_latent_size", "routed_expert_hidden_size"),
    )


def sparse_layers(config: Config) -> list[bool]:
    """Which layers have experts, in every spelling; all of them where nothing is said."""
    n_layers = config.n_layers
    kinds = config.pattern("mlp_layer_types", of=("dense", "sparse"))
    freq, first = config.get("moe_layer_freq"), config.get("first_k_dense_replace")
    if kinds is not None:
        return [kind == "sparse" for kind in kinds]
    if isinstance(freq, list):
        return [bool(one) for one in config.pattern("moe_layer_freq", of=(0, 1)) or ()]
    config.choice("moe_layer_freq", 1)
    if first is not None:
        check_sizes("config", 0, n_layers, first_k_dense_replace=first)
        return [layer >= first for layer in range(n_layers)]
    step = config.size("decoder_sparse_step", "interleave_moe_layer_step", default=1)
    dense = config.get("mlp_only_layers", default=[])
    return [(layer + 1) % step == 0 and layer not in dense for layer in range(n_layers)]


def windows(config: Config, is_windowed: Callable[[int], bool]) -> list[int | None]:
    """The window of each layer: by `layer_types`, or else by the family's rule.

    Args:
        is_windowed: the rule; it is not asked where there is no window.
    """
    n_layers = config.n_layers
    if config.get("sliding_window", "sliding_window_size") is None:
        config.pattern("layer_types", of=(FULL,))
        return [None] * n_layers
    window = config.size("sliding_window", "sliding_window_size", least=2)
    kinds = config.pattern("layer_types", of=(FULL, SLIDING))
    if kinds is None:
        kinds = [SLIDING if is_windowed(layer) else FULL for layer in range(n_layers)]
    return [window if kind == SLIDING else None for kind in kinds]


def latent(config: Config, index: SparseIndex | None = None) -> MultiHeadLatent:
    """Latent attention as DeepSeek V2 and V3 spell it."""
    config.get("num_key_value_heads", "head_dim", "qk_head_dim")
    names = ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
    sizes = LatentAttention(
        **config.sizes(**{name: name for name in names}),
        q_lora_rank=config.optional_size("q_lora_rank"),
    )
    return MultiHeadLatent(config.size("num_attention_heads"), sizes, index=index)


def index(config: Config, shared: bool = False) -> SparseIndex:
    """The index of DeepSeek-V3.2, whose queries come from the rank that attention's come from."""
    return SparseIndex(
        **config.sizes(
            n_heads="index_n_heads",
            head_dim="index_head_dim",
            top_tokens="index_topk",
            query_rank="q_lora_rank",
        ),
        shared=shared,
    )


def stacked(
    attentions: Sequence[AnyAttention], ffns: Sequence[Dense | Experts], other: int = 0
) -> list[Layer]:
    """One layer for each pair; equal layers are one object, which keeps a model small."""
    kinds: dict[Layer, Layer] = {}
    made = (Layer(*pair, other) for pair in zip(attentions, ffns, strict=True))
    return [kinds.setdefault(layer, layer) for layer in made]


def with_windows(attention: FullAttention, found: Sequence[int | None]) -> list[FullAttention]:
    return [replace(attention, window=window) for window in found]


CHUNKS = (FULL, CHUNKED)
