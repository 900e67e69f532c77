"""Predicted times of a restore's tasks: prefill from token ids, and copies from tiers.

A step of the engine holds `chunk_tokens`: the restore's part and other requests' tokens. All
tokens of a step cost the same, so compute time grows as 1 / gpu_share, which agrees with Table 3 of
Cake within 8 % (arXiv 2410.03065).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from math import ceil
from typing import NamedTuple

from sim.cost.estimate import Estimate, total_of
from sim.cost.operations import OperationCosts
from sim.graph.jobs import RestoreRequest
from sim.graph.loads import Loads
from sim.graph.tasks import Task
from sim.lanes import COMPUTE, TIER_LANES
from sim.machine.curves import Grid
from sim.machine.prefill import HeadShape, PromptAttention, Restore
from sim.machine.profile import HardwareProfile
from sim.machine.provenance import weakest
from sim.model.attention import ALL, Attention, FullAttention, MultiHeadLatent, Span
from sim.model.compressed import LinearState
from sim.model.kernels import (
    DecodeAttention,
    IndexedAttention,
    IndexScores,
    Kernel,
    MatMul,
    StateUpdate,
    n_launches,
)
from sim.model.operations import (
    LAYER_OPS,
    attended_pairs,
    kernels,
    prefill_attention_flops,
)
from sim.model.spec import ModelSpec

ATTENDING = DecodeAttention | IndexScores | IndexedAttention | StateUpdate
"""Kernels that work on each sequence by itself; the others take all tokens of a step at once."""


class RestoreCosts:
    """Times of the tasks of one restore on one machine."""

    def __init__(
        self, hardware: HardwareProfile, model: ModelSpec, workload: RestoreRequest
    ) -> None:
        self.model = model
        self.workload = workload
        self.operations = OperationCosts(hardware, model, workload)
        self.dispatch = hardware.dispatch.in_turn()
        self._hardware = hardware
        self._block = hardware.restore or Restore()
        self._copied: dict[tuple[str, int, int], Estimate] = {}
        self._matmul_estimates: dict[tuple[int, int], Estimate] = {}
        self._state_estimates: dict[tuple[int, int, int], list[Estimate]] = {}
        self._prompts: dict[tuple[int, int], tuple[float, bool] | None] = {}
        self._whole_prompts = [self._whole_prompt(kind.attention) for kind in model.kinds]
        self._layer_launches: dict[int, int] = {}
        self.loads = Loads(model, workload)
        self._parts: dict[tuple[int, int], Counter[_Part]] = {}
        tables = self._block.prefill.tables if self._block.prefill is not None else ()
        self._prefill_tables: dict[tuple[int, int, int] | None, Grid] = {
            (table.n_heads, table.n_kv_heads, table.head_dim): table.grid for table in tables
        }

    def estimate(self, task: Task) -> Estimate:
        """Time of `task` without contention, at the request's share of the device."""
        if task.op == "prefill":
            return self.prefill(task.token_start, task.n_tokens, task.layers, task.layer)
        if task.lane in TIER_LANES:
            return self._tier_copy(task.lane, task.bytes)
        if task.lane == COMPUTE:
            kind = self.model.kind_of[task.layer]
            uncontended = self.operations.compute(task.op, task.n_tokens, task.token_stop, kind)
            shared_s = task.layers * uncontended.seconds / self.workload.gpu_share
            return replace(uncontended, seconds=shared_s)
        return self._link_copy(task)

    def _link_copy(self, task: Task) -> Estimate:
        """Time of a copy over the link."""
        rows = self.loads.rows(task.layer, task.layers, task.token_start, task.token_stop)
        return self.link_copy(task.lane, task.bytes, len(rows.layers))

    def link_copy(self, lane: str, n_bytes: int, layers: int) -> Estimate:
        """Time of a copy of rows of several layers; a CUDA device copies each layer by one call."""
        if self._hardware.device_kind != "cuda":
            return self.operations.copy(lane, n_bytes)
        key = lane, n_bytes, layers
        if key not in self._copied:
            link = self._hardware.links.of(lane)
            one_s, inside = link.copy_s(n_bytes / layers)
            seconds = self.dispatch.copy_task_s + layers * one_s
            self._copied[key] = Estimate(seconds, link.source, inside)
        return self._copied[key]

    def launch_s(self, task: Task) -> float:  # noqa: ARG002
        """Host time to queue `task`; the launch of its kernels is part of the task itself.

        Claims decide only then which task does a token, so the host cannot launch ahead.
        """
        return self.dispatch.task_s

    def _launch_s(self, layer: int, layers: int) -> float:
        """Host time to launch the kernels of a prefill step, which the device cannot outrun."""
        known = self._layer_launches
        for kind in range(0 if known else len(self.model.kinds)):
            known[kind] = sum(n_launches(self._kernels(op, 1, kind)) for op in LAYER_OPS)
        kinds = Counter(self.model.kind_of[layer : layer + layers])
        return sum(n * known[kind] for kind, n in kinds.items()) * self.dispatch.kernel_s

    def _kernels(self, op: str, rows: int, kind: int) -> list[Kernel]:
        return kernels(op, rows, 1, self.model, 1, kind=kind)

    @cached_property
    def lookup_s(self) -> float:
        """Seconds from the request to the first byte that moves."""
        lookup = self._block.lookup_s
        return lookup.value if lookup is not None else 0.0

    def earliest_s(self, task: Task) -> float:
        """Copies of the cached prefix wait until it is found."""
        start_s = self.dispatch.start_s
        return start_s if task.lane == COMPUTE else start_s + self.lookup_s

    def copy_s(self, lane: str, n_bytes: int) -> float:
        """Seconds of one copy on any lane."""
        copied = self._tier_copy if lane in TIER_LANES else self.operations.copy
        return copied(lane, n_bytes).seconds

    def prefill(self, start: int, n_tokens: int, layers: int, layer: int = 0) -> Estimate:
        """Time of the step that takes tokens [start, start + n) through layers from `layer` on."""
        rows = n_tokens + self.workload.other_tokens
        times = rows / n_tokens
        counts = self._parts_of(layer, layers, start + n_tokens)
        parts = {
            part: total_of(
                [
                    self._layer_matmuls(rows, part.kind),
                    *self._prefill_attention(start, n_tokens, times, part),
                ]
            )
            for part in counts
        }
        block = self._block.prefill
        step_s = block.step_s.value / self.model.n_layers if block is not None else 0.0
        work_s = sum(counts[part] * (one.seconds + step_s) for part, one in parts.items())
        seconds = self.dispatch.compute_task_s + max(work_s, self._launch_s(layer, layers))
        each = [replace(one, seconds=counts[at] * one.seconds) for at, one in parts.items()]
        return replace(total_of(each), seconds=seconds)

    def _parts_of(self, layer: int, layers: int, stop: int) -> Counter[_Part]:
        """Numbers of layers that cost the same; of layers from `layer` on.

        A window that holds all `stop` tokens is none.
        """
        key = layer, layers
        if key not in self._parts:
            self._parts[key] = Counter(
                _Part(self.model.kind_of[one], self.model.span(one))
                for one in range(layer, layer + layers)
            )
        if not any(part.span.window for part in self._parts[key]):
            return self._parts[key]
        found: Counter[_Part] = Counter()
        for part, count in self._parts[key].items():
            window = part.span.window
            whole = window is None or window >= stop
            found[_Part(part.kind, ALL) if whole else part] += count
        return found

    def _layer_matmuls(self, rows: int, kind: int) -> Estimate:
        """All kernels of a layer over `rows` tokens except those that attend."""
        if (rows, kind) not in self._matmul_estimates:
            estimates = []
            for op in LAYER_OPS:
                for kernel in self._kernels(op, rows, kind):
                    if not isinstance(kernel, ATTENDING):
                        one = self.operations.kernel(kernel)
                        faster = self._weight_speedup if isinstance(kernel, MatMul) else 1.0
                        estimates.append(replace(one, seconds=one.seconds / faster))
            self._matmul_estimates[rows, kind] = total_of(estimates)
        return self._matmul_estimates[rows, kind]

    def step_s(self, parts: Sequence[tuple[int, int]], sampled: int) -> float:
        """Time of an engine step over several requests, all layers.

        Args:
            parts: first position and tokens of each request in it.
            sampled: requests that produce a token in it.
        """
        rows = sum(n_tokens for _, n_tokens in parts)
        work_s, stop = 0.0, max(sum(part) for part in parts)
        for part, layers in self._parts_of(0, self.model.n_layers, stop).items():
            attention_s = sum(one.seconds for one in self._prompts_attention(parts, part))
            work_s += layers * (self._layer_matmuls(rows, part.kind).seconds + attention_s)
        block = self._block.prefill
        fixed_s = block.step_s.value if block is not None else 0.0
        head_s = self.operations.compute("head", sampled, 1).seconds if sampled else 0.0
        return work_s + fixed_s + head_s

    def matmuls_s(self, rows: int) -> float:
        """All kernels of all layers over `rows` tokens except those that attend."""
        kinds = Counter(self.model.kind_of)
        return sum(n * self._layer_matmuls(rows, kind).seconds for kind, n in kinds.items())

    def shared_step_s(
        self, prompts: Sequence[tuple[int, int]], decoding: int, context: float, matmuls_s: float
    ) -> float:
        """Time of an engine step over prompts and decoding requests, without the output head.

        A step of one prompt takes as long as the task of a restore that computes the same tokens.

        Args:
            prompts: first position and tokens of each prompt in it.
            decoding: requests that decode one token each.
            context: mean number of tokens that they attend to.
            matmuls_s: `matmuls_s` of all tokens of the step.
        """
        layers = self.model.n_layers
        stop = max([ceil(context), *(start + n_tokens for start, n_tokens in prompts)])
        block = self._block.prefill
        work_s = matmuls_s + (block.step_s.value if block is not None else 0.0)
        for part, count in self._parts_of(0, layers, stop).items():
            estimates = self._prompts_attention(prompts, part)
            if decoding:
                estimates += self._decode_attention(decoding, context, part)
            work_s += count * sum(one.seconds for one in estimates)
        return self.dispatch.compute_task_s + max(work_s, self._launch_s(0, layers))

    def _prompts_attention(self, prompts: Sequence[tuple[int, int]], part: _Part) -> list[Estimate]:
        """What attends in a step over chunks of several prompts.

        One kernel updates the states of all: prompts of different lengths take as long as those of
        the mean length, and no less than the longest alone.
        """
        if not prompts or not isinstance(self.model.kinds[part.kind].attention, LinearState):
            return [one for at in prompts for one in self._prefill_attention(*at, 1.0, part)]
        lengths = [n_tokens for _, n_tokens in prompts]
        together = self._state_updates(round(sum(lengths) / len(lengths)), len(lengths), part.kind)
        longest = self._state_updates(max(lengths), 1, part.kind)
        return max(together, longest, key=lambda found: total_of(found).seconds)

    def _decode_attention(self, decoding: int, context: float, part: _Part) -> list[Estimate]:
        """Attention of requests that decode one token each, and its choice of rows."""
        if isinstance(self.model.kinds[part.kind].attention, LinearState):
            return self._state_updates(1, decoding, part.kind)
        window = part.span.window
        keys = ceil(context if window is None else min(context, window))
        return self._attending(1, keys, decoding, part.kind)

    def _state_updates(self, n_tokens: int, sequences: int, kind: int) -> list[Estimate]:
        """Updates of the states of a layer by so many tokens of each sequence."""
        known, key = self._state_estimates, (n_tokens, sequences, kind)
        if key not in known:
            known[key] = self._attending(n_tokens, 1, sequences, kind)
        return known[key]

    def _attending(self, n_tokens: int, keys: int, sequences: int, kind: int) -> list[Estimate]:
        launched = kernels("attention", n_tokens, keys, self.model, sequences, kind=kind)
        return [self.operations.kernel(one) for one in launched if isinstance(one, ATTENDING)]

    @property
    def _weight_speedup(self) -> float:
        """Speedup of a matmul with 8-bit weights over its estimate.

        1 if unknown, or if the estimate is from 8-bit measurements.
        """
        block = self._block.prefill
        timed = self.operations.measured_bits == self.model.weight_bits
        if self.model.weight_bits != 8 or timed or block is None or block.eight_bit_speedup is None:
            return 1.0
        return block.eight_bit_speedup.value

    def _prefill_attention(
        self, start: int, n_tokens: int, times: float, part: _Part
    ) -> list[Estimate]:
        """What attends in a chunk of a prompt, with `times` the work."""
        one = self.model.kinds[part.kind].attention
        if isinstance(one, LinearState):
            return self._state_updates(round(times * n_tokens), 1, part.kind)
        if isinstance(one, MultiHeadLatent):
            return self._latent_attention(start, n_tokens, times, part, one)
        return self._chunk_attention(start, n_tokens, times, part)

    def _latent_attention(
        self, start: int, n_tokens: int, times: float, part: _Part, one: MultiHeadLatent
    ) -> list[Estimate]:
        """Attention of a chunk to latents, or that of as many decoded tokens where it is faster.

        Each chunk builds K and V of the heads of all tokens before it; decoding does not. With an
        index a chunk attends to latents too.
        """
        rows, stop = round(times * n_tokens), start + n_tokens
        decoded = self._attending(1, stop, rows, part.kind)
        sparse = self._block.prefill.sparse if self._block.prefill is not None else None
        if one.index is not None and sparse is not None and sparse.index.reads_like(one, one.index):
            seconds, inside = sparse.at(one.n_heads, one.index, start, rows)
            chunk = [Estimate(seconds, "measured" if inside else "fitted", inside)]
        else:
            chunk = self._chunk_attention(start, n_tokens, times, part)
            if one.index is None and start:
                sizes = one.sizes
                width = one.n_heads * (sizes.qk_nope_head_dim + sizes.v_head_dim)
                built = MatMul(round(times * start), width, sizes.kv_lora_rank, "attention")
                chunk.append(self.operations.matmul(built))
        return min(chunk, decoded, key=lambda parts: sum(each.seconds for each in parts))

    def _chunk_attention(
        self, start: int, n_tokens: int, times: float, part: _Part
    ) -> list[Estimate]:
        """Attention with `times` the FLOPs, but no faster than reading K and V once.

        Where chunks of the head shape were measured, it is one of `times` as many tokens; where
        whole prompts were, the rate is that of a prompt of as many tokens as the chunk reads.
        """
        one, span = self.model.kinds[part.kind].attention, part.span
        flops = times * prefill_attention_flops(one, start, n_tokens, span)
        if not flops:
            return []
        keys = start + 1 if span.window is None else min(start + 1, span.window)
        table = self._prefill_tables.get(_heads(one))
        if table is not None:
            seconds, inside = table.at(times * n_tokens, keys)
            return [Estimate(seconds, "measured", inside)]
        read = self._hardware.attention
        n_read = keys - 1 + n_tokens
        read_s = n_read * one.row_size * self.model.element_bytes / read.bytes_per_s
        block = self._block.prefill
        if block is None:
            rate = self._hardware.gemm.flops_per_s
            seconds = max(flops / rate, read_s)
            return [Estimate(seconds, weakest(read.source, "fitted"), False)]
        rate, source = block.attention_flops_per_s.value, block.attention_flops_per_s.source
        measured = self._whole_attention(n_read, part.kind)
        if measured is None:
            by_heads = isinstance(one, FullAttention)
            source = source if by_heads else weakest(source, "fitted")
            return [Estimate(max(flops / rate, read_s), source, by_heads)]
        whole_s, inside = measured
        seconds = whole_s * flops / (one.prefill_row_flops * attended_pairs(0, n_read))
        source = source if inside else weakest(source, "fitted")
        return [Estimate(max(seconds, read_s), source, inside)]

    def _whole_prompt(self, attention: Attention) -> PromptAttention | None:
        """Times of a kind of attention over whole prompts; None where nothing was measured."""
        block = self._block.prefill
        if block is None:
            return None
        if isinstance(attention, MultiHeadLatent) and not attention.chooses:
            sizes, n_heads = attention.sizes, attention.n_heads
            head_dim = sizes.qk_nope_head_dim + sizes.qk_rope_head_dim
            return block.attention(n_heads, HeadShape(1, head_dim, sizes.v_head_dim))
        if not isinstance(attention, FullAttention):
            return None
        queries_per_kv = attention.n_heads // attention.n_kv_heads
        v_head_dim = attention.v_head_dim or attention.head_dim
        shape = HeadShape(queries_per_kv, attention.head_dim, v_head_dim)
        return block.attention(attention.n_heads, shape)

    def _whole_attention(self, n_tokens: int, kind: int) -> tuple[float, bool] | None:
        """Measured seconds of the first `n_tokens` of a prompt; None where nothing was measured."""
        if (n_tokens, kind) not in self._prompts:
            whole = self._whole_prompts[kind]
            self._prompts[n_tokens, kind] = None if whole is None else whole.at(n_tokens)
        return self._prompts[n_tokens, kind]

    def _tier_copy(self, lane: str, n_bytes: int) -> Estimate:
        key = lane, n_bytes, 1
        if key not in self._copied:
            tier = self._block.tier(lane)
            seconds = tier.chunk_s + n_bytes / tier.bytes_per_s.value
            self._copied[key] = Estimate(seconds, tier.bytes_per_s.source, True)
        return self._copied[key]


class _Part(NamedTuple):
    """What layers that cost the same have in common: kind, and part of the prompt."""

    kind: int
    span: Span


def _heads(attention: Attention) -> tuple[int, int, int] | None:
    """Query and KV heads, and their size; None where attention is not by K and V of heads."""
    if not isinstance(attention, FullAttention):
        return None
    return attention.n_heads, attention.n_kv_heads, attention.head_dim
