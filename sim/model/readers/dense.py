"""Families whose layers all have heads and one MLP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sim.errors import BadFile
from sim.model.attention import FullAttention
from sim.model.compressed import NoAttention
from sim.model.layers import Dense
from sim.model.readers import arithmetic
from sim.model.readers.arithmetic import SILU, activation, run_fields
from sim.model.readers.fields import Config, Description
from sim.model.readers.parts import (
    HIDDEN,
    heads,
    mlp,
    stacked,
    windows,
    with_windows,
)


def opt(config: Config) -> Description:
    hidden, n_heads = config.size(HIDDEN), config.size("num_attention_heads")
    if not config.get("do_layer_norm_before", default=True) or (
        config.get("word_embed_proj_dim", default=hidden) != hidden
    ):
        raise BadFile("post-norm OPT (opt-350m) is not supported; use another OPT size.")
    if hidden % n_heads:
        raise BadFile(
            f"hidden_size(={hidden}) must be a multiple of num_attention_heads(={n_heads})."
        )
    attention = FullAttention(n_heads, n_heads, hidden // n_heads)
    bias = bool(config.get("enable_bias", default=True))
    fields = {
        "rotary": False,
        "norm_eps": 1e-5,
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": bias,
        "tie_embeddings": bool(config.get("tie_word_embeddings", default=True)),
        "not_run": activation(config, "relu"),
    }
    n_layers = config.n_layers
    ffn = Dense(config.size("ffn_dim"), gated=False)
    return Description(stacked([attention] * n_layers, [ffn] * n_layers), fields)


def uniform(
    config: Config, is_windowed: Callable[[int], bool] = lambda _: False, **fields: Any
) -> Description:
    """Rotary positions, gated MLPs, and a window on some layers."""
    attentions = with_windows(heads(config), windows(config, is_windowed))
    return Description(stacked(attentions, [mlp(config)] * config.n_layers), fields)


def llama(config: Config, is_windowed: Callable[[int], bool] = lambda _: False) -> Description:
    """A family that runs: its RoPE is read, and its norm needed."""
    config.number("rms_norm_eps")
    return uniform(config, is_windowed, **run_fields(config, *SILU))


def mistral(config: Config) -> Description:
    return llama(config, lambda _: True)


def qwen(config: Config) -> Description:
    """Qwen 2 and 3: a window, where it is switched on, from layer `max_window_layers` on."""
    family = config.values["model_type"]
    first = config.size("max_window_layers", default=28, least=0)  # as transformers' Qwen2Config
    if config.get("use_sliding_window", default=False):
        made = llama(config, lambda layer: layer >= first)
    else:
        made = llama(replace(config, values={**config.values, "sliding_window": None}))
    qwen2 = family.startswith("qwen2")
    made.fields["qkv_bias"] = qwen2 or bool(config.get("attention_bias", default=False))
    made.fields["qk_norm"] = not qwen2
    return made


def qwen_like(config: Config) -> Description:
    """MiMo: as Qwen 2, with a bias only where the config says so."""
    config.get("use_sliding_window", "sliding_window")
    return uniform(replace(config, values={**config.values, "sliding_window": None}))


def gemma(config: Config) -> Description:
    """Gemma 2 and 3: every second layer, or all but every sixth, has the window.

    The passes of their embedding scale and caps are not priced.
    """
    gemma3 = config.values["model_type"].startswith("gemma3")
    period = config.size(
        "sliding_window_pattern", "_sliding_window_pattern", default=2 + 4 * gemma3
    )
    config.size("head_dim")
    tied = bool(config.get("tie_word_embeddings", default=True))
    norms = {"qk_norm": gemma3, "output_norms": True, "tie_embeddings": tied}
    fields = arithmetic.gemma(config) | norms
    return uniform(config, lambda layer: (layer + 1) % period != 0, **fields)


def cohere(config: Config) -> Description:
    """Command R and A: attention and MLP side by side, all but every fourth layer windowed."""
    period = config.size("sliding_window_pattern", default=4)
    tied = bool(config.get("tie_word_embeddings", default=True))
    return uniform(config, lambda layer: (layer + 1) % period != 0, tie_embeddings=tied)


def phi3(config: Config) -> Description:
    """All layers have the window; long prompts come with rope type longrope."""
    return uniform(config, lambda _: True)


def seed_oss(config: Config) -> Description:
    """Biases of Q, K and V, and of the output, are switched on apart."""
    for dropout in ("attention_dropout", "residual_dropout"):
        config.get(dropout)
    return uniform(config, out_bias=bool(config.get("attention_out_bias", default=False)))


def nas(config: Config) -> Description:
    """Nemotron NAS: heads, MLP width, or their absence, by layer (`block_configs`)."""
    hidden, n_heads = config.size(HIDDEN), config.size("num_attention_heads")
    attentions: list[Any] = []
    ffns = []
    config.get("num_hidden_layers")
    for block in config.need("block_configs"):
        part, ffn = block["attention"], block["ffn"]
        if part.get("window_length") or part.get("sparsify") or ffn.get("sparsify"):
            raise BadFile("block_configs with window_length or sparsify are not supported.")
        if part["no_op"] or part["replace_with_linear"]:
            attentions.append(NoAttention(bool(part["replace_with_linear"])))
        else:
            group = part["n_heads_in_group"]
            attentions.append(FullAttention(n_heads, n_heads // group, hidden // n_heads))
        width = int(2 * (ffn.get("ffn_mult") or 0) * hidden / 3)
        if ffn["replace_with_linear"]:
            ffns.append(Dense(hidden // 2, gated=False))  # one matrix of hidden x hidden
        else:
            ffns.append(Dense(0 if ffn["no_op"] else -(-width // 256) * 256))
    return Description(stacked(attentions, ffns))
