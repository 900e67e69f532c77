"""Attention by a cache that is not a row for each token: compressed entries, a state, or none."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from sim.model.attention import Attention, Matrices, SparseIndex, check_sizes


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
    def overlap(self) -> int:
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
            made["compressor"] = self.overlap * self.head_dim * (2 * hidden + self.ratio)
        if self.index is not None:
            queries = self.query_rank * self.index.n_heads * self.index.head_dim
            made["indexer.q_b_proj"] = queries + hidden * self.index.n_heads
            pooled = self.overlap * self.index.head_dim
            made["indexer.compressor"] = pooled * (2 * hidden + self.ratio)
        return made

    @property
    def kv_size(self) -> int:
        return self.head_dim

    @property
    def projected_size(self) -> int:
        return (self.n_heads + 1) * self.head_dim

    @property
    def row_flops(self) -> int:
        return 4 * self.n_heads * self.head_dim

    @property
    def window_tokens(self) -> int | None:
        return None if self.ratio else self.window

    @property
    def projects_from_x(self) -> bool:
        return not self.ratio  # an entry needs the X of all its tokens

    @property
    def chooses(self) -> bool:
        return self.index is not None

    def entries(self, tokens: int) -> int:
        """Entries of the first `tokens` tokens."""
        return tokens // self.ratio if self.ratio else 0

    def chosen_entries(self, tokens: int) -> int:
        """Entries of the first `tokens` tokens that a query attends to."""
        entries = self.entries(tokens)
        return entries if self.index is None else min(entries, self.index.top_tokens)

    def read_rows(self, past: int) -> int:
        return min(past, min(past, self.window - 1) + self.chosen_entries(past))

    def kv_elements(self, context: int) -> int:
        return (min(context, self.window) + self.entries(context)) * self.head_dim

    def span_elements(self, start: int, stop: int, end: int) -> int:
        windowed = max(0, stop - max(start, end - self.window))
        return (windowed + self.entries(stop) - self.entries(start)) * self.head_dim

    def index_elements(self, context: int) -> int:
        return self.entries(context) * self.index.key_size if self.index is not None else 0

    def divides_over(self, gpus: int) -> bool:
        return not self.n_heads % gpus and not self.out_groups % gpus

    def shard(self, gpus: int) -> CompressedAttention:
        return replace(self, n_heads=self.n_heads // gpus, out_groups=self.out_groups // gpus)


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
    def inner_size(self) -> int:
        """Width of the values, and of the output gate."""
        return self.n_value_heads * self.value_head_dim

    @property
    def channels(self) -> int:
        """Inputs of the convolution."""
        return 2 * self.n_key_heads * self.key_head_dim + self.inner_size

    def matrices(self, hidden: int) -> Matrices:
        inner, heads = self.inner_size, self.n_value_heads
        conv = {"conv1d": self.channels * self.conv_kernel}
        if self.rule == "Mamba-2":
            made = self.channels + inner + heads
            return {"in_proj": hidden * made, "out_proj": inner * hidden, **conv}
        if self.rule == "gated delta":
            return {
                "in_proj_qkv": hidden * self.channels,
                "in_proj_z": hidden * inner,
                "in_proj_ba": 2 * hidden * heads,
                "out_proj": inner * hidden,
                **conv,
            }
        rank = self.value_head_dim
        low_rank = hidden * rank + rank * inner
        return {
            "qkv_proj": hidden * self.channels,
            "f_proj": low_rank,
            "b_proj": hidden * heads,
            "g_proj": hidden * inner if self.full_gate else low_rank,
            "o_proj": inner * hidden,
            **conv,
        }

    @property
    def projected_size(self) -> int:
        return self.channels + self.inner_size

    @property
    def state_size(self) -> int:
        """Elements of the matrices of all value heads."""
        return self.inner_size * self.key_head_dim

    def state_bytes(self, element_bytes: int) -> int:
        conv = self.channels * (self.conv_kernel - 1) * element_bytes
        return conv + self.state_size * self.state_bits // 8

    def first_token(self, past: int) -> int:
        return past

    def divides_over(self, gpus: int) -> bool:
        keys = self.n_key_heads
        return not self.n_value_heads % gpus and not (keys % gpus and gpus % keys)

    def shard(self, gpus: int) -> LinearState:
        return replace(
            self,
            n_key_heads=max(1, self.n_key_heads // gpus),
            n_value_heads=self.n_value_heads // gpus,
        )


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

    @property
    def projected_size(self) -> int:
        return 0

    def matrices(self, hidden: int) -> Matrices:
        return {"linear_attn": hidden * hidden} if self.linear else {}

    def first_token(self, past: int) -> int:
        return past

    def divides_over(self, gpus: int) -> bool:  # noqa: ARG002
        return True

    def shard(self, gpus: int) -> NoAttention:  # noqa: ARG002
        return self
