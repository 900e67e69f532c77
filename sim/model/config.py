"""A model's layers from its Hugging Face config.json, in all spellings of its fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sim.errors import BadFile, BadInput
from sim.files import decode_json
from sim.model.attention import FullAttention, MultiHeadLatent
from sim.model.layers import Dense, Experts, Layer
from sim.model.readers import dense, hybrid, sparse
from sim.model.readers.fields import Config, Description
from sim.model.spec import ASSUMED, MixtureOfExperts, ModelSpec
from sim.model.stored import activation_bits, kv_bits, module_bits

Reader = Callable[[Config], Description]

READERS: dict[str, Reader] = {
    "opt": dense.opt,
    "llama": dense.llama,
    "mistral": dense.mistral,
    "qwen2": dense.qwen,
    "qwen3": dense.qwen,
    "gemma2": dense.gemma,
    "gemma3_text": dense.gemma,
    "deepseek_v2": sparse.deepseek,
    "deepseek_v3": sparse.deepseek,
    "cohere": dense.uniform,
    "cohere2": dense.cohere,
    "deepseek_ref": sparse.deepseek_v4,
    "deepseek_v32": sparse.sparse_index,
    "deepseek_v4": sparse.deepseek_v4,
    "gemma3": dense.gemma,
    "gemma4": sparse.gemma4,
    "glm": dense.uniform,
    "glm4": dense.uniform,
    "glm4_moe": sparse.glm4_moe,
    "glm4_moe_lite": sparse.deepseek,
    "glm_moe_dsa": sparse.sparse_index,
    "gpt_oss": sparse.gpt_oss,
    "granite": dense.uniform,
    "kimi_k2": sparse.deepseek,
    "kimi_linear": hybrid.kimi_linear,
    "llama4": sparse.llama4,
    "mimo": dense.qwen_like,
    "mimo_v2_flash": sparse.mimo_v2,
    "minimax_m2": sparse.mixtral,
    "minimax_m3": sparse.minimax_m3,
    "minimax_m3_vl": sparse.minimax_m3,
    "mixtral": sparse.mixtral,
    "nemotron-nas": dense.nas,
    "nemotron_h": hybrid.nemotron_h,
    "phi3": dense.phi3,
    "qwen2_5_vl": dense.qwen,
    "qwen2_moe": sparse.qwen_moe,
    "qwen2_vl": dense.qwen,
    "qwen3_5": hybrid.qwen_next,
    "qwen3_5_moe": hybrid.qwen_next,
    "qwen3_moe": sparse.qwen_moe,
    "qwen3_next": hybrid.qwen_next,
    "qwen3_vl": dense.qwen,
    "qwen3_vl_moe": sparse.qwen_moe,
    "step3p5": sparse.step,
    "seed_oss": dense.seed_oss,
    "step3p7": sparse.step,
}
"""The reader of each `model_type`; `_text` behind it names the language part of the same."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
    },
    "qwen2_5_vl": {"vocab_size": 152_064},
}
"""Fields that configs of a family leave out where they have the family's default."""

NESTED = ("text_config", "llm_config", "language_config")
OUTER = ("dtype", "torch_dtype", "tie_word_embeddings", "quantization_config")
"""Fields of the whole model that count for its language part unless that has its own."""

