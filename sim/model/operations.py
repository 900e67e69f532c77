"""What each operation of a job launches, and its FLOPs. Letters as in `sim.model.spec`."""

from __future__ import annotations

from math import ceil

from sim.model.attention import ALL, Attention, Span
from sim.model.attention_kernels import Work, attention_kernels
from sim.model.compressed import CompressedAttention
from sim.model.kernels import (
    AllReduceKernel,
    DecodeAttention,
    ElementwiseKernel,
    ExpertsKernel,
    ExpertsShape,
    GroupedMatMul,
    IndexedAttention,
    IndexScores,
    Kernel,
    MatMul,
    StateUpdate,
)
from sim.model.kv_format import QuantisedRow
from sim.model.layers import Dense, Experts, Layer
from sim.model.spec import ModelSpec

LAYER_OPS = ("qkv", "attention", "mlp")
"""Operations of a layer on a new token."""


def kernels(
    op: str,
    n_tokens: int,
    context: int,
    model: ModelSpec,
    batch: int,
    kv_bits: int | None = None,
    kind: int = -1,
) -> list[Kernel]:
    """The device kernels that one compute operation launches, on each GPU that shares the model.

    With tensor parallelism attention and MLP each end with an all-reduce of their output, which
    runs in order with the other kernels, as serving runtimes launch it.

    Args:
        n_tokens: tokens per sequence that the operation works on.
        context: keys per sequence that the token attends to, itself included.
        kv_bits: of a quantised cache; there is nothing to quantise or dequantise in another.
        kind: place of the layer in `model.kinds`; by default the last, which most layers are.
    """
    launched = _kernels_of_one_gpu(op, Work(model, batch, n_tokens, context), kv_bits, kind)
    if launched and model.tensor_parallel > 1 and op in ("attention", "mlp"):
        launched.append(AllReduceKernel(batch * n_tokens * model.x_token_bytes))
    return launched


def _kernels_of_one_gpu(op: str, work: Work, kv_bits: int | None, kind: int) -> list[Kernel]:
    model, rows, hidden = work.model, work.rows, work.hidden_bytes
    layer = model.kinds[kind]
    match op:
        case "quantise" | "dequantise":
            if kv_bits is None:
                return []
            made = _quantise if op == "quantise" else _dequantise
            return made(QuantisedRow.of(layer.attention, kv_bits), rows, model.element_bytes)
        case "place_kv":
            return [ElementwiseKernel(2 * work.bytes(layer.attention.kv_size), plain=True)]
        case "recompute" | "recompute_resident":
            return attention_kernels("recompute", layer.attention, work)
        case "qkv" | "attention":
            return attention_kernels(op, layer.attention, work)
        case "mlp":
            return _ffn(layer, work)
        case "embed":
            positions = [] if model.rotary else [ElementwiseKernel(3 * hidden)]
            return [ElementwiseKernel(2 * hidden), *positions, ElementwiseKernel(2 * hidden)]
        case "head":
            logits = work.bytes(model.vocab_size)
            return [
                ElementwiseKernel(2 * hidden),
                MatMul(rows, model.vocab_size, model.hidden_size, "head"),
                ElementwiseKernel(2 * logits),
                ElementwiseKernel(logits),
            ]
    raise ValueError(f"{op} is not a compute operation")


def _ffn(layer: Layer, work: Work) -> list[Kernel]:
    """Kernels of the FFN, and of matrices that belong to neither attention nor FFN."""
    h = work.model.hidden_size
    made = _experts(layer.ffn, work) if isinstance(layer.ffn, Experts) else _mlp(layer.ffn, work)
    if layer.other_elements:
        made.append(MatMul(work.rows, ceil(layer.other_elements / h), h, "shared"))
    return made


def _mlp(ffn: Dense, work: Work) -> list[Kernel]:
    model, rows, hidden = work.model, work.rows, work.hidden_bytes
    if not ffn.width:
        return []
    inner = work.bytes(ffn.width)
    up: list[Kernel] = [MatMul(rows, ffn.width, model.hidden_size, "dense")]
    normed = [ElementwiseKernel(2 * hidden)] if model.output_norms else []
    return [
        ElementwiseKernel(2 * hidden),
        *(up * 2 if ffn.gated else up),
        ElementwiseKernel(2 * inner),
        *([ElementwiseKernel(3 * inner)] if ffn.gated else []),
        MatMul(rows, model.hidden_size, ffn.width, "dense"),
        *normed,
        ElementwiseKernel(3 * hidden),
    ]


