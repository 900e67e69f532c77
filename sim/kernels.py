"""The kinds of device kernels, and those of latent attention and mixtures of experts.

Letters in comments as in `sim.model_spec`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from sim.model_spec import LatentAttention, MixtureOfExperts, ModelSpec


@dataclass(frozen=True, slots=True)
class MatMul:
    """`[m, k] x [k, n]`."""

    m: int
    n: int
    k: int

    @property
    def flops(self) -> int:
        return 2 * self.m * self.n * self.k


@dataclass(frozen=True, slots=True)
class GroupedMatMul:
    """`rows` rows spread evenly over `groups` products with a `[k, n]` of their own each."""

    rows: int
    n: int
    k: int
    groups: float

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.n * self.k

    @property
    def one(self) -> MatMul:
        """The product of one group."""
        return MatMul(ceil(self.rows / self.groups), self.n, self.k)


@dataclass(frozen=True, slots=True)
class DecodeAttention:
    """One query token of `batch` sequences over `context` keys."""

    batch: int
    context: int

    def flops(self, model: ModelSpec) -> int:
        """Products of queries and keys, and of weights and values.

        With latent attention keys have r + d_r elements and values are the r of the latent.
        """
        per_key = 4 * model.q_size
        if model.mla is not None:
            latent = model.mla.kv_lora_rank
            per_key = 2 * model.n_heads * (2 * latent + model.mla.qk_rope_head_dim)
        return self.batch * self.context * per_key


@dataclass(frozen=True, slots=True)
class Pass:
    """One element-wise kernel that reads and writes `bytes` in total.

    Args:
        plain: it copies and computes nothing.
    """

    bytes: int
    plain: bool = False


Kernel = MatMul | GroupedMatMul | DecodeAttention | Pass


def rotary_passes(n_bytes: int) -> list[Kernel]:
    """Negate one half, join the halves, scale both terms, add; over heads of `n_bytes` in total."""
    return [Pass(part * n_bytes) for part in (1, 2, 2, 2, 3)]


def latent_kernels(op: str, attended: DecodeAttention, rows: int, model: ModelSpec) -> list[Kernel]:
    """Kernels of `qkv`, `recompute` and `attention` with latent attention, weights absorbed.

    K and V of a head are never built: a query is multiplied by the key half of W^UKV (d_n to r
    elements a head) before it meets the latents, and the mixed latents by the value half (r to
    d_v) behind them. Each product of all heads is priced as one of the same FLOPs and weights.
    Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1.2 and appendix C.
    """
    mla, size, heads = model.mla, model.element_bytes, model.n_heads
    if mla is None:
        raise ValueError(f"{model.name} has no latent attention")
    hidden = rows * model.x_token_bytes
    if op == "attention":
        return [
            attended,
            MatMul(rows, heads * mla.v_head_dim, mla.kv_lora_rank),
            MatMul(rows, model.hidden_size, heads * mla.v_head_dim),
            Pass(3 * hidden),
        ]
    latent = [
        MatMul(rows, model.kv_token_size, model.hidden_size),
        Pass(2 * rows * mla.kv_lora_rank * size),
        *rotary_passes(rows * mla.qk_rope_head_dim * size),
    ]
    if op == "recompute":
        return latent
    return [
        Pass(2 * hidden),
        Pass(2 * hidden),
        *_latent_queries(mla, rows, model),
        *rotary_passes(rows * heads * mla.qk_rope_head_dim * size),
        MatMul(rows, heads * mla.qk_nope_head_dim, mla.kv_lora_rank),
        *latent,
        Pass(2 * rows * model.kv_token_bytes),
    ]


def _latent_queries(mla: LatentAttention, rows: int, model: ModelSpec) -> list[Kernel]:
    rank = mla.q_lora_rank
    if rank is None:
        return [MatMul(rows, model.q_size, model.hidden_size)]
    normed = Pass(2 * rows * rank * model.element_bytes)
    return [MatMul(rows, rank, model.hidden_size), normed, MatMul(rows, model.q_size, rank)]


def expert_kernels(moe: MixtureOfExperts, rows: int, model: ModelSpec) -> list[Kernel]:
    """Kernels of the MLP of a layer with experts, for `rows` tokens.

    Read are the weights of the experts that the tokens touch on average, computed the FLOPs of
    those each token passes through. Dense layers are priced like the others: by design their one
    MLP is about as wide as a token's experts (DeepSeek-V2-Lite 10944 and 8 x 1408, V3 18432 and
    9 x 2048).
    """
    h, f = model.hidden_size, moe.intermediate_size
    routed, touched = rows * moe.n_active_experts, moe.touched_experts(rows)
    up, down = GroupedMatMul(routed, f, h, touched), GroupedMatMul(routed, h, f, touched)
    shared: list[Kernel] = []
    if moe.n_shared_experts:
        width = moe.n_shared_experts * f
        shared = [MatMul(rows, width, h), MatMul(rows, width, h), MatMul(rows, h, width)]
    n_passed = moe.n_active_experts + moe.n_shared_experts
    hidden, inner = rows * model.x_token_bytes, rows * n_passed * f * model.element_bytes
    mixed = Pass((moe.n_active_experts + 2) * hidden)
    return [
        Pass(2 * hidden),
        MatMul(rows, moe.n_routed_experts, h),
        *(up, up),
        *shared,
        Pass(2 * inner),
        Pass(3 * inner),
        down,
        mixed,
        Pass(3 * hidden),
    ]
