"""Families with experts, latent attention, or both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sim.model.arithmetic import PLAIN, Router
from sim.model.attention import FullAttention, SparseIndex
from sim.model.compressed import CompressedAttention
from sim.model.layers import Dense, Experts
from sim.model.readers import arithmetic
from sim.model.readers.arithmetic import SILU, run_fields
from sim.model.readers.fields import FULL, Config, Description
from sim.model.readers.parts import (
    CHUNKS,
    HIDDEN,
    experts,
    heads,
    index,
    latent,
    mlp,
    sparse_layers,
    stacked,
    windows,
    with_windows,
)


def with_experts(
    config: Config,
    *widths: str,
    is_windowed: Callable[[int], bool] = lambda layer: layer % 2 == 0,
    **fields: Any,
) -> Description:
    """Heads, windows by `layer_types`, and experts in all layers or behind the dense ones."""
    found = windows(config, is_windowed)
    return Description(_mixed(config, with_windows(heads(config), found), *widths), fields)


def _mixed(config: Config, attentions: Any, *widths: str) -> Any:
    """Layers with experts where the config says so, and with one MLP elsewhere."""
    sparse, chosen = sparse_layers(config), experts(config, *widths)
    config.get("intermediate_size")
    dense = mlp(config) if not all(sparse) else Dense(0)
    return stacked(attentions, [chosen if one else dense for one in sparse])


def mixtral(config: Config) -> Description:
    """Experts have the width that others call that of the MLP; so has MiniMax."""
    config.get("shared_intermediate_size")
    config.pattern("attn_type_list", of=(1,))  # 0 is MiniMax-01's linear attention
    fields: dict[str, Any] = {}
    if config.values["model_type"] == "mixtral":
        fields = {"is_windowed": lambda _: True, **run_fields(config, *SILU)}
    return with_experts(config, "intermediate_size", **fields)


def gpt_oss(config: Config) -> Description:
    """Every second layer has the window."""
    return with_experts(config, "intermediate_size", **arithmetic.gpt_oss(config))


def qwen_moe(config: Config) -> Description:
    """Qwen 2 and 3 with experts; the window, which no published one has, counts if switched on."""
    if not config.get("use_sliding_window", default=False):
        config = replace(config, values={**config.values, "sliding_window": None})
    qwen2 = config.values["model_type"].startswith("qwen2")
    fields = run_fields(config, *SILU)
    normalised = bool(config.get("norm_topk_prob", default=False))
    how = replace(
        fields.get("arithmetic", PLAIN), router=Router(normalised=normalised, shared_gate=qwen2)
    )
    if qwen2:
        fields["qkv_bias"] = bool(config.get("qkv_bias", default=True))
    else:
        fields["is_windowed"] = lambda _: True
    return with_experts(config, **{**fields, "qk_norm": not qwen2, "arithmetic": how})


def glm4_moe(config: Config) -> Description:
    return with_experts(config, qk_norm=bool(config.get("use_qk_norm", default=False)))


def deepseek(config: Config) -> Description:
    """DeepSeek V2 and V3, Kimi K2: latent attention, and experts behind the first dense layers."""
    config.need("n_routed_experts")
    v3 = config.values["model_type"] == "deepseek_v3"
    fields = arithmetic.deepseek_v3(config) if v3 else {}
    return Description(_mixed(config, [latent(config)] * config.n_layers), fields)


def sparse_index(config: Config) -> Description:
    """DeepSeek-V3.2 and GLM-5: an index chooses tokens; some layers use the choice of another."""
    n_layers = config.n_layers
    config.get("layer_types", "num_experts", "index_topk_pattern")
    kinds = config.pattern("indexer_types", of=("full", "shared"))
    if kinds is None:
        every = config.size("index_topk_freq", default=1)
        offset = config.size("index_skip_topk_offset", default=0, least=0)
        skipped = [max(layer - offset + 1, 0) % every for layer in range(n_layers)]
        kinds = ["shared" if skip else "full" for skip in skipped]
    config.get("index_topk_freq", "index_skip_topk_offset")
    attentions = [latent(config, index(config, kind == "shared")) for kind in kinds]
    return Description(_mixed(config, attentions))


def deepseek_v4(config: Config) -> Description:
    """Compressed entries, an index where 4 tokens make one; streams mixed by hyper-connections."""
    hidden, n_layers = config.size(HIDDEN), config.n_layers
    config.choice("num_key_value_heads", 1)
    ratios = config.need("compress_ratios")[:n_layers]  # the rest are those of draft layers
    config.get("qk_rope_head_dim")
    chosen = replace(index(config), query_rank=None)
    sizes = config.sizes(
        n_heads="num_attention_heads",
        head_dim="head_dim",
        window="sliding_window",
        query_rank="q_lora_rank",
        out_groups="o_groups",
        out_rank="o_lora_rank",
    )
    attentions = [
        CompressedAttention(**sizes, ratio=ratio, index=chosen if ratio == 4 else None)
        for ratio in ratios
    ]
    streams = config.size("hc_mult", default=4)
    mixing = 2 * streams * hidden * (2 + streams) * streams
    return Description(stacked(attentions, [experts(config)] * n_layers, mixing))


def minimax_m3(config: Config) -> Description:
    """Heads with an index over blocks of tokens in all but the first layers."""
    part = config.part("sparse_attention_config")
    names = ("sparse_num_index_heads", "sparse_index_dim", "sparse_topk_blocks")
    n_heads, head_dim, blocks = (part.size(name) for name in names)
    chosen = SparseIndex(n_heads, head_dim, blocks * part.size("sparse_block_size"))
    flags = part.get("sparse_attention_freq") or [1] * config.n_layers
    attentions = [heads(config, index=chosen if flag else None) for flag in flags]
    sparse, dense = sparse_layers(config), Dense(config.size("dense_intermediate_size"))
    routed = experts(config, "intermediate_size")
    return Description(stacked(attentions, [routed if one else dense for one in sparse]))


def llama4(config: Config) -> Description:
    """Chunks in all but every fourth layer; experts in every layer or every second."""
    n_layers, chunk = config.n_layers, config.optional_size("attention_chunk_size")
    rotary = config.get("no_rope_layers") or [(at + 1) % 4 != 0 for at in range(n_layers)]
    kinds = config.pattern("layer_types", of=CHUNKS) or [CHUNKS[bool(one)] for one in rotary]
    attentions = [
        heads(config, window=chunk, chunked=True) if kind != FULL and chunk else heads(config)
        for kind in kinds
    ]
    width = config.size("intermediate_size")
    routed = Experts(
        config.size("num_local_experts"), config.size("num_experts_per_tok"), width, width
    )
    step = config.size("interleave_moe_layer_step", default=1)
    listed = config.get("moe_layers") or range(step - 1, n_layers, step)
    dense = Dense(config.size("intermediate_size_mlp"))
    return Description(
        stacked(attentions, [routed if layer in listed else dense for layer in range(n_layers)])
    )


def gemma4(config: Config) -> Description:
    """Full layers have other heads than windowed ones; the last layers may use the KV of others."""
    n_layers, shared = config.n_layers, config.size("num_kv_shared_layers", default=0, least=0)
    found = windows(config, lambda layer: (layer + 1) % 6 != 0)
    local = heads(config)
    k_is_v = bool(config.get("attention_k_eq_v", default=False))
    n_global = config.optional_size("num_global_key_value_heads") if k_is_v else None
    wide = FullAttention(
        local.n_heads,
        n_global or local.n_kv_heads,
        config.optional_size("global_head_dim") or local.head_dim,
    )
    attentions: list[FullAttention] = []
    ffns: list[Dense | Experts] = []
    for layer, window in enumerate(found):
        is_shared = layer >= n_layers - shared
        sizes, same = (wide, k_is_v) if window is None else (local, False)
        attentions.append(
            FullAttention(
                sizes.n_heads,
                sizes.n_kv_heads,
                sizes.head_dim,
                window=window,
                k_is_v=same,
                shares_kv=is_shared,
            )
        )
        width = config.size("intermediate_size")
        if config.get("enable_moe_block", default=False):
            routed = (config.size("num_experts"), config.size("top_k_experts"))
            one = config.size("moe_intermediate_size", "expert_intermediate_size")
            ffns.append(Experts(*routed, one, shared_width=width))
        else:
            double = is_shared and config.get("use_double_wide_mlp", default=False)
            ffns.append(Dense(width * (2 if double else 1)))
    hidden, each = config.size(HIDDEN), config.optional_size("hidden_size_per_layer_input") or 0
    rows = config.size("vocab_size_per_layer_input", "vocab_size")
    fields = {
        "tie_embeddings": bool(config.get("tie_word_embeddings", default=True)),
        "other_embeddings": n_layers * each * (rows + hidden),
    }
    return Description(stacked(attentions, ffns, 2 * hidden * each), fields)


def mimo_v2(config: Config) -> Description:
    """Windowed and full layers have their own numbers and sizes of heads."""
    full = heads(config, v_head_dim=config.optional_size("v_head_dim"))
    local = FullAttention(
        **config.sizes(
            n_heads="swa_num_attention_heads",
            n_kv_heads="swa_num_key_value_heads",
            head_dim="swa_head_dim",
            v_head_dim="swa_v_head_dim",
            window="sliding_window",
        )
    )
    config.get("sliding_window_size", "attention_chunk_size")
    kinds = config.pattern("hybrid_layer_pattern", of=(0, 1)) or [0] * config.n_layers
    return Description(_mixed(config, [local if kind else full for kind in kinds]))


def step(config: Config) -> Description:
    """Step 3.5 and 3.7: windowed layers may have their own heads; a gate a head is left out."""
    found = windows(config, lambda layer: layer % 4 != 0)
    full = heads(config)
    other = config.part("attention_other_setting")
    local = full
    if other.values:
        n_heads = other.size("num_attention_heads")
        local = FullAttention(n_heads, other.size("num_attention_groups"), full.head_dim)
    config.get("use_head_wise_attn_gate", "num_attention_groups", "yarn_only_types")
    pairs = [with_windows(local if window else full, [window])[0] for window in found]
    return Description(_mixed(config, pairs))
