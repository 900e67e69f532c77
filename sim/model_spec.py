"""The shape of a decoder-only transformer, read from a Hugging Face config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.errors import BadFile, BadInput
from sim.files import STRICT_KEYS, decode_json

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_SIZES = (
    "n_layers",
    "hidden_size",
    "n_heads",
    "n_kv_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "max_positions",
)
FAMILIES = ("opt", "llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True, slots=True)
class Llama3RopeScaling:
    """Frequency scaling of Llama 3.1 (`rope_type: llama3`), which lengthens slow wavelengths."""

    __pydantic_config__ = STRICT_KEYS

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything about a model that decides bytes, FLOPs and which kernels run.

    `head_dim` is read on its own because `hidden_size / n_heads` is wrong for some models.
    `n_kv_heads < n_heads` is grouped-query attention (GQA), `n_kv_heads == n_heads` is MHA.
    Sizes are counts of elements; `dtype` says how many bytes one takes.
    """

    __pydantic_config__ = STRICT_KEYS

    name: str
    family: str
    n_layers: int
    hidden_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    dtype: str
    gated_mlp: bool
    rotary: bool
    norm_eps: float
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tie_embeddings: bool
    rope_theta: float = 10_000.0
    rope_scaling: Llama3RopeScaling | None = None
    sliding_window: int | None = None

    def __post_init__(self) -> None:
        for field in _SIZES:
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise BadInput(f"model {self.name}: {field}(={value!r}) must be an integer > 0.")
        if self.n_heads % self.n_kv_heads:
            raise BadInput(
                f"model {self.name}: n_heads(={self.n_heads}) must be a multiple of "
                f"n_kv_heads(={self.n_kv_heads})."
            )
        if self.rotary and self.head_dim % 2:
            raise BadInput(
                f"model {self.name}: head_dim(={self.head_dim}) must be even for rotary positions."
            )
        if not isinstance(self.dtype, str) or self.dtype not in DTYPE_BYTES:
            raise BadInput(
                f"model {self.name}: dtype(={self.dtype!r}) must be one of "
                f"{', '.join(DTYPE_BYTES)}."
            )

    @property
    def element_bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]

    @property
    def q_size(self) -> int:
        """Width of the query projection's output."""
        return self.n_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of the key (or value) projection's output."""
        return self.n_kv_heads * self.head_dim

    @property
    def kv_token_bytes(self) -> int:
        """Bytes of K and V of one token in one layer."""
        return 2 * self.kv_size * self.element_bytes

    @property
    def x_token_bytes(self) -> int:
        """Bytes of the attention input X of one token in one layer."""
        return self.hidden_size * self.element_bytes

    @property
    def layer_weight_bytes(self) -> int:
        """Bytes of one layer's matrices (norms and biases are below a thousandth)."""
        attention = self.hidden_size * (self.q_size + 2 * self.kv_size)
        attention += self.q_size * self.hidden_size
        mlp = (3 if self.gated_mlp else 2) * self.hidden_size * self.intermediate_size
        return (attention + mlp) * self.element_bytes

    @property
    def kv_weight_bytes(self) -> int:
        """Bytes of one layer's K and V projections."""
        return 2 * self.kv_size * self.hidden_size * self.element_bytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of all layers, the embeddings and the output head."""
        tables = self.vocab_size * (1 if self.tie_embeddings else 2)
        positions = 0 if self.rotary else self.max_positions
        embeddings = (tables + positions) * self.hidden_size * self.element_bytes
        return self.n_layers * self.layer_weight_bytes + embeddings

    @property
    def n_parameters(self) -> int:
        return self.weight_bytes // self.element_bytes


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
    """Translate the keys of a Hugging Face config (transformers 4 or 5 spelling)."""
    family = config.get("model_type")
    if family not in FAMILIES:
        raise BadFile(f"model_type {family!r} is not supported; supported: {', '.join(FAMILIES)}.")

    def need(*keys: str) -> Any:
        for key in keys:
            if config.get(key) is not None:
                return config[key]
        raise BadFile(f"field {' or '.join(map(repr, keys))} is missing; add it to the config.")

    hidden, heads = need("hidden_size"), need("num_attention_heads")
    common: dict[str, Any] = {
        "name": name,
        "family": family,
        "n_layers": need("num_hidden_layers"),
        "hidden_size": hidden,
        "n_heads": heads,
        "vocab_size": need("vocab_size"),
        "max_positions": need("max_position_embeddings"),
        "dtype": config.get("dtype") or config.get("torch_dtype") or "float32",
    }
    if not all(isinstance(value, int) for value in (hidden, heads)) or heads < 1:
        raise BadFile(f"hidden_size(={hidden!r}) and num_attention_heads(={heads!r}) must be > 0.")
    if family == "opt":
        if not config.get("do_layer_norm_before", True) or (
            config.get("word_embed_proj_dim", hidden) != hidden
        ):
            raise BadFile("post-norm OPT (opt-350m) is not supported; use another OPT size.")
        if config.get("activation_function", "relu") != "relu":
            raise BadFile(f"activation_function {config['activation_function']!r} must be 'relu'.")
        bias = bool(config.get("enable_bias", True))
        return ModelSpec(
            **common,
            n_kv_heads=heads,
            head_dim=hidden // heads,
            intermediate_size=need("ffn_dim"),
            gated_mlp=False,
            rotary=False,
            norm_eps=1e-5,
            qkv_bias=bias,
            out_bias=bias,
            mlp_bias=bias,
            qk_norm=False,
            tie_embeddings=bool(config.get("tie_word_embeddings", True)),
        )
    if config.get("hidden_act", "silu") != "silu":
        raise BadFile(f"hidden_act {config['hidden_act']!r} is not supported; it must be 'silu'.")
    theta, scaling = _rope(config)
    attention_bias = bool(config.get("attention_bias", False))
    return ModelSpec(
        **common,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or hidden // heads,
        intermediate_size=need("intermediate_size"),
        gated_mlp=True,
        rotary=True,
        norm_eps=_number("rms_norm_eps", need("rms_norm_eps")),
        qkv_bias=family == "qwen2" or attention_bias,
        out_bias=attention_bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
        qk_norm=family == "qwen3",
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        rope_theta=theta,
        rope_scaling=scaling,
        sliding_window=_sliding_window(config, family),
    )


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


def _sliding_window(config: Mapping[str, Any], family: str) -> int | None:
    if family.startswith("qwen") and not config.get("use_sliding_window", False):
        return None
    window = config.get("sliding_window")
    return None if window is None else int(_number("sliding_window", window))
