"""The kinds of a layer: what its attention caches, and the matrices of its attention and FFN.

Sizes are counts of elements. Letters in comments as in `sim.model.spec`. A token leaves K and V
(or a latent) and keys of an index behind, a sequence leaves a state behind.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from sim.errors import BadInput
from sim.files import STRICT_KEYS

MAX_SIZE = 2**31
"""Limit of the sizes in a config, far above those of any model."""

Matrices = dict[str, int]
"""Elements of each matrix, by the name it mostly has in a checkpoint."""


def check_sizes(where: str, least: int = 1, most: int = MAX_SIZE, **sizes: object) -> None:
    """Refuse a size that is not a whole number from `least` to `most`."""
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise BadInput(f"{where}: {name}(={value!r}) must be an integer > {least - 1}.")
        if value > most:
            raise BadInput(f"{where}: {name}(={value!r}) must be at most {most:,}.")


@dataclass(frozen=True, slots=True)
class SparseIndex:
    """Keys by which a query chooses the tokens that it attends to.

    Source: DeepSeek-V3.2 (arXiv 2512.02556), section 2.1.

    Args:
        n_heads: query heads of the index; all share one key a token.
        head_dim: elements of a key.
        top_tokens: tokens that a query attends to.
        query_rank: elements that index queries are projected from; None for the hidden state.
        shared: the choice of an earlier layer is used again, so that nothing is cached.
    """

    __pydantic_config__ = STRICT_KEYS

    n_heads: int
    head_dim: int
    top_tokens: int
    query_rank: int | None = None
    shared: bool = False

    def __post_init__(self) -> None:
        sizes = {"n_heads": self.n_heads, "head_dim": self.head_dim, "top_tokens": self.top_tokens}
        check_sizes("index", **sizes)

    @property
    def key_size(self) -> int:
        """Elements that a token caches."""
        return 0 if self.shared else self.head_dim

    def matrices(self, hidden: int) -> Matrices:
        if self.shared:
            return {}
        queries = (self.query_rank or hidden) * self.n_heads * self.head_dim
        made = {"indexer.wq_b": queries, "indexer.wk": hidden * self.head_dim}
        if self.query_rank is not None:
            made["indexer.weights_proj"] = hidden * self.n_heads
        return made


@dataclass(frozen=True, slots=True)
class Attention(ABC):
    """What all kinds of attention have; a kind overrides what differs."""

    __pydantic_config__ = STRICT_KEYS

    @property
    @abstractmethod
    def text(self) -> str:
        """The kind in words."""

    @abstractmethod
    def matrices(self, hidden: int) -> Matrices:
        """Elements of the matrices, for a hidden size."""

    @property
    def kv_size(self) -> int:
        """Elements that one token caches: K and V, or a latent."""
        return 0

    @property
    def index_size(self) -> int:
        """Elements of index keys that one token caches."""
        return 0

    @property
    def window_tokens(self) -> int | None:
        """Tokens that are held at most, None without a limit."""
        return None

    @property
    def projects_from_x(self) -> bool:
        """Whether what a token caches is a projection of this layer's input X of that token."""
        return self.kv_size > 0

    def first_token(self, past: int) -> int:
        """First past token that the token at position `past` attends to."""
        window = self.window_tokens
        return 0 if window is None else max(0, past + 1 - window)

    def kv_elements(self, context: int) -> int:
        """Elements cached of a sequence of `context` tokens."""
        held = context if self.window_tokens is None else min(context, self.window_tokens)
        return held * self.kv_size

    def index_elements(self, context: int) -> int:
        """Elements of index keys cached of a sequence of `context` tokens."""
        return context * self.index_size

    def state_bytes(self, element_bytes: int) -> int:  # noqa: ARG002
        """Bytes of the state of one sequence, whatever its length."""
        return 0