FLOAT32_FAMILIES = ("opt", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")
"""Families whose configs without a dtype mean float32; later ones come in bfloat16."""


def load_model_config(
    path: Path | str, name: str | None = None, assume_like: str | None = None
) -> ModelSpec:
    """Read a Hugging Face `config.json`.

    Args:
        assume_like: family to read the config as if its `model_type` is unknown.

    Raises:
        BadFile: the file is unreadable, lacks a field, or describes an unsupported architecture.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "config.json"
    config = _object(path)
    quantised = path.with_name(path.name.replace("config.json", "hf_quant_config.json"))
    extra = _object(quantised) if quantised != path and quantised.exists() else {}
    label = name or (path.parent.name if path.name == "config.json" else path.stem)
    try:
        return model_from_config(config, label, assume_like, extra.get("quantization"))
    except (BadFile, BadInput) as error:
        raise BadFile(f"{path}: {error}") from None


def _object(path: Path) -> dict[str, Any]:
    config = decode_json(path)
    if not isinstance(config, dict):
        raise BadFile(f"{path} holds a {type(config).__name__}, not a model's config.json object.")
    return config


def model_from_config(
    config: Mapping[str, Any],
    name: str,
    assume_like: str | None = None,
    quantised: Mapping[str, Any] | None = None,
) -> ModelSpec:
    """Translate the keys of a Hugging Face config.

    Args:
        assume_like: as in `load_model_config`; the model's name then says so.
        quantised: how the weights are stored, from a file next to the config.

    Raises:
        BadFile: names the field that is absent, or holds what is not supported.
    """
    text = language_part(config)
    family, reader, assumed = _reader(config, text, assume_like)
    if assumed:
        name = f"{name}{ASSUMED}{family})"
    kind = _short(text.get("model_type")) if not assumed else family
    given = Config({**text, "model_type": kind}, DEFAULTS.get(kind, {}), {"model_type"})
    given.size("hidden_size")
    described = reader(given)
    fields = _common(given, family) | described.fields
    if not assumed and (unknown := given.unknown()):
        shown = ", ".join(f"{key}(={text[key]!r})"[:80] for key in unknown[:3])
        raise BadFile(
            f"{shown}: not known for {family}, and may change bytes or FLOPs; remove what does "
            "not, or read it as another family with --assume-like."
        )
    model = _spec(tuple(described.layers), name=name, family=family, **fields)
    own = given.get("quantization_config", default={})
    if not isinstance(own, Mapping):
        raise BadFile(f"quantization_config(={own!r}) must be an object.")
    stored = {**(quantised or {}), **{key: one for key, one in own.items() if one is not None}}
    return _as_stored(model, stored, kind, given.get("expert_dtype")) if stored else model


def _as_stored(
    model: ModelSpec, stored: Mapping[str, Any], kind: str, expert_dtype: str | None
) -> ModelSpec:
    """The model with the bits of its stored weights, and of the cache that they ask for."""
    own = 8 * model.element_bytes
    bits = module_bits(stored, kind, model.layers, model.hidden_size, own, expert_dtype)
    most, _ = model.layer_elements.most_common(1)[0]
    weight_bits = int(getattr(bits, most))
    groups = [group for group, count in model.layer_elements.items() if count]
    plain = all(getattr(bits, group) == weight_bits for group in groups) and bits.head == own
    return replace(
        model,
        weight_bits=weight_bits if weight_bits < own else None,
        module_bits=None if plain else bits,
        kv_bits=kv_bits(stored),
        activation_bits=activation_bits(stored),
    )


def language_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the language model, which multimodal configs nest."""
    for key in NESTED:
        if isinstance(inner := config.get(key), Mapping):
            outer = {key: config[key] for key in OUTER if key in config}
            merged = {**outer, **{key: one for key, one in inner.items() if one is not None}}
            return {"model_type": config.get("model_type"), **merged}
    return dict(config)


def _short(family: Any) -> str:
    """The name of a family's reader."""
    name = family if isinstance(family, str) else ""
    return name.removesuffix("_text") if name not in READERS else name


def _reader(
    config: Mapping[str, Any], text: Mapping[str, Any], assume_like: str | None
) -> tuple[str, Reader, bool]:
    """The family, its reader, and whether it was assumed."""
    outer, inner = config.get("model_type"), _short(text.get("model_type"))
    if inner in READERS and isinstance(outer, str):
        return outer, READERS[inner], False
    if assume_like is not None:
        if assume_like not in READERS:
            raise BadInput(
                f"--assume-like {assume_like}: must be one of {', '.join(sorted(READERS))}."
            )
        return assume_like, READERS[assume_like], True
    import difflib  # only a wrong name needs it

    near = difflib.get_close_matches(inner, READERS, 1, 0.3)
    nearest = f"the nearest known one is {near[0]!r}; " if near else ""
    raise BadFile(
        f"model_type {outer!r} is not supported; {nearest}--assume-like llama reads it as a Llama, "
        "and `kvoverlap models` lists all families."
    )


def _common(config: Config, family: str) -> dict[str, Any]:
    """Fields that all families spell alike; a reader's own win over the defaults here."""
    tied = bool(config.get("tie_word_embeddings", default=False))
    biased = bool(config.get("attention_bias", default=False))
    eps = ("rms_norm_eps", "layer_norm_eps", "norm_eps", "layernorm_epsilon", "layer_norm_epsilon")
    quantised = config.get("quantization_config") is not None
    usual = "float32" if family in FLOAT32_FAMILIES and not quantised else "bfloat16"
    return {
        "hidden_size": config.size("hidden_size"),
        "vocab_size": config.size("vocab_size"),
        "max_positions": config.size("max_position_embeddings", "model_max_length"),
        "dtype": config.get("dtype", "torch_dtype", default=usual),
        "rotary": True,
        "norm_eps": config.number(*eps, default=1e-6),
        "qkv_bias": biased,
        "out_bias": biased,
        "mlp_bias": bool(config.get("mlp_bias", default=False)),
        "qk_norm": False,
        "tie_embeddings": tied,
    }


def _spec(layers: tuple[Layer, ...], **fields: Any) -> ModelSpec:
    """The model with the short description of its layers, or with their kinds if it has none."""
    first = next((one.attention for one in layers if hasattr(one.attention, "n_heads")), None)
    ffns = {one.ffn: None for one in layers}
    dense: list[Dense | Experts] = [one for one in ffns if isinstance(one, Dense) and one.width]
    moes = [one for one in ffns if isinstance(one, Experts)]
    hidden = fields["hidden_size"]
    sizes: dict[str, Any] = {
        **fields,
        "n_layers": len(layers),
        "n_heads": getattr(first, "n_heads", 1),
        "n_kv_heads": getattr(first, "n_kv_heads", 1),
        "head_dim": getattr(first, "head_dim", hidden),
        "intermediate_size": max(
            [one.width for one in dense] or [one.width for one in moes] or [hidden]
        ),
        "gated_mlp": all(one.gated for one in dense) and all(one.gated for one in moes),
    }
    latent: dict[str, Any] = {}
    if isinstance(first, MultiHeadLatent):
        sizes["head_dim"] = first.sizes.qk_nope_head_dim + first.sizes.qk_rope_head_dim
        latent["mla"] = first.sizes
    short = ModelSpec(**sizes, **latent, **_windows(layers), **_experts(layers))
    if short.layers == layers:
        return short
    kinds = list(dict.fromkeys(layers))
    order = tuple(kinds.index(layer) for layer in layers)
    return ModelSpec(**sizes, layer_kinds=tuple(kinds), layer_order=order)


def _windows(layers: Sequence[Layer]) -> dict[str, Any]:
    windows = [
        one.attention.window if isinstance(one.attention, FullAttention) else None for one in layers
    ]
    window = next((one for one in windows if one is not None), None)
    if window is None:
        return {}
    full = tuple(layer for layer, one in enumerate(windows) if one is None)
    return {"sliding_window": window, "full_attention_layers": full}


def _experts(layers: Sequence[Layer]) -> dict[str, Any]:
    ffns = [one.ffn for one in layers]
    moe = next((one for one in ffns if isinstance(one, Experts)), None)
    if moe is None:
        return {}
    return {
        "moe": MixtureOfExperts(
            n_routed_experts=moe.n_routed,
            n_active_experts=moe.n_active,
            n_shared_experts=moe.shared_width // moe.width,
            intermediate_size=moe.width,
            n_dense_layers=next(at for at, one in enumerate(ffns) if one == moe),
        )
    }
