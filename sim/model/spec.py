"""The shape of a decoder-only transformer: what decides its bytes and FLOPs.

Letters in comments: h hidden size, H query heads, D their size; of latent attention r the latent's
rank, d_n and d_r the parts of a query head without and with rotary positions, d_v a value head.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil

from sim.errors import BadInput
from sim.files import STRICT_KEYS
from sim.model.arithmetic import PLAIN, Arithmetic
from sim.model.attention import (
    FullAttention,
    LatentAttention,
    MultiHeadLatent,
    Span,
    check_sizes,
)
from sim.model.layers import Dense, Experts, Layer

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
"""Limit far above the layers of any model."""

MAX_TENSOR_PARALLEL = 64
"""GPUs that can share a model."""

ASSUMED = " (assumed "
"""Part of the name of a model whose family is unknown, before the family that it is read as."""

MAX_8BIT_STORED = 9
"""Weights of 8 bits have fewer bits than this with all their scales."""

UNCOUNTED_EMBEDDINGS = ("deepseek", "glm", "gpt_oss", "kimi", "mimo", "minimax", "nemotron", "step")
"""Starts of families whose published active parameters leave out the embedding of the tokens."""


@dataclass(frozen=True, slots=True)
class Llama3RopeScaling:
    """Frequency scaling of Llama 3.1 (`rope_type: llama3`), which lengthens slow wavelengths."""

    __pydantic_config__ = STRICT_KEYS

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True, slots=True)
class MixtureOfExperts:
    """MLPs of which each token passes through a few: routed ones it chooses, shared ones always.

    `Experts` describes one layer and is what everything else computes with. This description of all
    layers stays because plan files hold it as `moe`, and graph hashes are of that text.

    Args:
        n_routed_experts: experts to choose from.
        n_active_experts: routed experts that a token passes through (`num_experts_per_tok`).
        n_shared_experts: experts that every token passes through.
        intermediate_size: width of one expert.
        n_dense_layers: first layers, which have one MLP instead (`first_k_dense_replace`).
        gpus: GPUs that the routed experts are divided over (expert parallelism).
    """

    __pydantic_config__ = STRICT_KEYS

    n_routed_experts: int
    n_active_experts: int
    n_shared_experts: int
    intermediate_size: int
    n_dense_layers: int
    gpus: int = 1

    def __post_init__(self) -> None:
        sizes = ("n_routed_experts", "n_active_experts", "intermediate_size")
        check_sizes("model", **{name: getattr(self, name) for name in sizes})
        counts = ("n_shared_experts", "n_dense_layers")
        check_sizes("model", 0, **{name: getattr(self, name) for name in counts})
        if self.n_active_experts > self.n_routed_experts:
            raise BadInput(
                f"model: n_active_experts(={self.n_active_experts}) must be at most "
                f"n_routed_experts(={self.n_routed_experts})."
            )


@dataclass(frozen=True, slots=True)
class ModuleBits:
    """Bits of an element of the matrices of each group, scales included, on average.

    Args:
        shared: of shared experts, routers and what else belongs to no other group.
    """

    __pydantic_config__ = STRICT_KEYS

    attention: float
    dense: float
    experts: float
    shared: float
    head: float
    embeddings: float


def operand_bits(stored: float, activation_bits: int | None = None) -> int:
    """Bits of both operands of a product when they are multiplied.

    Weights of 8 bits are multiplied in 8 bits, as are their activations; narrower ones in the bits
    of the activations that their format names.

    Args:
        stored: bits of a weight in memory, with its share of the scales.
        activation_bits: of the activations; None for the model's dtype.
    """
    if 8 <= stored < MAX_8BIT_STORED:
        return 8
    return activation_bits or 16 if stored < 8 else 16


@dataclass(frozen=True)
class ModelSpec:
    """Everything about a model that decides bytes, FLOPs and which kernels run.

    A model is a list of `layers`. The sizes from `n_heads` to `moe` are the short description of
    layers that differ at most in their window and in dense or expert FFNs; only such models can be
    run. Other models have `layer_kinds` and `layer_order`, and their sizes are those of most
    layers.
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
            than `dtype`; of most of them if they differ.
        module_bits: of each group of matrices, where they differ or have scales.
        activation_bits: that weights of 4 bits are multiplied with, where fewer than of `dtype`.
        layer_kinds: the different layers of a model that the sizes above do not describe.
        layer_order: for each layer, its place in `layer_kinds`.
        other_embeddings: elements of embeddings other than that of the tokens.
        kv_bits: of the KV cache that the checkpoint asks for, if fewer than `dtype` has.
        not_run: what the config asks for that no device kernel computes.
        tensor_parallel: GPUs that share the model; all sizes are then those of one of them.
        arithmetic: what only a run needs; it changes no plan and no graph's hash.
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
    module_bits: ModuleBits | None = None
    layer_kinds: tuple[Layer, ...] = ()
    layer_order: tuple[int, ...] = ()
    other_embeddings: int = 0
    kv_bits: int | None = None
    not_run: tuple[str, ...] = ()
    tensor_parallel: int = 1
    activation_bits: int | None = None
    arithmetic: Arithmetic = PLAIN

    def __post_init__(self) -> None:
        where = f"model {self.name}"
        check_sizes(where, **{name: getattr(self, name) for name in MODEL_SIZES})
        check_sizes(where, 1, MAX_LAYERS, n_layers=self.n_layers)
        if self.sliding_window is not None:
            check_sizes(where, 2, sliding_window=self.sliding_window)
        if self.layer_kinds and (
            len(self.layer_order) != self.n_layers
            or not all(0 <= kind < len(self.layer_kinds) for kind in self.layer_order)
        ):
            raise BadInput(
                f"model {self.name}: layer_order must name one of {len(self.layer_kinds)} "
                f"layer_kinds for each of {self.n_layers} layers."
            )
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

    def shard(self, gpus: int, expert_gpus: int = 1) -> ModelSpec:
        """The part of the model that each of `gpus` GPUs holds under tensor parallelism.

        Query heads, MLPs, experts and vocabulary are divided. So are KV heads, as far as there are
        any to divide; with more GPUs than KV heads several GPUs hold the same one. The latents of
        MLA are the same on every GPU.

        Args:
            expert_gpus: each GPU holds whole routed experts, one part in so many; the other parts
                of `gpus` divide the width of an expert.

        Raises:
            BadInput: the heads or the experts cannot be divided evenly.
        """
        routed = self.routed_experts
        if not routed and expert_gpus > 1:
            raise BadInput(f"--ep(={expert_gpus}): {self.name} has no experts; leave it out.")
        if expert_gpus < 1 or gpus % expert_gpus:
            raise BadInput(f"--ep(={expert_gpus}) must divide --tp(={gpus}); give both the same.")
        for count in routed:
            if count % expert_gpus:
                raise BadInput(
                    f"--ep(={expert_gpus}) must divide the {count} routed experts of {self.name}."
                )
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
            self.moe,
            intermediate_size=ceil(self.moe.intermediate_size * expert_gpus / gpus),
            gpus=expert_gpus,
        )
        return replace(
            self,
            n_heads=self.n_heads // gpus,
            n_kv_heads=max(1, self.n_kv_heads // gpus),
            intermediate_size=ceil(self.intermediate_size / gpus),
            vocab_size=ceil(self.vocab_size / gpus),
            moe=moe,
            layer_kinds=tuple(kind.shard(gpus, expert_gpus) for kind in self.layer_kinds),
            tensor_parallel=gpus,
        )

    @property
    def routed_experts(self) -> set[int]:
        """Numbers of routed experts that layers have."""
        return {one.ffn.n_routed for one in self.kinds if isinstance(one.ffn, Experts)}

    @property
    def tensor_parallel_sizes(self) -> list[int]:
        """Numbers of GPUs, from 2, that the model can be divided over."""
        attentions = {one.attention for one in self.kinds}
        sizes = range(2, MAX_TENSOR_PARALLEL + 1)
        return [n for n in sizes if all(one.divides_over(n) for one in attentions)]

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Attention and FFN of each layer."""
        if self.layer_kinds:
            return tuple(self.layer_kinds[kind] for kind in self.layer_order)
        n_dense = 0 if self.moe is None else self.moe.n_dense_layers
        kinds: dict[tuple[int | None, bool], Layer] = {}
        return tuple(
            kinds.setdefault(key, self._uniform_layer(*key))
            for key in ((self.window(layer), layer < n_dense) for layer in range(self.n_layers))
        )

    def _uniform_layer(self, window: int | None, dense: bool) -> Layer:
        attention: FullAttention | MultiHeadLatent
        if self.mla is not None:
            attention = MultiHeadLatent(self.n_heads, self.mla)
        else:
            attention = FullAttention(self.n_heads, self.n_kv_heads, self.head_dim, window=window)
        moe = self.moe
        if moe is None or dense:
            return Layer(attention, Dense(self.intermediate_size, self.gated_mlp))
        experts = Experts(
            moe.n_routed_experts,
            moe.n_active_experts,
            moe.intermediate_size,
            moe.n_shared_experts * moe.intermediate_size,
            self.gated_mlp,
            gpus=moe.gpus,
        )
        return Layer(attention, experts)

    @property
    def groups(self) -> dict[Layer, list[int]]:
        """Layers of each kind, in order."""
        found: dict[Layer, list[int]] = {}
        for number, layer in enumerate(self.layers):
            found.setdefault(layer, []).append(number)
        return found

    @cached_property
    def kinds(self) -> tuple[Layer, ...]:
        """The different layers, apart from their windows: layers of one kind cost the same."""
        return tuple(dict.fromkeys(layer.without_window for layer in self.layers))

    @cached_property
    def kind_of(self) -> tuple[int, ...]:
        """For each layer, its place in `kinds`."""
        places = {kind: at for at, kind in enumerate(self.kinds)}
        return tuple(places[layer.without_window] for layer in self.layers)

    @property
    def assumed(self) -> bool:
        """Whether the config was read as one of another family, as `--assume-like` asks for."""
        return ASSUMED in self.name

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
        if self.layer_kinds:
            return self.layers[layer].attention.window_tokens
        return None if layer in self.full_attention_layers else self.sliding_window

    def span(self, layer: int) -> Span:
        """The part of the tokens before it that a token attends to in `layer`."""
        return self.layers[layer].attention.span if self.layer_kinds else Span(self.window(layer))

    def first_token(self, layer: int, past: int) -> int:
        """First past token that `layer` attends to from position `past`.

        A layer without K and V attends to none.
        """
        if self.layer_kinds:
            return self.layers[layer].attention.first_token(past)
        if self.sliding_window is None or layer in self.full_attention_layers:
            return 0
        return max(0, past + 1 - self.sliding_window)

    def layer_context(self, layer: int, past: int) -> int:
        """Cached rows that `layer` reads at position `past`: those of the tokens it attends to.

        They are fewer where an index chooses among them, or where a row stands for several tokens.
        """
        if not self.layer_kinds:
            return past - self.first_token(layer, past)
        return self.layers[layer].attention.read_rows(past) if self.loads_rows(layer) else 0

    def row_bytes(self, layer: int) -> int:
        """Bytes of a cached row of `layer`: K and V of one token, or what stands for them."""
        if self.layer_kinds:
            return self.layers[layer].attention.kv_size * self.element_bytes
        return self.kv_token_bytes

    @property
    def all_rows_bytes(self) -> int:
        """Bytes of one row of each layer, windows and compression aside."""
        return sum(self.row_bytes(layer) for layer in range(self.n_layers))

    def loads_rows(self, layer: int) -> bool:
        """Whether `layer` has rows of its own, which may be in host memory."""
        return not self.layer_kinds or self.layers[layer].attention.kv_size > 0

    def caches(self, layer: int) -> bool:
        """Whether `layer` leaves anything behind: rows, or a state."""
        one = self.layers[layer].attention
        return self.loads_rows(layer) or one.state_bytes(self.element_bytes) > 0

    def projects(self, layer: int) -> bool:
        """Whether rows of `layer` can be projected from X."""
        return not self.layer_kinds or self.layers[layer].attention.projects_from_x

    def splits(self, layer: int) -> bool:
        """Whether a step may recompute some rows of `layer` from X and load the others."""
        return not self.layer_kinds or self.layers[layer].attention.reads_rows_from_x

    def held_rows(self, layer: int, past: int) -> int:
        """Rows that are cached of `layer` for a token at position `past`, read by it or not."""
        attention = self.layers[layer].attention
        if not attention.chooses:
            return self.layer_context(layer, past)
        return attention.held_rows(past)

    @property
    def quantises_kv(self) -> bool:
        """Whether K and V can be quantised: heads of all tokens, in every layer that has any."""
        kinds = [one.attention for one in self.kinds if one.attention.kv_size]
        return all(isinstance(one, FullAttention) and not one.chooses for one in kinds)

    @property
    def host_kv_bits(self) -> int | None:
        """Bits of K and V in host memory that the checkpoint asks for; None for the dtype.

        Latents and chosen tokens are not quantised there.
        """
        return self.kv_bits if self.quantises_kv else None

    @property
    def moves_weights(self) -> bool:
        """Whether a schedule may load weights layer by layer: all layers have the same."""
        return not self.layer_kinds and self.moe is None

    @cached_property
    def state_bytes(self) -> int:
        """Bytes of the states of one sequence, in all layers."""
        size = self.element_bytes
        return sum(one.attention.state_bytes(size) for one in self.layers)

    def index_bytes(self, context: int) -> int:
        """Bytes of the index keys of a sequence of `context` tokens, in all layers."""
        return sum(one.attention.index_elements(context) for one in self.layers)

    @property
    def x_token_bytes(self) -> int:
        """Bytes of the attention input X of one token in one layer."""
        return self.hidden_size * self.element_bytes

    @property
    def has_stored_weights(self) -> bool:
        """Whether weights are stored in fewer bits than `dtype`, or with scales."""
        return self.weight_bits is not None or self.module_bits is not None

    def dequantised(self) -> ModelSpec:
        """The model with weights in its dtype, as device kernels compute with them."""
        return replace(self, weight_bits=None, module_bits=None, activation_bits=None)

    @property
    def bits(self) -> ModuleBits:
        """Bits of an element of the matrices of each group."""
        if self.module_bits is not None:
            return self.module_bits
        own = 8 * self.element_bytes
        layers = self.weight_bits or own
        return ModuleBits(layers, layers, layers, layers, own, own)

    @property
    def layer_weight_bytes(self) -> int:
        """Bytes of the largest layer's matrices, all experts included.

        Norms and biases are below a thousandth and not counted.
        """
        return max(self.layer_bytes(layer) for layer in set(self.layers))

    def layer_bytes(self, layer: Layer) -> int:
        """Bytes of the matrices of a layer, scales included."""
        return self._bytes_of(self._elements(layer))

    @property
    def kv_weight_bytes(self) -> int:
        """Bytes of the matrix that makes what one layer caches from X."""
        return int(self.kv_token_size * self.hidden_size * self.bits.attention / 8)

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of all layers, the embeddings and the output head."""
        return self._bytes_of(self.layer_elements + self._embedding_elements)

    def _elements(self, layer: Layer) -> Counter[str]:
        """Elements of a layer's matrices in each group of `ModuleBits`."""
        hidden = self.hidden_size
        ffn = layer.ffn.matrices(hidden)
        found = Counter({"attention": sum(layer.attention.matrices(hidden).values())})
        if isinstance(layer.ffn, Experts):
            found["experts"] = ffn.pop("experts")
            found["shared"] = sum(ffn.values())
        else:
            found["dense"] = sum(ffn.values())
        found["shared"] += layer.other_elements
        return found

    @cached_property
    def layer_elements(self) -> Counter[str]:
        """Elements of all layers' matrices in each group."""
        found: Counter[str] = Counter()
        for layer, numbers in self.groups.items():
            for group, count in self._elements(layer).items():
                found[group] += len(numbers) * count
        return found

    def _bytes_of(self, elements: Counter[str]) -> int:
        return int(sum(getattr(self.bits, group) * count for group, count in elements.items()) / 8)

    @property
    def _embedding_elements(self) -> Counter[str]:
        positions = 0 if self.rotary else self.max_positions
        head = self.vocab_size * self.hidden_size
        return Counter(
            embeddings=(self.vocab_size + positions) * self.hidden_size + self.other_embeddings,
            head=0 if self.tie_embeddings else head,
        )

    @property
    def n_parameters(self) -> int:
        return (self.layer_elements + self._embedding_elements).total()

    @property
    def active_parameters(self) -> int:
        """Parameters that one token passes through, counted as the model's publisher counts them.

        Some leave out the embedding of the tokens, of which a token reads one row.
        """
        hidden = self.hidden_size
        layers = sum(layer.active_elements(hidden) for layer in self.layers)
        uncounted = "experts" in self.layer_elements and not self.tie_embeddings
        table = uncounted and self.family.startswith(UNCOUNTED_EMBEDDINGS)
        return layers + self._embedding_elements.total() - table * self.vocab_size * hidden
