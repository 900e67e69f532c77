"""The shape of a decoder-only transformer: what decides its bytes and FLOPs.

Letters in comments: h hidden size, H query heads, D their size; of latent attention r the latent's
rank, d_n and d_r the parts of a query head without and with rotary positions, d_v a value head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from sim.errors import BadInput
from sim.files import STRICT_KEYS

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
MODEL_SIZES = (
    "n_layers",
    "hidden_size",
    "n_heads",
    "n_kv_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "max_positions",
)
MAX_LAYERS = 10_000
MAX_SIZE = 2**31
"""Limits of the sizes in a config, far above those of any model."""

MAX_TENSOR_PARALLEL = 64
"""GPUs that can share a model."""

RUNNABLE_FAMILIES = ("opt", "llama", "mistral", "qwen2", "qwen3")
"""Families that there are device kernels for; the others can be planned and simulated."""


@dataclass(frozen=True, slots=True)
class Llama3RopeScaling:
    """Frequency scaling of Llama 3.1 (`rope_type: llama3`), which lengthens slow wavelengths."""

    __pydantic_config__ = STRICT_KEYS

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention (MLA): a token caches a latent and a rotary key for all heads.

    Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1; names as in its config.json.

    Args:
        kv_lora_rank: elements of the latent that K and V of all heads are made from, r.
        qk_rope_head_dim: elements of the rotary key that all heads share, d_r.
        qk_nope_head_dim: elements of a query or key head without positions, d_n.
        v_head_dim: elements of a value head, d_v.
        q_lora_rank: elements that queries pass through; None where they are projected at once.
    """

    __pydantic_config__ = STRICT_KEYS

    kv_lora_rank: int
    qk_rope_head_dim: int
    qk_nope_head_dim: int
    v_head_dim: int
    q_lora_rank: int | None = None

    def __post_init__(self) -> None:
        sizes = ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
        _check_sizes("model", self, sizes)
        if self.q_lora_rank is not None:
            _check_sizes("model", self, ("q_lora_rank",))


