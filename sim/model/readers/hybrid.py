"""Families with a linear state in most layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sim.errors import BadFile
from sim.model.compressed import LinearState, NoAttention
from sim.model.layers import AnyAttention, Dense, Experts
from sim.model.readers.fields import FULL, Config, Description
from sim.model.readers.parts import HIDDEN, experts, heads, latent, mlp, sparse_layers, stacked

LINEAR = "linear_attention"
STATE_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}


def _state_bits(config: Config) -> int:
    dtype = config.get("mamba_ssm_dtype", "mamba_ssm_cache_dtype", default="float32")
    if dtype not in STATE_BITS:
        raise BadFile(f"mamba_ssm_dtype(={dtype!r}) must be one of {', '.join(STATE_BITS)}.")
    return STATE_BITS[dtype]


def qwen_next(config: Config) -> Description:
    """Qwen3-Next and 3.5: gated delta in all but every fourth layer, whose queries are gated."""
    n_layers = config.n_layers
    every = config.size("full_attention_interval", default=4)
    kinds = config.pattern("layer_types", of=(FULL, LINEAR)) or [
        LINEAR if (layer + 1) % every else FULL for layer in range(n_layers)
    ]
    gated = bool(config.get("attn_output_gate", default=True))
    sizes = config.sizes(
        n_key_heads="linear_num_key_heads",
        key_head_dim="linear_key_head_dim",
        n_value_heads="linear_num_value_heads",
        value_head_dim="linear_value_head_dim",
        conv_kernel="linear_conv_kernel_dim",
    )
    state = LinearState("gated delta", **sizes, state_bits=_state_bits(config))
    attention = heads(config, gated=gated)
    ffns: Sequence[Dense | Experts] = [mlp(config)] * n_layers if _is_dense(config) else []
    if not ffns:
        config.get("intermediate_size")
        ffns = [experts(config) if one else mlp(config) for one in sparse_layers(config)]
    return Description(stacked([state if one == LINEAR else attention for one in kinds], ffns))


def _is_dense(config: Config) -> bool:
    config.get("mlp_only_layers")
    return config.get("num_experts") is None


def kimi_linear(config: Config) -> Description:
    """Kimi Linear and K3: KDA in three layers of four, latent attention in the others."""
    n_layers, part = config.n_layers, config.part("linear_attn_config")
    n_heads, head_dim = part.size("num_heads"), part.size("head_dim")
    state = LinearState(
        "KDA",
        n_heads,
        head_dim,
        n_heads,
        head_dim,
        part.size("short_conv_kernel_size"),
        full_gate=bool(part.get("use_full_rank_gate", default=False)),
    )
    config.get("mla_use_nope")
    attention = replace(
        latent(config), gated=bool(config.get("mla_use_output_gate", default=False))
    )
    full = part.need("full_attn_layers")
    attentions = [attention if layer + 1 in full else state for layer in range(n_layers)]
    chosen = experts(config)
    ffns = [chosen if one else mlp(config) for one in sparse_layers(config)]
    return Description(stacked(attentions, ffns))


BLOCKS = {"M": "mamba", "*": "attention", "E": "moe", "-": "mlp"}


def nemotron_h(config: Config) -> Description:
    """A layer is one block: Mamba-2, heads, experts, or an MLP; MLPs have no gate."""
    text = config.get("hybrid_override_pattern")
    blocks = [BLOCKS.get(one, one) for one in text] if isinstance(text, str) else None
    blocks = blocks or config.need("layers_block_type")
    config.get("layers_block_type", "num_hidden_layers", "expand", "chunk_size", "time_step_rank")
    if unknown := set(blocks) - set(BLOCKS.values()):
        raise BadFile(f"layers_block_type names {sorted(unknown)[0]!r}, which is not supported.")
    sizes = config.sizes(
        n_key_heads="n_groups",
        key_head_dim="ssm_state_size",
        n_value_heads="mamba_num_heads",
        value_head_dim="mamba_head_dim",
        conv_kernel="conv_kernel",
    )
    state = LinearState("Mamba-2", **sizes, state_bits=_state_bits(config))
    attentions: list[AnyAttention] = []
    ffns: list[Dense | Experts] = []
    for block in blocks:
        attention: AnyAttention = NoAttention()
        if block in ("mamba", "attention"):
            attention = state if block == "mamba" else heads(config)
        attentions.append(attention)
        is_mlp, is_moe = block == "mlp", block == "moe"
        ffn: Dense | Experts = mlp(config, gated=False) if is_mlp else Dense(0)
        ffns.append(experts(config, gated=False) if is_moe else ffn)
    config.get("intermediate_size", HIDDEN)
    return Description(stacked(attentions, ffns))
