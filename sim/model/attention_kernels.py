"""Kernels of `qkv`, `recompute` and `attention` for each kind of attention.

`qkv` makes queries and the new token's row of the cache, `recompute` rows of past tokens from X,
and `attention` reads the rows, projects and adds the output. Letters as in `sim.model.spec`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sim.model.attention import FullAttention, MultiHeadLatent, SparseIndex
from sim.model.compressed import CompressedAttention, LinearState, NoAttention
from sim.model.kernels import (
    DecodeAttention,
    ElementwiseKernel,
    IndexedAttention,
    IndexScores,
    Kernel,
    MatMul,
    StateUpdate,
)
from sim.model.spec import ModelSpec

SCORE_BYTES = 4
"""Of the score of one index key."""

STATE_FLOPS = {"gated delta": 6, "KDA": 6, "Mamba-2": 4}
"""FLOPs of a token by element of the state: it is updated and read with the query, in delta rules
also with the key (arXiv 2412.06464, section 3; 2405.21060, section 6)."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one operation works on.

    Args:
        batch: sequences.
        n_tokens: new or past tokens of each.
        context: keys of each that the new token attends to, its own included.
    """

    model: ModelSpec
    batch: int
    n_tokens: int
    context: int

    @property
    def rows(self) -> int:
        return self.batch * self.n_tokens

    @property
    def hidden_bytes(self) -> int:
        return self.rows * self.model.x_token_bytes

    def bytes(self, size: int) -> int:
        """Of `size` elements of each token."""
        return self.rows * size * self.model.element_bytes

    def product(self, n: int, k: int) -> MatMul:
        """A product with a matrix of the attention, for each token."""
        return MatMul(self.rows, n, k, "attention")

    @property
    def normed_input(self) -> list[Kernel]:
        return [ElementwiseKernel(2 * self.hidden_bytes)] * 2

    def output(self, n: int) -> list[Kernel]:
        """Projection of `n` elements to the hidden state, and the addition."""
        normed = [ElementwiseKernel(2 * self.hidden_bytes)] if self.model.output_norms else []
        added = ElementwiseKernel(3 * self.hidden_bytes)
        return [self.product(self.model.hidden_size, n), *normed, added]


def attention_kernels(op: str, attention: object, work: Work) -> list[Kernel]:
    """Kernels of operation `op` of a layer with this attention."""
    return _OF_KIND[type(attention)](op, attention, work)


def rotary_passes(n_bytes: int) -> list[Kernel]:
    """Negate one half, join the halves, scale both terms, add; over heads of `n_bytes` in total."""
    return [ElementwiseKernel(part * n_bytes) for part in (1, 2, 2, 2, 3)]


def _heads(op: str, one: FullAttention, work: Work) -> list[Kernel]:
    model = work.model
    keys, queries = work.bytes(one.k_size), work.bytes(one.q_size)
    made = one.k_size if one.k_is_v else one.kv_size  # columns of the projection
    own_keys = [] if one.shares_kv else _norm_and_rotate(model, keys, in_place=True)
    match op:
        case "qkv":
            product = work.product(one.q_size * (1 + one.gated) + made, model.hidden_size)
            appended = [] if one.shares_kv else [ElementwiseKernel(2 * work.bytes(one.kv_size))]
            return [
                *work.normed_input,
                product,
                *appended,
                *own_keys,
                *_norm_and_rotate(model, queries, in_place=False),
                ElementwiseKernel(2 * queries),
                *_index_queries(one.index, work, model.hidden_size),
            ]
        case "recompute":
            return [work.product(made, model.hidden_size), *own_keys]
    gate = [ElementwiseKernel(3 * work.bytes(one.out_size))] if one.gated else []
    return [
        *_scores(one.index, work, work.context),
        DecodeAttention(work.batch, one.read_rows(work.context - 1) + 1, one),
        *gate,
        *work.output(one.out_size),
    ]


def _norm_and_rotate(model: ModelSpec, n_bytes: int, in_place: bool) -> list[Kernel]:
    """Passes of the head norm and the rotary embedding over heads of `n_bytes` in total."""
    norm = [ElementwiseKernel(2 * n_bytes)] * (1 + in_place) if model.qk_norm else []
    return [*norm, *(rotary_passes(n_bytes) if model.rotary else [])]


def _index_queries(index: SparseIndex | None, work: Work, rank: int) -> list[Kernel]:
    """Queries of an index from `rank` elements, its new key, and the weights of its heads."""
    if index is None or index.shared:
        return []
    hidden = work.model.hidden_size
    made: list[Kernel] = [
        work.product(index.n_heads * index.head_dim, index.query_rank or rank),
        work.product(index.head_dim, hidden),
    ]
    if index.query_rank is not None:
        made.append(work.product(index.n_heads, hidden))
    return made


def _scores(
    index: SparseIndex | None, work: Work, keys: int
) -> list[IndexScores | ElementwiseKernel]:
    """Scores of `keys` index keys, and the choice among them."""
    if index is None or index.shared:
        return []
    chosen = ElementwiseKernel(2 * SCORE_BYTES * work.batch * keys)
    return [IndexScores(work.batch, keys, index), chosen]


def _latent(op: str, one: MultiHeadLatent, work: Work) -> list[Kernel]:
    """Latent attention with absorbed weights.

    K and V of a head are never built: a query is multiplied by the key half of W^UKV (d_n to r
    elements a head) before it meets the latents, and the mixed latents by the value half (r to
    d_v) behind them. The products of all heads are costed as one with the same FLOPs and weights.
    Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1.2 and appendix C.
    """
    mla, heads, hidden = one.sizes, one.n_heads, work.model.hidden_size
    values = heads * mla.v_head_dim
    if op == "attention":
        gate: list[Kernel] = []
        if one.gated:
            gate = [work.product(values, hidden), ElementwiseKernel(3 * work.bytes(values))]
        return [
            _latent_reads(one, work),
            work.product(values, mla.kv_lora_rank),
            *gate,
            *work.output(values),
        ]
    latent = [
        work.product(one.kv_size, hidden),
        ElementwiseKernel(2 * work.bytes(mla.kv_lora_rank)),
        *rotary_passes(work.bytes(mla.qk_rope_head_dim)),
    ]
    if op == "recompute":
        return latent
    rank = mla.q_lora_rank
    queries: list[Kernel] = [work.product(one.q_size, rank or hidden)]
    if rank is not None:
        normed = ElementwiseKernel(2 * work.bytes(rank))
        queries = [work.product(rank, hidden), normed, *queries]
    return [
        *work.normed_input,
        *queries,
        *rotary_passes(work.bytes(heads * mla.qk_rope_head_dim)),
        work.product(heads * mla.qk_nope_head_dim, mla.kv_lora_rank),
        *latent,
        ElementwiseKernel(2 * work.bytes(one.kv_size)),
        *_index_queries(one.index, work, hidden),
    ]


def _latent_reads(one: MultiHeadLatent, work: Work) -> Kernel:
    attended = DecodeAttention(work.batch, one.read_rows(work.context - 1) + 1, one)
    scores = _scores(one.index, work, work.context)
    if not scores:
        return attended
    return IndexedAttention(work.batch, work.context, one, (*scores, attended))


def _compressed(op: str, one: CompressedAttention, work: Work) -> list[Kernel]:
    """A window and compressed entries of one KV head; each token takes part in making an entry."""
    hidden, heads = work.model.hidden_size, one.n_heads * one.head_dim
    if op == "attention":
        return [
            *_scores(one.index, work, one.entries(work.context)),
            DecodeAttention(work.batch, one.read_rows(work.context - 1) + 1, one),
            work.product(one.out_rank, heads),
            *work.output(one.out_groups * one.out_rank),
        ]
    row = [work.product(one.head_dim, hidden), *rotary_passes(work.bytes(one.head_dim))]
    if op == "recompute":
        return row
    made: list[Kernel] = [
        *work.normed_input,
        work.product(one.query_rank, hidden),
        ElementwiseKernel(2 * work.bytes(one.query_rank)),
        work.product(heads, one.query_rank),
        *rotary_passes(work.bytes(heads)),
        *row,
        ElementwiseKernel(2 * work.bytes(one.head_dim)),
    ]
    if one.ratio:
        made.append(work.product(2 * one.overlap * one.head_dim, hidden))
    if one.index is not None:
        made.append(work.product(one.index.n_heads * one.index.head_dim, one.query_rank))
        made.append(work.product(one.index.n_heads, hidden))
        made.append(work.product(2 * one.overlap * one.index.head_dim, hidden))
    return made


def _linear(op: str, one: LinearState, work: Work) -> list[Kernel]:
    """Projections and a short convolution, then the state's update, its gate and the output."""
    hidden, inner = work.model.hidden_size, one.inner_size
    if op == "attention":
        flops = work.rows * STATE_FLOPS[one.rule] * one.state_size
        state_bytes = 2 * work.batch * one.state_bytes(work.model.element_bytes)
        gated = [ElementwiseKernel(times * work.bytes(inner)) for times in (2, 3)]
        update = StateUpdate(one, work.rows, state_bytes, flops, work.batch)
        return [update, *gated, *work.output(inner)]
    heads = one.n_value_heads
    if one.rule == "Mamba-2":
        projected = [work.product(one.channels + inner + heads, hidden)]
    elif one.rule == "gated delta":
        projected = [work.product(one.channels + inner, hidden), work.product(2 * heads, hidden)]
    else:
        rank = one.value_head_dim
        low_rank = [work.product(rank, hidden), work.product(inner, rank)]
        gate = [work.product(inner, hidden)] if one.full_gate else low_rank
        projected = [work.product(one.channels, hidden), work.product(heads, hidden)]
        projected += [*low_rank, *gate]
    convolved = ElementwiseKernel((1 + one.conv_kernel) * work.bytes(one.channels))
    return [*work.normed_input, *projected, convolved]


def _none(op: str, one: NoAttention, work: Work) -> list[Kernel]:
    if op != "attention" or not one.linear:
        return []
    return [*work.normed_input, *work.output(work.model.hidden_size)]


_OF_KIND: dict[type, Callable[[str, Any, Work], list[Kernel]]] = {
    FullAttention: _heads,
    MultiHeadLatent: _latent,
    CompressedAttention: _compressed,
    LinearState: _linear,
    NoAttention: _none,
}