@dataclass(frozen=True, slots=True)
class MixtureOfExperts:
    """MLPs of which each token passes through a few: routed ones it chooses, shared ones always.

    Args:
        n_routed_experts: experts to choose from.
        n_active_experts: routed experts that a token passes through (`num_experts_per_tok`).
        n_shared_experts: experts that every token passes through.
        intermediate_size: width of one expert.
        n_dense_layers: first layers, which have one MLP instead (`first_k_dense_replace`).
    """

    __pydantic_config__ = STRICT_KEYS

    n_routed_experts: int
    n_active_experts: int
    n_shared_experts: int
    intermediate_size: int
    n_dense_layers: int

    def __post_init__(self) -> None:
        _check_sizes("model", self, ("n_routed_experts", "n_active_experts", "intermediate_size"))
        _check_sizes("model", self, ("n_shared_experts", "n_dense_layers"), least=0)
        if self.n_active_experts > self.n_routed_experts:
            raise BadInput(
                f"model: n_active_experts(={self.n_active_experts}) must be at most "
                f"n_routed_experts(={self.n_routed_experts})."
            )

    def touched_experts(self, n_tokens: int) -> float:
        """Routed experts that at least one of `n_tokens` tokens passes through, on average.

        Each token chooses evenly and on its own: n (1 - (1 - active/n)^tokens).
        """
        untouched_frac = (1 - self.n_active_experts / self.n_routed_experts) ** n_tokens
        return self.n_routed_experts * (1 - untouched_frac)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything about a model that decides bytes, FLOPs and which kernels run.

    `head_dim` is read on its own because `hidden_size / n_heads` is wrong for some models.
    `n_kv_heads < n_heads` is grouped-query attention (GQA), `n_kv_heads == n_heads` is MHA.
    Sizes are counts of elements; `dtype` says how many bytes one takes.

    Args:
        sliding_window: tokens that a windowed layer attends to, the new one included, so at least
            2; None where all layers attend to everything.
        full_attention_layers: layers that attend to everything although there is a window.
        output_norms: attention and MLP outputs are normed before they are added (Gemma 2 and 3).
        mla: latent attention instead of K and V of each head. Every head reads the same latent, so
            `n_kv_heads` is 1; `head_dim` is d_n + d_r.
        moe: experts instead of one MLP; `intermediate_size` is that of the dense layers.
        weight_bits: of an element of the layers' matrices, where they are stored in fewer bits
            than `dtype`.
        tensor_parallel: GPUs that share the model; all sizes are then those of one of them.
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
    full_attention_layers: tuple[int, ...] = ()
    output_norms: bool = False
    mla: LatentAttention | None = None
    moe: MixtureOfExperts | None = None
    weight_bits: int | None = None
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        _check_sizes(f"model {self.name}", self, MODEL_SIZES)
        if self.sliding_window is not None:
            _check_sizes(f"model {self.name}", self, ("sliding_window",), least=2)
        if self.moe is not None and self.moe.n_dense_layers > self.n_layers:
            raise BadInput(
                f"model {self.name}: n_dense_layers(={self.moe.n_dense_layers}) must be at most "
                f"the {self.n_layers} layers."
            )
        for layer in self.full_attention_layers:
            if self.sliding_window is None or not 0 <= layer < self.n_layers:
                raise BadInput(
                    f"model {self.name}: full_attention_layers name layer {layer}, which must be "
                    f"one of {self.n_layers} layers of a model with a sliding_window."
                )
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

    def shard(self, gpus: int) -> ModelSpec:
        """The part of the model that each of `gpus` GPUs holds under tensor parallelism.

        Query heads, MLPs, experts and vocabulary are divided. So are KV heads, as far as there are
        any to divide; with more GPUs than KV heads several GPUs hold the same one. The latents of
        MLA are the same on every GPU.

        Raises:
            BadInput: the heads cannot be divided evenly.
        """
        if gpus == 1:
            return self
        if self.tensor_parallel > 1:
            raise BadInput(f"{self.name} is already divided over {self.tensor_parallel} GPUs.")
        if gpus not in self.tensor_parallel_sizes:
            raise BadInput(
                f"--tp(={gpus}) must divide the {self.n_heads} query heads and {self.n_kv_heads} "
                f"KV heads of {self.name} evenly; use one of "
                f"{', '.join(map(str, (1, *self.tensor_parallel_sizes)))}."
            )
        moe = self.moe and replace(
            self.moe, intermediate_size=ceil(self.moe.intermediate_size / gpus)
        )
        return replace(
            self,
            n_heads=self.n_heads // gpus,
            n_kv_heads=max(1, self.n_kv_heads // gpus),
            intermediate_size=ceil(self.intermediate_size / gpus),
            vocab_size=ceil(self.vocab_size / gpus),
            moe=moe,
            tensor_parallel=gpus,
        )

    @property
    def tensor_parallel_sizes(self) -> list[int]:
        """Numbers of GPUs, from 2, that the model can be divided over."""
        return [
            n
            for n in range(2, MAX_TENSOR_PARALLEL + 1)
            if not self.n_heads % n and not (self.n_kv_heads % n and n % self.n_kv_heads)
        ]

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
    def kv_token_size(self) -> int:
        """Elements that one token caches in one layer: K and V, or MLA's latent and rotary key."""
        if self.mla is not None:
            return self.mla.kv_lora_rank + self.mla.qk_rope_head_dim
        return 2 * self.kv_size

    @property
    def kv_token_bytes(self) -> int:
        """Bytes that one token caches in one layer."""
        return self.kv_token_size * self.element_bytes

    def window(self, layer: int) -> int | None:
        """Tokens that `layer` attends to at most, the new one included; None without a limit."""
        return None if layer in self.full_attention_layers else self.sliding_window

    def first_token(self, layer: int, past: int) -> int:
        """First past token that `layer` attends to from position `past`.

        A window of w tokens counts the token at `past` itself, as in `transformers`: key j is
        seen from query i where i - w < j <= i.
        """
        if self.sliding_window is None or layer in self.full_attention_layers:
            return 0
        return max(0, past + 1 - self.sliding_window)

    def layer_context(self, layer: int, past: int) -> int:
        """Number of the `past` past tokens that `layer` attends to."""
        return past - self.first_token(layer, past)

    @property
    def x_token_bytes(self) -> int:
        """Bytes of the attention input X of one token in one layer."""
        return self.hidden_size * self.element_bytes

    @property
    def attention_weight_size(self) -> int:
        """Elements of one layer's attention matrices."""
        if self.mla is None:
            return self.hidden_size * (2 * self.q_size + self.kv_token_size)
        query_parts = [(self.hidden_size, self.q_size)]
        if self.mla.q_lora_rank is not None:
            rank = self.mla.q_lora_rank
            query_parts = [(self.hidden_size, rank), (rank, self.q_size)]
        queries = sum(rows * columns for rows, columns in query_parts)
        up = self.mla.kv_lora_rank * (self.mla.qk_nope_head_dim + self.mla.v_head_dim)
        out = self.mla.v_head_dim * self.hidden_size
        return queries + self.hidden_size * self.kv_token_size + self.n_heads * (up + out)

    def mlp_weight_size(self, intermediate_size: int) -> int:
        """Elements of the matrices of one MLP of the given width."""
        return (3 if self.gated_mlp else 2) * self.hidden_size * intermediate_size

    @property
    def layer_weight_bytes(self) -> int:
        """Bytes of one layer's matrices, all experts included (norms are below a thousandth)."""
        mlp = self.mlp_weight_size(self.intermediate_size)
        if self.moe is not None:
            experts = self.moe.n_routed_experts + self.moe.n_shared_experts
            mlp = experts * self.mlp_weight_size(self.moe.intermediate_size)
            mlp += self.hidden_size * self.moe.n_routed_experts  # the router
        return (self.attention_weight_size + mlp) * self._matrix_bits // 8

    @property
    def kv_weight_bytes(self) -> int:
        """Bytes of the matrix that makes what one layer caches from X."""
        return self.kv_token_size * self.hidden_size * self._matrix_bits // 8

    @property
    def _matrix_bits(self) -> int:
        return self.weight_bits or 8 * self.element_bytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of all layers, the embeddings and the output head."""
        embeddings = self._embedding_elements * self.element_bytes
        return self._layer_elements * self._matrix_bits // 8 + embeddings

    @property
    def _layer_elements(self) -> int:
        """Elements of all layers' matrices, of which some may be dense instead of experts."""
        n_dense = 0 if self.moe is None else self.moe.n_dense_layers
        dense = self.attention_weight_size + self.mlp_weight_size(self.intermediate_size)
        usual = self.layer_weight_bytes * 8 // self._matrix_bits
        return (self.n_layers - n_dense) * usual + n_dense * dense

    @property
    def _embedding_elements(self) -> int:
        tables = self.vocab_size * (1 if self.tie_embeddings else 2)
        positions = 0 if self.rotary else self.max_positions
        return (tables + positions) * self.hidden_size

    @property
    def n_parameters(self) -> int:
        return self._layer_elements + self._embedding_elements


def _check_sizes(where: str, holder: object, fields: Sequence[str], least: int = 1) -> None:
    """Refuse a field that is not a whole number from `least` to a limit."""
    for field in fields:
        value = getattr(holder, field)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise BadInput(f"{where}: {field}(={value!r}) must be an integer > {least - 1}.")
        limit = MAX_LAYERS if field == "n_layers" else MAX_SIZE
        if value > limit:
            raise BadInput(f"{where}: {field}(={value!r}) must be at most {limit:,}.")
