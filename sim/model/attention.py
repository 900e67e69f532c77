"""Attention by K and V, or a latent, of each token: what it caches, reads and multiplies.

Sizes are counts of elements. Letters in comments as in `sim.model.spec`. A token leaves a row of K
and V (or a latent) and keys of an index behind, a sequence leaves a state behind.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

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


class Span(NamedTuple):
    """The part of the tokens before it that a token attends to.

    Args:
        window: tokens that it attends to at most, itself included.
        chunked: the window is the chunk that it is in.
    """

    window: int | None = None
    chunked: bool = False


ALL = Span()


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

    @property
    def score_flops(self) -> int:
        """FLOPs of one query token on one key."""
        return 2 * self.n_heads * self.head_dim

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
    def span(self) -> Span:
        """The part of the tokens before it that a token attends to."""
        return Span(self.window_tokens)

    @property
    def projects_from_x(self) -> bool:
        """Whether what a token caches is a projection of this layer's input X of that token."""
        return self.kv_size > 0

    @property
    def chooses(self) -> bool:
        """Whether an index chooses the rows that a token attends to."""
        return False

    @property
    def reads_rows_from_x(self) -> bool:
        """Whether a decode step can project the rows that it reads from X instead of loading them.

        The rows must be known before the layer runs.
        """
        return self.projects_from_x and not self.chooses

    def first_token(self, past: int) -> int:
        """First past token that the token at position `past` attends to.

        A window of w tokens counts the token at `past` itself, as in `transformers`: key j is
        seen from query i where i - w < j <= i.
        """
        window = self.window_tokens
        return 0 if window is None else max(0, past + 1 - window)

    def read_rows(self, past: int) -> int:
        """Cached rows that the token at position `past` reads, at most `past`."""
        return past - self.first_token(past)

    @property
    @abstractmethod
    def projected_size(self) -> int:
        """Elements that the projections make of one token: queries, and what it caches."""

    @property
    def row_size(self) -> int:
        """Elements of a row that is read, of this layer's cache or of another's."""
        return self.kv_size

    @property
    def row_flops(self) -> int:
        """FLOPs of one query token of all heads on one row."""
        return 0

    @property
    def prefill_row_flops(self) -> int:
        """As `row_flops`, where many query tokens share the rows."""
        return self.row_flops

    def kv_elements(self, context: int) -> int:
        """Elements cached of a sequence of `context` tokens."""
        held = context if self.window_tokens is None else min(context, self.window_tokens)
        return held * self.kv_size

    def held_rows(self, context: int) -> int:
        """Rows cached of a sequence of `context` tokens."""
        return self.kv_elements(context) // self.kv_size if self.kv_size else 0

    def span_elements(self, start: int, stop: int, end: int) -> int:  # noqa: ARG002
        """Elements cached of the tokens [start, stop) of a sequence of `end` tokens.

        A window is not cut.
        """
        return (stop - start) * self.kv_size

    def index_span_elements(self, start: int, stop: int) -> int:
        """Elements of index keys cached of the tokens [start, stop)."""
        return self.index_elements(stop) - self.index_elements(start)

    def index_elements(self, context: int) -> int:
        """Elements of index keys cached of a sequence of `context` tokens."""
        return context * self.index_size

    def state_bytes(self, element_bytes: int) -> int:  # noqa: ARG002
        """Bytes of the state of one sequence, whatever its length."""
        return 0

    @abstractmethod
    def divides_over(self, gpus: int) -> bool:
        """Whether its heads can be divided evenly over so many GPUs."""

    @abstractmethod
    def shard(self, gpus: int) -> Attention:
        """The part of one of `gpus` GPUs. Latents, and an index, are the same on every GPU."""


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
        return 0 if self.shares_kv else self.row_size

    @property
    def q_size(self) -> int:
        """Width of the queries."""
        return self.n_heads * self.head_dim

    @property
    def projected_size(self) -> int:
        return self.q_size * (1 + self.gated) + self.kv_size

    @property
    def k_size(self) -> int:
        """Width of the keys."""
        return self.n_kv_heads * self.head_dim

    @property
    def out_size(self) -> int:
        """Width of the mixed values of all heads."""
        return self.n_heads * (self.v_head_dim or self.head_dim)

    @property
    def row_size(self) -> int:
        return self.n_kv_heads * (self.head_dim + (self.v_head_dim or self.head_dim))

    @property
    def row_flops(self) -> int:
        return 2 * (self.q_size + self.out_size)

    @property
    def index_size(self) -> int:
        return self.index.key_size if self.index is not None else 0

    @property
    def chooses(self) -> bool:
        return self.index is not None

    @property
    def window_tokens(self) -> int | None:
        return self.window

    @property
    def span(self) -> Span:
        return Span(self.window, self.chunked)

    def first_token(self, past: int) -> int:
        if self.window is not None and self.chunked:
            return past // self.window * self.window
        return Attention.first_token(self, past)

    def read_rows(self, past: int) -> int:
        rows = Attention.read_rows(self, past)
        return rows if self.index is None else min(rows, self.index.top_tokens)

    def divides_over(self, gpus: int) -> bool:
        return not self.n_heads % gpus and not (self.n_kv_heads % gpus and gpus % self.n_kv_heads)

    def shard(self, gpus: int) -> FullAttention:
        return replace(
            self, n_heads=self.n_heads // gpus, n_kv_heads=max(1, self.n_kv_heads // gpus)
        )


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
    def q_size(self) -> int:
        """Width of the queries."""
        return self.n_heads * (self.sizes.qk_nope_head_dim + self.sizes.qk_rope_head_dim)

    @property
    def projected_size(self) -> int:
        return self.q_size + self.kv_size

    @property
    def row_flops(self) -> int:
        """Keys have r + d_r elements, and values are the r of the latent."""
        return 2 * self.n_heads * (2 * self.sizes.kv_lora_rank + self.sizes.qk_rope_head_dim)

    @property
    def prefill_row_flops(self) -> int:
        """K and V of each head are built, once for all queries; chosen rows stay latents."""
        if self.chooses:
            return self.row_flops
        return 2 * (self.q_size + self.n_heads * self.sizes.v_head_dim)

    @property
    def index_size(self) -> int:
        return self.index.key_size if self.index is not None else 0

    @property
    def chooses(self) -> bool:
        return self.index is not None

    def read_rows(self, past: int) -> int:
        return past if self.index is None else min(past, self.index.top_tokens)

    def divides_over(self, gpus: int) -> bool:
        return not self.n_heads % gpus

    def shard(self, gpus: int) -> MultiHeadLatent:
        return replace(self, n_heads=self.n_heads // gpus)
