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
from sim.model.layers import (
    Dense,
    Experts,
    FullAttention,
    LatentAttention,
    Layer,
    MultiHeadLatent,
    check_sizes,
)

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

RUNNABLE_FAMILIES = (
    *("opt", "llama", "mistral", "qwen2", "qwen3"),
    *("mixtral", "qwen2_moe", "qwen3_moe", "gemma2", "gemma3_text", "gpt_oss", "deepseek_v3"),
)
"""Families that there are device kernels for; the others can be planned and simulated."""

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


@dataclass(frozen=True)
class ModelSpec:
    """Everything about a model that decides bytes, FLOPs and which kernels run.

    A model is a list of `layers`. The sizes from `n_heads` to `moe` are the short description of
    layers that differ at most in their window and in dense or expert FFNs; only such models can be
    planned. Other models have `layer_kinds` and `layer_order`, and their sizes are those of most
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
        if self.moe is None and expert_gpus > 1:
            raise BadInput(f"--ep(={expert_gpus}): {self.name} has no experts; leave it out.")
        if expert_gpus < 1 or gpus % expert_gpus:
            raise BadInput(f"--ep(={expert_gpus}) must divide --tp(={gpus}); give both the same.")
        if self.moe is not None and self.moe.n_routed_experts % expert_gpus:
            raise BadInput(
                f"--ep(={expert_gpus}) must divide the {self.moe.n_routed_experts} routed experts "
                f"of {self.name}."
            )
        if gpus == 1:
            return self
        self.check_plannable()
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
        shared_width = moe.n_shared_experts * moe.intermediate_size
        held = moe.n_routed_experts // moe.gpus
        experts = Experts(
            held,
            min(moe.n_active_experts, held),
            moe.intermediate_size,
            shared_width,
            self.gated_mlp,
        )
        return Layer(attention, experts)

    @property
    def groups(self) -> dict[Layer, list[int]]:
        """Layers of each kind, in order."""
        found: dict[Layer, list[int]] = {}
        for number, layer in enumerate(self.layers):
            found.setdefault(layer, []).append(number)
        return found

    def check_plannable(self) -> None:
        """Refuse a model that only has a description.

        Raises:
            BadInput: names layers of a kind that plans do not know.
        """
        if not self.layer_kinds:
            return
        texts = [self._unplanned(layer) for layer in self.layers]
        text = next((one for one in texts if one), self.layers[-1].ffn.text)
        same = [number for number, one in enumerate(texts) if one == text] or [self.n_layers - 1]
        listed = ", ".join(map(str, same[:3])) + (" ..." if len(same) > 3 else "")
        raise BadInput(
            f"{self.name}: layers {listed} have {text}, which can be described but not planned "
            "yet; `kvoverlap models NAME` shows their bytes."
        )

    def _unplanned(self, layer: Layer) -> str:
        """What plans do not know about a layer's attention, in words; empty if there is nothing."""
        one = layer.attention
        if not isinstance(one, FullAttention):
            return "" if isinstance(one, MultiHeadLatent) and one.index is None else one.text
        if one.chunked or one.index is not None or one.shares_kv:
            return one.text
        if one.gated or one.k_is_v or one.v_head_dim is not None:
            return "a gated output" if one.gated else "values that are not like keys"
        heads = (one.n_heads, one.n_kv_heads, one.head_dim)
        return "" if heads == (self.n_heads, self.n_kv_heads, self.head_dim) else "other heads"

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

    def first_token(self, layer: int, past: int) -> int:
        """First past token that `layer` attends to from position `past`.

        A window of w tokens counts the token at `past` itself, as in `transformers`: key j is
        seen from query i where i - w < j <= i.
        """
        if self.layer_kinds:
            return self.layers[layer].attention.first_token(past)
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
