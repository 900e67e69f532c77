"""The `transformers` model of our architecture, over our weights' own memory."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor

from hw.model.weights import TORCH_DTYPE, Heads, Linear, Norm, Weights
from sim.errors import Mismatch
from sim.model.spec import ModelSpec

MIN_VERSION = 5
FAMILIES = ("opt", "llama", "mistral", "qwen2", "qwen3")
"""Families that are compared with `transformers` as another system."""

OPT_NAMES = {
    "input_norm": "self_attn_layer_norm",
    "attention.out": "self_attn.out_proj",
    "mlp_norm": "final_layer_norm",
    "ffn.up": "fc1",
    "ffn.down": "fc2",
}
LLAMA_NAMES = {
    "input_norm": "input_layernorm",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "attention.out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}
"""Our names of a layer's parts and those of `transformers`, which all but OPT share."""


def transformers_problem() -> str | None:
    """Why `transformers` cannot run here, or None."""
    hint = 'pip install "kvoverlap[peers]"'
    try:
        found = version("transformers")
    except PackageNotFoundError:
        return f"transformers is not installed; {hint}"
    if int(found.partition(".")[0]) < MIN_VERSION:
        return f"transformers {found} is too old, it must be at least {MIN_VERSION}; {hint}"
    return None


def transformers_model(weights: Weights) -> Any:
    """The `transformers` model of the same architecture, over the very same memory.

    It is built without memory of its own and given views of our tensors, fused projections
    included.

    Raises:
        Mismatch: `transformers` has other tensors for this architecture.
    """
    hf, spec = import_module("transformers"), weights.model
    if spec.family not in FAMILIES:
        raise Mismatch(
            f"{spec.name} is of family {spec.family}, and transformers is compared as another "
            f"system with {', '.join(FAMILIES)} only."
        )
    with torch.device("meta"):
        built = hf.AutoModelForCausalLM.from_config(
            hf.AutoConfig.for_model(spec.family, **_config(spec)),
            dtype=TORCH_DTYPE[spec.dtype],
            attn_implementation="sdpa",
        )
    built.eval().requires_grad_(False)
    tensors = named_tensors(weights)
    odd = sorted(set(tensors) ^ set(built.state_dict()))
    if odd:
        raise Mismatch(
            f"{spec.name}: transformers' {spec.family} and ours differ in tensor {odd[0]!r} and "
            f"{len(odd) - 1} others; it cannot run this model."
        )
    built.load_state_dict(tensors, strict=True, assign=True)
    if spec.rotary:  # its frequencies are in no state dict and still without memory
        built.model.rotary_emb = type(built.model.rotary_emb)(built.config).to(weights.device)
    return built


def named_tensors(weights: Weights) -> dict[str, Tensor]:
    """Views of our tensors under their Hugging Face names."""
    model = weights.model
    opt = model.family == "opt"
    root, names = ("model.decoder", OPT_NAMES) if opt else ("model", LLAMA_NAMES)
    tensors = {f"{root}.embed_tokens.weight": weights.embed, "lm_head.weight": weights.head}
    if weights.positions is not None:
        tensors[f"{root}.embed_positions.weight"] = weights.positions

    def put(name: str, part: Linear | Norm | None) -> None:
        if part is not None:
            tensors[f"{name}.weight"] = part.weight
            if part.bias is not None:
                tensors[f"{name}.bias"] = part.bias

    put(f"{root}.{'final_layer_norm' if opt else 'norm'}", weights.final_norm)
    sizes = [model.q_size, model.kv_size, model.kv_size]
    for number, layer in enumerate(weights.layers):
        at = f"{root}.layers.{number}"
        qkv = cast(Heads, layer.attention).qkv
        rows = qkv.weight.split(sizes)
        biases = [None] * 3 if qkv.bias is None else qkv.bias.split(sizes)
        for name, weight, bias in zip("qkv", rows, biases, strict=True):
            put(f"{at}.self_attn.{name}_proj", Linear(weight, bias))
        for ours, theirs in names.items():
            put(f"{at}.{theirs}", attrgetter(ours)(layer))
    return tensors


def _config(model: ModelSpec) -> dict[str, Any]:
    """Fields of the Hugging Face config that describes `model`.

    A sliding window is left out: where it would cut a job, the peers are not run.
    """
    common = {
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "max_position_embeddings": model.max_positions,
        "tie_word_embeddings": model.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if model.family == "opt":
        return {**common, "ffn_dim": model.intermediate_size, "enable_bias": model.qkv_bias}
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": model.rope_theta}
    if model.rope_scaling is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": model.rope_scaling.factor,
            "low_freq_factor": model.rope_scaling.low_freq_factor,
            "high_freq_factor": model.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": model.rope_scaling.original_max_positions,
        }
    return {
        **common,
        "intermediate_size": model.intermediate_size,
        "num_key_value_heads": model.n_kv_heads,
        "head_dim": model.head_dim,
        "rms_norm_eps": model.norm_eps,
        "rope_parameters": rope,
        "attention_bias": model.out_bias,
        "mlp_bias": model.mlp_bias,
        "sliding_window": None,
    }