def _experts(ffn: Experts, work: Work) -> list[Kernel]:
    """Kernels of a layer's experts.

    Read are the weights of the experts that the tokens touch on average, computed the FLOPs of
    those each token passes through.
    """
    rows, h, f = work.rows, work.model.hidden_size, ffn.width
    shape = ExpertsShape.of(ffn, h)
    routed, touched = ceil(rows * ffn.n_active / ffn.gpus), shape.touched(rows)
    up = GroupedMatMul(routed, f, shape.hidden, touched)
    down = GroupedMatMul(routed, shape.hidden, f, touched)
    hidden, inner = work.hidden_bytes, work.bytes(f)
    passes = (2, 3) if ffn.gated else (2,)
    shared: list[Kernel] = []
    if ffn.shared_width:
        shared = [MatMul(rows, ffn.shared_width, h, "shared")] * len(passes)
        shared += [ElementwiseKernel(times * work.bytes(ffn.shared_width)) for times in passes]
        shared.append(MatMul(rows, h, ffn.shared_width, "shared"))
    activated = [ElementwiseKernel(times * ffn.n_active * inner // ffn.gpus) for times in passes]
    mixed = ElementwiseKernel((ffn.n_active // ffn.gpus + 2) * work.bytes(shape.hidden))
    reduced: list[Kernel] = []
    if ffn.latent is not None:
        reduced = [MatMul(rows, ffn.latent, h, "shared"), MatMul(rows, h, ffn.latent, "shared")]
    return [
        ElementwiseKernel(2 * hidden),
        MatMul(rows, ffn.n_routed, h, "shared"),
        *reduced,
        ExpertsKernel(rows, shape, (*[up] * len(passes), *activated, down, mixed)),
        *shared,
        ElementwiseKernel(3 * hidden),
    ]


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


def compute_flops(
    op: str, n_tokens: int, context: int, model: ModelSpec, batch: int, kind: int = -1
) -> int:
    """Floating-point operations of one compute operation: matrix products and attention."""
    return flops_of(kernels(op, n_tokens, context, model, batch, kind=kind))


def flops_of(launched: list[Kernel]) -> int:
    """Floating-point operations of kernels: matrix products and attention."""
    counted = (
        MatMul | ExpertsKernel | DecodeAttention | IndexScores | IndexedAttention | StateUpdate
    )
    return sum(kernel.flops for kernel in launched if isinstance(kernel, counted))


def attended_pairs(start: int, n_tokens: int, span: Span = ALL) -> int:
    """Pairs of a token of [start, start + n) and one of those before it, or itself."""
    window = span.window
    if window is not None and span.chunked:
        return _pairs_in_chunks(start + n_tokens, window) - _pairs_in_chunks(start, window)
    growing = n_tokens if window is None else min(n_tokens, max(0, window - start))
    keys = growing * start + growing * (growing + 1) // 2
    if window is not None:
        keys += (n_tokens - growing) * window
    return keys


def _pairs_in_chunks(stop: int, window: int) -> int:
    """Pairs of the first `stop` tokens where each attends to its chunk up to itself."""
    chunks, rest = divmod(stop, window)
    return (chunks * window * (window + 1) + rest * (rest + 1)) // 2


def prefill_attention_flops(
    attention: Attention, start: int, n_tokens: int, span: Span = ALL
) -> int:
    """Scores and weighted sums of tokens [start, start + n) over those before them and themselves.

    With an index also the scores of all its keys.
    """
    index = getattr(attention, "index", None)
    ratio, pairs = 1, attended_pairs(start, n_tokens, span)
    if isinstance(attention, CompressedAttention):
        pairs = attended_pairs(start, n_tokens, Span(attention.window))
        if attention.ratio:
            ratio = attention.ratio
            most = None if index is None else index.top_tokens * ratio
            pairs += attended_pairs(start, n_tokens, Span(most)) // ratio
    elif index is not None:
        pairs = min(pairs, attended_pairs(start, n_tokens, Span(index.top_tokens)))
    flops = attention.prefill_row_flops * pairs
    if index is not None and not index.shared:
        flops += index.score_flops * attended_pairs(start, n_tokens) // ratio
    return flops


def product_flops(model: ModelSpec, kind: int = -1) -> int:
    """Floating-point operations of a layer's matrix products, and of its state, for one token."""
    return sum(
        kernel.flops
        for op in LAYER_OPS
        for kernel in kernels(op, 1, 1, model, 1, kind=kind)
        if isinstance(kernel, MatMul | ExpertsKernel | StateUpdate)
    )