@dataclass(frozen=True, slots=True)
class FullAttention(Attention):
    """K and V of each KV head: MHA, GQA or MQA, of all tokens or of the last ones.

    Args:
        v_head_dim: elements of a value head, where it differs from `head_dim`.
        window: tokens that are attended to, the new one included; None for all.
        chunked: the window is the chunk of `window` tokens that the token is in.
        shares_kv: K and V are those of an earlier layer.
        k_is_v: K and V come from one matrix.
        gated: a second product of the size of the queries gates the output.
        index: a choice of the tokens that are attended to.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    v_head_dim: int | None = None
    window: int | None = None
    chunked: bool = False
    shares_kv: bool = False
    k_is_v: bool = False
    gated: bool = False
    index: SparseIndex | None = None
    kind: Literal["full"] = "full"

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("n_heads", "n_kv_heads", "head_dim")}
        check_sizes("attention", **sizes)
        if self.window is not None:
            check_sizes("attention", 2, window=self.window)
        if self.n_heads % self.n_kv_heads:
            raise BadInput(
                f"attention: n_heads(={self.n_heads}) must be a multiple of "
                f"n_kv_heads(={self.n_kv_heads})."
            )

    @property
    def text(self) -> str:
        if self.shares_kv:
            return "full, KV of an earlier layer"
        if self.window is not None:
            return f"{'chunks' if self.chunked else 'window'} of {self.window:,} tokens"
        return "full, sparse index" if self.index is not None else "full"

    def matrices(self, hidden: int) -> Matrices:
        values = self.v_head_dim or self.head_dim
        made = {
            "q_proj": hidden * self.n_heads * self.head_dim * (1 + self.gated),
            "o_proj": hidden * self.n_heads * values,
        }
        if not self.shares_kv:
            made["k_proj"] = hidden * self.n_kv_heads * self.head_dim
            if not self.k_is_v:
                made["v_proj"] = hidden * self.n_kv_heads * values
        return made | (self.index.matrices(hidden) if self.index is not None else {})

    @property
    def kv_size(self) -> int:
        if self.shares_kv:
            return 0
        return self.n_kv_heads * (self.head_dim + (self.v_head_dim or self.head_dim))

    @property
    def index_size(self) -> int:
        return self.index.key_size if self.index is not None else 0

    @property
    def window_tokens(self) -> int | None:
        return self.window

    def first_token(self, past: int) -> int:
        if self.window is not None and self.chunked:
            return past // self.window * self.window
        return Attention.first_token(self, past)


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Sizes of multi-head latent attention (MLA): one latent and one rotary key for all heads.

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
        sizes = {
            "kv_lora_rank": self.kv_lora_rank,
            "qk_rope_head_dim": self.qk_rope_head_dim,
            "qk_nope_head_dim": self.qk_nope_head_dim,
            "v_head_dim": self.v_head_dim,
        }
        if self.q_lora_rank is not None:
            sizes["q_lora_rank"] = self.q_lora_rank
        check_sizes("model", **sizes)


@dataclass(frozen=True, slots=True)
class MultiHeadLatent(Attention):
    """Latent attention: a token caches a latent and a rotary key, whatever the number of heads.

    Args:
        gated: a product of the size of the values gates the output.
        index: a choice of the tokens that are attended to.
    """

    n_heads: int
    sizes: LatentAttention
    gated: bool = False
    index: SparseIndex | None = None
    kind: Literal["latent"] = "latent"

    def __post_init__(self) -> None:
        check_sizes("attention", n_heads=self.n_heads)

    @property
    def text(self) -> str:
        return "latent" if self.index is None else "latent, sparse index"

    def matrices(self, hidden: int) -> Matrices:
        mla, heads = self.sizes, self.n_heads
        queries = heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim)
        made = {
            "kv_a_proj_with_mqa": hidden * self.kv_size,
            "kv_b_proj": mla.kv_lora_rank * heads * (mla.qk_nope_head_dim + mla.v_head_dim),
            "o_proj": heads * mla.v_head_dim * hidden,
        }
        if mla.q_lora_rank is None:
            made["q_proj"] = hidden * queries
        else:
            made["q_a_proj"] = hidden * mla.q_lora_rank
            made["q_b_proj"] = mla.q_lora_rank * queries
        if self.gated:
            made["g_proj"] = hidden * heads * mla.v_head_dim
        return made | (self.index.matrices(hidden) if self.index is not None else {})

    @property
    def kv_size(self) -> int:
        return self.sizes.kv_lora_rank + self.sizes.qk_rope_head_dim

    @property
    def index_size(self) -> int:
        return self.index.key_size if self.index is not None else 0


@dataclass(frozen=True, slots=True)
class CompressedAttention(Attention):
    """One KV head of the last tokens, and one entry for each `ratio` tokens before them.

    K is V. With an index, which has entries of its own, a query attends to `top_tokens` entries.
    Source: DeepSeek-V4's config.json and its model in transformers 5.

    Args:
        head_dim: elements of an entry.
        window: last tokens that are held as they are.
        ratio: tokens of one entry; 0 where there are none.
        query_rank: elements that queries pass through.
        out_groups, out_rank: parts of the output's heads, and elements each is reduced to.
    """

    n_heads: int
    head_dim: int
    window: int
    ratio: int
    query_rank: int
    out_groups: int
    out_rank: int
    index: SparseIndex | None = None
    kind: Literal["compressed"] = "compressed"

    def __post_init__(self) -> None:
        names = ("n_heads", "head_dim", "window", "query_rank", "out_groups", "out_rank")
        check_sizes("attention", **{name: getattr(self, name) for name in names})
        check_sizes("attention", 0, ratio=self.ratio)

    @property
    def text(self) -> str:
        if not self.ratio:
            return f"window of {self.window:,} tokens"
        index = ", sparse index" if self.index is not None else ""
        return f"compressed {self.ratio} to 1{index}"

    @property
    def _overlap(self) -> int:
        """Entries of layers with an index pool twice their tokens, by two sets of weights."""
        return 1 if self.index is None else 2

    def matrices(self, hidden: int) -> Matrices:
        heads = self.n_heads * self.head_dim
        made = {
            "q_a_proj": hidden * self.query_rank,
            "q_b_proj": self.query_rank * heads,
            "kv_proj": hidden * self.head_dim,
            "o_a_proj": heads * self.out_rank,
            "o_b_proj": self.out_groups * self.out_rank * hidden,
        }
        if self.ratio:
            made["compressor"] = self._overlap * self.head_dim * (2 * hidden + self.ratio)
        if self.index is not None:
            queries = self.query_rank * self.index.n_heads * self.index.head_dim
            made["indexer.q_b_proj"] = queries + hidden * self.index.n_heads
            pooled = self._overlap * self.index.head_dim
            made["indexer.compressor"] = pooled * (2 * hidden + self.ratio)
        return made

    @property
    def kv_size(self) -> int:
        return self.head_dim

    @property
    def window_tokens(self) -> int | None:
        return None if self.ratio else self.window

    @property
    def projects_from_x(self) -> bool:
        return not self.ratio  # an entry needs the X of all its tokens

    def kv_elements(self, context: int) -> int:
        entries = context // self.ratio if self.ratio else 0
        return (min(context, self.window) + entries) * self.head_dim

    def index_elements(self, context: int) -> int:
        return context // self.ratio * self.index.key_size if self.index is not None else 0


LinearRule = Literal["gated delta", "KDA", "Mamba-2"]


@dataclass(frozen=True, slots=True)
class LinearState(Attention):
    """Attention by a state of constant size instead of K and V of each token.

    A layer holds, of each sequence, one matrix of key x value elements a value head, and the last
    inputs of a short convolution. Only computing all tokens in turn makes a state from X.
    Sources: Gated DeltaNet (arXiv 2412.06464), Kimi Linear (2510.26692), Mamba-2 (2405.21060).

    Args:
        n_key_heads, key_head_dim: of Mamba-2 its groups, and the state's size.
        conv_kernel: tokens that the convolution spans.
        full_gate: KDA's output gate is one matrix instead of two of low rank.
        state_bits: of an element of the matrix; the convolution's inputs have the model's dtype.
    """

    rule: LinearRule
    n_key_heads: int
    key_head_dim: int
    n_value_heads: int
    value_head_dim: int
    conv_kernel: int
    full_gate: bool = False
    state_bits: int = 32
    kind: Literal["linear"] = "linear"

    def __post_init__(self) -> None:
        names = ("n_key_heads", "key_head_dim", "n_value_heads", "value_head_dim", "conv_kernel")
        check_sizes("attention", **{name: getattr(self, name) for name in names})

    @property
    def text(self) -> str:
        return f"linear state ({self.rule})"

    @property
    def _inner(self) -> int:
        return self.n_value_heads * self.value_head_dim

    @property
    def _channels(self) -> int:
        """Inputs of the convolution."""
        return 2 * self.n_key_heads * self.key_head_dim + self._inner

    def matrices(self, hidden: int) -> Matrices:
        inner, heads = self._inner, self.n_value_heads
        conv = {"conv1d": self._channels * self.conv_kernel}
        if self.rule == "Mamba-2":
            made = self._channels + inner + heads
            return {"in_proj": hidden * made, "out_proj": inner * hidden, **conv}
        if self.rule == "gated delta":
            return {
                "in_proj_qkv": hidden * self._channels,
                "in_proj_z": hidden * inner,
                "in_proj_ba": 2 * hidden * heads,
                "out_proj": inner * hidden,
                **conv,
            }
        rank = self.value_head_dim
        low_rank = hidden * rank + rank * inner
        return {
            "qkv_proj": hidden * self._channels,
            "f_proj": low_rank,
            "b_proj": hidden * heads,
            "g_proj": hidden * inner if self.full_gate else low_rank,
            "o_proj": inner * hidden,
            **conv,
        }

    def state_bytes(self, element_bytes: int) -> int:
        conv = self._channels * (self.conv_kernel - 1) * element_bytes
        return conv + self._inner * self.key_head_dim * self.state_bits // 8


@dataclass(frozen=True, slots=True)
class NoAttention(Attention):
    """A layer of an FFN alone, or of an attention replaced by one matrix.

    Args:
        linear: whether there is such a matrix.
    """

    linear: bool = False
    kind: Literal["none"] = "none"

    @property
    def text(self) -> str:
        return "no attention"

    def matrices(self, hidden: int) -> Matrices:
        return {"linear_attn": hidden * hidden} if self.linear else {}


@dataclass(frozen=True, slots=True)
class Dense:
    """One MLP of the given width, with a gate (three matrices) or without; width 0 is none."""

    __pydantic_config__ = STRICT_KEYS

    width: int
    gated: bool = True
    kind: Literal["dense"] = "dense"

    def __post_init__(self) -> None:
        check_sizes("FFN", 0, width=self.width)

    @property
    def text(self) -> str:
        return f"dense, {self.width:,} wide" if self.width else "no FFN"

    def matrices(self, hidden: int) -> Matrices:
        one = hidden * self.width
        made = {"up_proj": one, "down_proj": one} | ({"gate_proj": one} if self.gated else {})
        return made if self.width else {}

    def active_elements(self, hidden: int) -> int:
        """Elements that one token passes through."""
        return sum(self.matrices(hidden).values())


@dataclass(frozen=True, slots=True)
class Experts:
    """MLPs of which each token passes through a few: routed ones it chooses, a shared one always.

    Args:
        n_routed: experts to choose from.
        n_active: routed experts that a token passes through.
        width: of one routed expert.
        shared_width: of all MLPs that every token passes through together; 0 for none.
        latent: elements that a token is reduced to before its routed experts; None for none.
    """

    __pydantic_config__ = STRICT_KEYS

    n_routed: int
    n_active: int
    width: int
    shared_width: int = 0
    gated: bool = True
    latent: int | None = None
    kind: Literal["experts"] = "experts"

    def __post_init__(self) -> None:
        check_sizes("experts", n_routed=self.n_routed, n_active=self.n_active, width=self.width)
        check_sizes("experts", 0, shared_width=self.shared_width)
        if self.n_active > self.n_routed:
            raise BadInput(
                f"experts: n_active(={self.n_active}) must be at most n_routed(={self.n_routed})."
            )

    @property
    def text(self) -> str:
        shared = f" and {self.shared_width:,} wide shared" if self.shared_width else ""
        return f"{self.n_active} of {self.n_routed} experts, {self.width:,} wide{shared}"

    def matrices(self, hidden: int) -> Matrices:
        parts = 3 if self.gated else 2
        made = {
            "experts": self.n_routed * parts * (self.latent or hidden) * self.width,
            "gate": hidden * self.n_routed,
        }
        if self.shared_width:
            made["shared_experts"] = parts * hidden * self.shared_width
        if self.latent is not None:
            made["latent_proj"] = 2 * hidden * self.latent
        return made

    def active_elements(self, hidden: int) -> int:
        """Elements that one token passes through."""
        made = self.matrices(hidden)
        return sum(made.values()) - made["experts"] * (self.n_routed - self.n_active) // (
            self.n_routed
        )


AnyAttention = FullAttention | MultiHeadLatent | CompressedAttention | LinearState | NoAttention


@dataclass(frozen=True, slots=True)
class Layer:
    """The attention and the FFN of a layer.

    Args:
        other_elements: of matrices that belong to neither, through which every token passes.
    """

    __pydantic_config__ = STRICT_KEYS

    attention: AnyAttention
    ffn: Dense | Experts
    other_elements: int = 0

    @property
    def text(self) -> str:
        """Both in words."""
        parts = [self.attention.text, self.ffn.text]
        return "; ".join(text for text in parts if not text.startswith("no "))

    def elements(self, hidden: int) -> int:
        """Of all matrices."""
        made = (*self.attention.matrices(hidden).values(), *self.ffn.matrices(hidden).values())
        return sum(made) + self.other_elements

    def active_elements(self, hidden: int) -> int:
        """Of the matrices that one token passes through."""
        attention = sum(self.attention.matrices(hidden).values())
        return attention + self.ffn.active_elements(hidden) + self.other_elements
