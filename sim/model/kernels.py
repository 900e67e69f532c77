"""The kinds of device kernels, and those of latent attention and mixtures of experts.

Letters in comments as in `sim.model.spec`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from sim.model.kv_format import QuantisedRow
from sim.model.layers import LatentAttention
from sim.model.spec import MixtureOfExperts, ModelSpec


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
    """One kernel over `groups` products with `[k, n]`, `rows` rows spread evenly over them."""

    rows: int
    n: int
    k: int
    groups: float

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.n * self.k

    @property
    def stacked(self) -> MatMul:
        """The product with the same FLOPs and weight bytes: all weights next to each other."""
        return MatMul(ceil(self.rows / self.groups), round(self.n * self.groups), self.k)


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
class ElementwiseKernel:
    """One element-wise kernel that reads and writes `bytes` in total.

    Args:
        plain: it copies and computes nothing.
    """

    bytes: int
    plain: bool = False


@dataclass(frozen=True, slots=True)
class ExpertsShape:
    """The routed experts of one layer on one GPU.

    Args:
        width: intermediate size of one expert.
        active: experts that a token passes through.
        routed: experts to choose from, on all GPUs.
        gpus: GPUs that the experts are divided over, which tokens choose evenly.
    """

    hidden: int
    width: int
    active: int
    routed: int
    gpus: int = 1

    def touched(self, n_tokens: float) -> float:
        """Experts of one GPU that at least one of `n_tokens` tokens passes through, on average.

        Each token chooses evenly and on its own: n (1 - (1 - active/n)^tokens).
        """
        untouched_frac: float = (1 - self.active / self.routed) ** n_tokens
        return self.routed * (1 - untouched_frac) / self.gpus

    def roofline_s(
        self, n_tokens: float, touched: float, bits: float, flops_per_s: float, bytes_per_s: float
    ) -> float:
        """The longer of the FLOPs and of reading the touched experts' weights, by rate."""
        weights = 3 * self.hidden * self.width  # gate, up and down
        flops = 2 * n_tokens * self.active * weights / self.gpus
        return max(flops / flops_per_s, touched * weights * bits / 8 / bytes_per_s)


@dataclass(frozen=True, slots=True)
class ExpertsKernel:
    """The routed experts of one layer on `rows` tokens: up, gate, activation and down.

    Runtimes fuse them. `parts` are the kernels that cost as much where fused ones were not timed.
    """

    rows: int
    shape: ExpertsShape
    parts: tuple[GroupedMatMul | ElementwiseKernel, ...]

    @property
    def flops(self) -> int:
        return sum(one.flops for one in self.parts if isinstance(one, GroupedMatMul))


@dataclass(frozen=True, slots=True)
class AllReduceKernel:
    """The sum of one tensor of `bytes` over the GPUs that share the model, on each of them."""

    bytes: int


Kernel = (
    MatMul | GroupedMatMul | DecodeAttention | ElementwiseKernel | ExpertsKernel | AllReduceKernel
)


def n_launches(launched: Sequence[Kernel]) -> int:
    """Kernels that the host launches; the parts of experts count one by one."""
    return sum(len(one.parts) if isinstance(one, ExpertsKernel) else 1 for one in launched)


def rotary_passes(n_bytes: int) -> list[Kernel]:
    """Negate one half, join the halves, scale both terms, add; over heads of `n_bytes` in total."""
    return [ElementwiseKernel(part * n_bytes) for part in (1, 2, 2, 2, 3)]


