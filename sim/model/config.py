"""A model's shape from its Hugging Face config.json (transformers 4 or 5 spelling)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sim.errors import BadFile, BadInput
from sim.files import decode_json
from sim.model.layers import LatentAttention
from sim.model.spec import (
    MAX_LAYERS,
    Llama3RopeScaling,
    MixtureOfExperts,
    ModelSpec,
)

FULL, SLIDING = "full_attention", "sliding_attention"


def load_model_config(path: Path | str, name: str | None = None) -> ModelSpec:
    """Read a Hugging Face `config.json`.

    Raises:
        BadFile: the file is unreadable, lacks a field, or describes an unsupported architecture.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "config.json"
    config = decode_json(path)
    if not isinstance(config, dict):
        raise BadFile(f"{path} holds a {type(config).__name__}, not a model's config.json object.")
    label = name or (path.parent.name if path.name == "config.json" else path.stem)
    try:
        return model_from_config(config, label)
    except (BadFile, BadInput) as error:
        raise BadFile(f"{path}: {error}") from None


def model_from_config(config: Mapping[str, Any], name: str) -> ModelSpec:
    """Translate the keys of a Hugging Face config.

    Raises:
        BadFile: names the field that is absent, or holds what is not supported.
    """
    family = config.get("model_type")
    if not isinstance(family, str) or family not in _READERS:
        raise BadFile(f"model_type {family!r} is not supported; supported: {', '.join(_READERS)}.")
    hidden, heads = _need(config, "hidden_size"), _need(config, "num_attention_heads")
    common: dict[str, Any] = {
        "name": name,
        "family": family,
        "n_layers": _need(config, "num_hidden_layers"),
        "hidden_size": hidden,
        "n_heads": heads,
        "vocab_size": _need(config, "vocab_size"),
        "max_positions": _need(config, "max_position_embeddings"),
        "dtype": config.get("dtype") or config.get("torch_dtype") or "float32",
    }
    if not all(isinstance(value, int) for value in (hidden, heads)) or heads < 1:
        raise BadFile(f"hidden_size(={hidden!r}) and num_attention_heads(={heads!r}) must be > 0.")
    return ModelSpec(**common, **_READERS[family](config))


def _need(config: Mapping[str, Any], key: str) -> Any:
    if config.get(key) is None:
        raise BadFile(f"field {key!r} is missing; add it to the config.")
    return config[key]


def _need_choice(config: Mapping[str, Any], key: str, default: str, wanted: str) -> None:
    """Refuse an activation that the model's kernels do not compute."""
    if config.get(key, default) != wanted:
        raise BadFile(f"{key} {config[key]!r} is not supported; it must be {wanted!r}.")


def _opt(config: Mapping[str, Any]) -> dict[str, Any]:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    if not config.get("do_layer_norm_before", True) or (
        config.get("word_embed_proj_dim", hidden) != hidden
    ):
        raise BadFile("post-norm OPT (opt-350m) is not supported; use another OPT size.")
    if hidden % heads:
        raise BadFile(
            f"hidden_size(={hidden}) must be a multiple of num_attention_heads(={heads})."
        )
    _need_choice(config, "activation_function", "relu", "relu")
    bias = bool(config.get("enable_bias", True))
    return {
        "n_kv_heads": heads,
        "head_dim": hidden // heads,
        "intermediate_size": _need(config, "ffn_dim"),
        "gated_mlp": False,
        "rotary": False,
        "norm_eps": 1e-5,
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": bias,
        "qk_norm": False,
        "tie_embeddings": bool(config.get("tie_word_embeddings", True)),
    }