def latent_kernels(op: str, attended: DecodeAttention, rows: int, model: ModelSpec) -> list[Kernel]:
    """Kernels of `qkv`, `recompute` and `attention` with latent attention, weights absorbed.

    K and V of a head are never built: a query is multiplied by the key half of W^UKV (d_n to r
    elements a head) before it meets the latents, and the mixed latents by the value half (r to
    d_v) behind them. The products of all heads are costed as one with the same FLOPs and weights.
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
            ElementwiseKernel(3 * hidden),
        ]
    latent = [
        MatMul(rows, model.kv_token_size, model.hidden_size),
        ElementwiseKernel(2 * rows * mla.kv_lora_rank * size),
        *rotary_passes(rows * mla.qk_rope_head_dim * size),
    ]
    if op == "recompute":
        return latent
    return [
        ElementwiseKernel(2 * hidden),
        ElementwiseKernel(2 * hidden),
        *_latent_queries(mla, rows, model),
        *rotary_passes(rows * heads * mla.qk_rope_head_dim * size),
        MatMul(rows, heads * mla.qk_nope_head_dim, mla.kv_lora_rank),
        *latent,
        ElementwiseKernel(2 * rows * model.kv_token_bytes),
    ]


def _latent_queries(mla: LatentAttention, rows: int, model: ModelSpec) -> list[Kernel]:
    rank = mla.q_lora_rank
    if rank is None:
        return [MatMul(rows, model.q_size, model.hidden_size)]
    normed = ElementwiseKernel(2 * rows * rank * model.element_bytes)
    return [MatMul(rows, rank, model.hidden_size), normed, MatMul(rows, model.q_size, rank)]


def expert_kernels(moe: MixtureOfExperts, rows: int, model: ModelSpec) -> list[Kernel]:
    """Kernels of the MLP of a layer with experts, for `rows` tokens.

    Read are the weights of the experts that the tokens touch on average, computed the FLOPs of
    those each token passes through. Dense layers cost the same: by design their one
    MLP is about as wide as a token's experts (DeepSeek-V2-Lite 10944 and 8 x 1408, V3 18432 and
    9 x 2048).
    """
    h, f = model.hidden_size, moe.intermediate_size
    active = moe.n_active_experts
    shape = ExpertsShape(h, f, active, moe.n_routed_experts, gpus=moe.gpus)
    routed, touched = ceil(rows * active / moe.gpus), shape.touched(rows)
    up, down = GroupedMatMul(routed, f, h, touched), GroupedMatMul(routed, h, f, touched)
    hidden, inner = rows * model.x_token_bytes, rows * f * model.element_bytes
    shared: list[Kernel] = []
    if moe.n_shared_experts:
        width = moe.n_shared_experts * f
        shared = [MatMul(rows, width, h), MatMul(rows, width, h)]
        shared += [ElementwiseKernel(times * moe.n_shared_experts * inner) for times in (2, 3)]
        shared.append(MatMul(rows, h, width))
    activated = [ElementwiseKernel(times * active * inner // moe.gpus) for times in (2, 3)]
    mixed = ElementwiseKernel((active // moe.gpus + 2) * hidden)
    return [
        ElementwiseKernel(2 * hidden),
        MatMul(rows, moe.n_routed_experts, h),
        ExpertsKernel(rows, shape, (up, up, *activated, down, mixed)),
        *shared,
        ElementwiseKernel(3 * hidden),
    ]


def kernels(
    task_op: str,
    n_tokens: int,
    context: int,
    model: ModelSpec,
    batch: int,
    kv_bits: int | None = None,
) -> list[Kernel]:
    """The device kernels that one compute operation launches, on each GPU that shares the model.

    With tensor parallelism attention and MLP each end with an all-reduce of their output, which
    runs in order with the other kernels, as serving runtimes launch it.

    Args:
        n_tokens: tokens per sequence that the operation works on.
        context: keys per sequence that attention reads.
        kv_bits: of a quantised cache; there is nothing to quantise or dequantise in another.
    """
    launched = _kernels_of_one_gpu(task_op, n_tokens, context, model, batch, kv_bits)
    if model.tensor_parallel > 1 and task_op in ("attention", "mlp"):
        launched.append(AllReduceKernel(batch * n_tokens * model.x_token_bytes))
    return launched


def _kernels_of_one_gpu(
    task_op: str, n_tokens: int, context: int, model: ModelSpec, batch: int, kv_bits: int | None
) -> list[Kernel]:
    if task_op in ("quantise", "dequantise"):
        if kv_bits is None:
            return []
        row = QuantisedRow.of(model, kv_bits)
        if task_op == "quantise":
            return _quantise(row, batch * n_tokens, model.element_bytes)
        return _dequantise(row, batch * n_tokens, model.element_bytes)
    rows = batch * n_tokens
    if task_op == "place_kv":
        return [ElementwiseKernel(2 * rows * model.kv_token_bytes, plain=True)]
    if task_op == "recompute_resident":
        task_op = "recompute"
    if model.mla is not None and task_op in ("qkv", "recompute", "attention"):
        return latent_kernels(task_op, DecodeAttention(batch, context), rows, model)
    if model.moe is not None and task_op == "mlp":
        return expert_kernels(model.moe, rows, model)
    hidden = rows * model.x_token_bytes
    normed_output = [ElementwiseKernel(2 * hidden)] if model.output_norms else []
    keys = rows * model.kv_size * model.element_bytes
    queries = rows * model.q_size * model.element_bytes
    match task_op:
        case "embed":
            positions = [] if model.rotary else [ElementwiseKernel(3 * hidden)]
            return [ElementwiseKernel(2 * hidden), *positions, ElementwiseKernel(2 * hidden)]
        case "qkv":
            return [
                ElementwiseKernel(2 * hidden),
                ElementwiseKernel(2 * hidden),
                MatMul(rows, model.q_size + 2 * model.kv_size, model.hidden_size),
                ElementwiseKernel(4 * keys),
                *_norm_and_rotate(model, keys, in_place=True),
                *_norm_and_rotate(model, queries, in_place=False),
                ElementwiseKernel(2 * queries),
            ]
        case "recompute":
            product = MatMul(rows, 2 * model.kv_size, model.hidden_size)
            return [product, *_norm_and_rotate(model, keys, in_place=True)]
        case "attention":
            return [
                DecodeAttention(batch, context),
                MatMul(rows, model.hidden_size, model.q_size),
                *normed_output,
                ElementwiseKernel(3 * hidden),
            ]
        case "mlp":
            inner = rows * model.intermediate_size * model.element_bytes
            up = [MatMul(rows, model.intermediate_size, model.hidden_size)]
            return [
                ElementwiseKernel(2 * hidden),
                *(up * 2 if model.gated_mlp else up),
                ElementwiseKernel(2 * inner),
                *([ElementwiseKernel(3 * inner)] if model.gated_mlp else []),
                MatMul(rows, model.hidden_size, model.intermediate_size),
                *normed_output,
                ElementwiseKernel(3 * hidden),
            ]
        case "head":
            logits = rows * model.vocab_size * model.element_bytes
            product = MatMul(rows, model.vocab_size, model.hidden_size)
            return [
                ElementwiseKernel(2 * hidden),
                product,
                ElementwiseKernel(2 * logits),
                ElementwiseKernel(logits),
            ]
    raise ValueError(f"{task_op} is not a compute operation")


def _norm_and_rotate(model: ModelSpec, n_bytes: int, in_place: bool) -> list[Kernel]:
    """Passes of the head norm and the rotary embedding over heads of `n_bytes` in total."""
    norm = [ElementwiseKernel(2 * n_bytes)] * (1 + in_place) if model.qk_norm else []
    return [*norm, *(rotary_passes(n_bytes) if model.rotary else [])]


def _quantise(row: QuantisedRow, rows: int, element_bytes: int) -> list[Kernel]:
    """Passes of `hw.model.quantise.quantise_into`, which computes in 32 bit."""
    n, groups = rows * row.n_values, rows * row.n_groups
    widened = [] if element_bytes == 4 else [ElementwiseKernel((element_bytes + 4) * n)]
    extremes = [ElementwiseKernel(4 * n), *[ElementwiseKernel(8 * groups)] * 8]
    codes = [ElementwiseKernel(8 * n)] * 3
    packed = [ElementwiseKernel(4 * n + rows * row.code_bytes)] * (1 if row.bits == 8 else 2)
    return [*widened, *extremes, *codes, *packed]


def _dequantise(row: QuantisedRow, rows: int, element_bytes: int) -> list[Kernel]:
    """Passes of `hw.model.quantise.dequantise_into`: widen codes, multiply by scale, add minimum.

    Codes of 4 bits are first unpacked into bytes, once for K and once for V.
    """
    n_bytes = rows * row.n_values * element_bytes
    codes = rows * row.n_values * row.bits // 8
    widened = [ElementwiseKernel(codes + n_bytes)]
    if row.bits == 4:
        widened = [ElementwiseKernel(2 * codes), ElementwiseKernel(codes + n_bytes // 2)] * 2
    return [*widened, ElementwiseKernel(2 * n_bytes), ElementwiseKernel(2 * n_bytes)]


def compute_flops(task_op: str, n_tokens: int, context: int, model: ModelSpec, batch: int) -> int:
    """Floating-point operations of one compute operation: matrix products and attention."""
    total = 0
    for kernel in kernels(task_op, n_tokens, context, model, batch):
        if isinstance(kernel, MatMul | ExpertsKernel):
            total += kernel.flops
        elif isinstance(kernel, DecodeAttention):
            total += kernel.flops(model)
    return total


def prefill_attention_flops(
    model: ModelSpec, start: int, n_tokens: int, window: int | None = None
) -> int:
    """Scores and weighted sums of tokens [start, start + n) over those before them and themselves.

    Args:
        window: tokens that each attends to at most, itself included.
    """
    growing = n_tokens if window is None else min(n_tokens, max(0, window - start))
    keys = growing * start + growing * (growing + 1) // 2
    if window is not None:
        keys += (n_tokens - growing) * window
    return 4 * model.q_size * keys


def product_flops(model: ModelSpec) -> int:
    """Floating-point operations of a layer's matrix products for one token."""
    return sum(
        kernel.flops
        for op in ("qkv", "attention", "mlp")
        for kernel in kernels(op, 1, 1, model, 1)
        if isinstance(kernel, MatMul | ExpertsKernel)
    )