def _gated(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields shared by the families with RMS norm, rotary positions and gated MLPs."""
    heads = config["num_attention_heads"]
    attention_bias = bool(config.get("attention_bias", False))
    return {
        "n_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "intermediate_size": _need(config, "intermediate_size"),
        "gated_mlp": True,
        "rotary": True,
        "norm_eps": _number("rms_norm_eps", _need(config, "rms_norm_eps")),
        "qkv_bias": attention_bias,
        "out_bias": attention_bias,
        "mlp_bias": bool(config.get("mlp_bias", False)),
        "qk_norm": False,
        "tie_embeddings": bool(config.get("tie_word_embeddings", False)),
        "weight_bits": _weight_bits(config),
    }


def _llama(config: Mapping[str, Any]) -> dict[str, Any]:
    _need_choice(config, "hidden_act", "silu", "silu")
    theta, scaling = _rope(config)
    return {**_gated(config), "rope_theta": theta, "rope_scaling": scaling}


def _mistral(config: Mapping[str, Any]) -> dict[str, Any]:
    return _llama(config) | _windows(config, lambda _layer: True)


def _qwen(config: Mapping[str, Any]) -> dict[str, Any]:
    """Qwen 2 and 3: a window, where it is switched on, from layer `max_window_layers` on."""
    made = _llama(config)
    made["qkv_bias"] = made["qkv_bias"] or config["model_type"] == "qwen2"
    made["qk_norm"] = config["model_type"] == "qwen3"
    if not config.get("use_sliding_window", False):
        return made
    first = config.get("max_window_layers", 28)  # as transformers' Qwen2Config
    if not isinstance(first, int):
        raise BadFile(f"max_window_layers(={first!r}) must be a whole number.")
    return made | _windows(config, lambda layer: layer >= first)


def _gemma(config: Mapping[str, Any]) -> dict[str, Any]:
    """Gemma 2 and 3 (text): every second layer, or all but every sixth, has the window.

    Their embedding scale and soft-capped logits cost one pass each and are left out.
    """
    gelu = "gelu_pytorch_tanh"
    _need_choice(config, "hidden_activation", gelu, gelu)
    gemma3 = config["model_type"] == "gemma3_text"
    period = config.get("sliding_window_pattern", 6 if gemma3 else 2)
    if not isinstance(period, int) or period < 1:
        raise BadFile(f"sliding_window_pattern(={period!r}) must be a whole number > 0.")
    return {
        **_gated({"tie_word_embeddings": True, **config}),
        "head_dim": _need(config, "head_dim"),
        "qk_norm": gemma3,
        "output_norms": True,
        **_windows(config, lambda layer: (layer + 1) % period != 0),
    }


def _deepseek(config: Mapping[str, Any]) -> dict[str, Any]:
    """DeepSeek V2 and V3: latent attention, and experts behind the first dense layers."""
    _need_choice(config, "hidden_act", "silu", "silu")
    rotary, plain = _need(config, "qk_rope_head_dim"), _need(config, "qk_nope_head_dim")
    latent = LatentAttention(
        kv_lora_rank=_need(config, "kv_lora_rank"),
        qk_rope_head_dim=rotary,
        qk_nope_head_dim=plain,
        v_head_dim=_need(config, "v_head_dim"),
        q_lora_rank=config.get("q_lora_rank"),
    )
    if config.get("moe_layer_freq", 1) != 1:
        raise BadFile(
            f"moe_layer_freq {config['moe_layer_freq']!r} is not supported; it must be 1."
        )
    experts = MixtureOfExperts(
        n_routed_experts=_need(config, "n_routed_experts"),
        n_active_experts=_need(config, "num_experts_per_tok"),
        n_shared_experts=config.get("n_shared_experts") or 0,
        intermediate_size=_need(config, "moe_intermediate_size"),
        n_dense_layers=config.get("first_k_dense_replace") or 0,
    )
    made = {**_gated(config), "n_kv_heads": 1, "head_dim": rotary + plain}
    return {**made, "mla": latent, "moe": experts}


_READERS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "opt": _opt,
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen,
    "qwen3": _qwen,
    "gemma2": _gemma,
    "gemma3_text": _gemma,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
}


def _windows(config: Mapping[str, Any], is_windowed: Callable[[int], bool]) -> dict[str, Any]:
    """The window and the layers without it: by `layer_types`, or else by the family's rule.

    A model all of whose layers attend to everything has no window.
    """
    window, n_layers = config.get("sliding_window"), config["num_hidden_layers"]
    if window is None or not isinstance(n_layers, int) or n_layers > MAX_LAYERS:
        return {}
    kinds = config.get("layer_types")
    if kinds is None:
        kinds = [SLIDING if is_windowed(layer) else FULL for layer in range(n_layers)]
    if (
        not isinstance(kinds, list)
        or len(kinds) != n_layers
        or any(kind not in (FULL, SLIDING) for kind in kinds)
    ):
        raise BadFile(
            f"layer_types must name {FULL!r} or {SLIDING!r} for each of the {n_layers} layers."
        )
    full = tuple(layer for layer, kind in enumerate(kinds) if kind == FULL)
    if len(full) == n_layers:
        return {}
    return {"sliding_window": window, "full_attention_layers": full}


def _weight_bits(config: Mapping[str, Any]) -> int | None:
    """8 for a checkpoint in FP8; other kinds of quantised weights are refused."""
    quantized = config.get("quantization_config")
    if quantized is None:
        return None
    method = quantized.get("quant_method") if isinstance(quantized, Mapping) else quantized
    if method != "fp8":
        raise BadFile(f"quantization_config.quant_method {method!r} is not supported; only 'fp8'.")
    return 8


def _rope(config: Mapping[str, Any]) -> tuple[float, Llama3RopeScaling | None]:
    """Base and scaling of the rotary embedding; transformers 5 nests both in rope_parameters."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(parameters, Mapping):
        raise BadFile(f"rope_scaling(={parameters!r}) must be an object with a rope_type.")
    theta = parameters.get("rope_theta") or config.get("rope_theta") or 10_000.0
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind == "default":
        return _number("rope_theta", theta), None
    if kind != "llama3":
        raise BadFile(f"rope type {kind!r} is not supported; supported: default, llama3.")

    def need(key: str) -> float:
        if key not in parameters:
            raise BadFile(f"rope scaling lacks the field {key!r}; add it to the config.")
        return _number(key, parameters[key])

    scaling = Llama3RopeScaling(
        factor=need("factor"),
        low_freq_factor=need("low_freq_factor"),
        high_freq_factor=need("high_freq_factor"),
        original_max_positions=int(need("original_max_position_embeddings")),
    )
    return _number("rope_theta", theta), scaling


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise BadFile(f"{key}(={value!r}) must be a finite number > 0.")
    return float(value)
