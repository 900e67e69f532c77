"""Predicted times of a restore's tasks: prefill from token ids, and copies from tiers.

A step of the engine holds `chunk_tokens`: the restore's part and other requests' tokens. All
tokens of a step cost the same, so compute time grows as 1 / gpu_share, which agrees with Table 3 of
Cake within 8 % (arXiv 2410.03065).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import ceil

from sim.cost.operations import Estimate, OperationCosts, total_of
from sim.graph.jobs import RestoreRequest
from sim.graph.loads import Loads
from sim.graph.tasks import Task
from sim.lanes import COMPUTE, TIER_LANES
from sim.machine.prefill import PromptAttention, Restore
from sim.machine.profile import HardwareProfile
from sim.machine.provenance import weakest
from sim.model.kernels import DecodeAttention, MatMul, kernels, n_launches, prefill_attention_flops
from sim.model.spec import ModelSpec


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
        self._matmul_estimates: dict[int, Estimate] = {}
        self._prompts: dict[int, tuple[float, bool]] = {}
        self._whole_prompts: PromptAttention | None = None
        if self._block.prefill is not None and model.mla is None:
            per_kv = model.n_heads // model.n_kv_heads
            self._whole_prompts = self._block.prefill.attention(
                model.n_heads, per_kv, model.head_dim
            )
        self._layer_launches: int | None = None
        self.loads = Loads(model, workload)
        self._windows: dict[tuple[int, int], Counter[int | None]] = {}
        self._heads = (model.n_heads, model.n_kv_heads, model.head_dim)
        tables = self._block.prefill.tables if self._block.prefill is not None else ()
        self._prefill_tables = {
            (table.n_heads, table.n_kv_heads, table.head_dim): table.grid for table in tables
        }

    def estimate(self, task: Task) -> Estimate:
        """Time of `task` without contention, at the request's share of the device."""
        if task.op == "prefill":
            return self.prefill(task.token_start, task.n_tokens, task.layers, task.layer)
        if task.lane in TIER_LANES:
            return self._tier_copy(task.lane, task.bytes)
        if task.lane == COMPUTE:
            uncontended = self.operations.compute(task.op, task.n_tokens, task.token_stop)
            shared_s = task.layers * uncontended.seconds / self.workload.gpu_share
            return replace(uncontended, seconds=shared_s)
        return self._link_copy(task)

    def _link_copy(self, task: Task) -> Estimate:
        """Time of a copy over the link; a CUDA device copies the rows of each layer by one call."""
        if self._hardware.device_kind != "cuda":
            return self.operations.copy(task.lane, task.bytes)
        link = self._hardware.links.of(task.lane)
        rows = self.loads.rows(task.layer, task.layers, task.token_start, task.token_stop)
        layers = len(rows.layers)
        one_s, inside = link.copy_s(task.bytes / layers)
        return Estimate(self.dispatch.copy_task_s + layers * one_s, link.source, inside)

    def launch_s(self, task: Task) -> float:  # noqa: ARG002
        """Host time to queue `task`; the launch of its kernels is part of the task itself.

        Claims decide only then which task does a token, so the host cannot launch ahead.
        """
        return self.dispatch.task_s

    def _launch_s(self, layers: int) -> float:
        """Host time to launch the kernels of a prefill step, which the device cannot outrun."""
        if self._layer_launches is None:
            ops = ("qkv", "attention", "mlp")
            self._layer_launches = sum(n_launches(kernels(op, 1, 1, self.model, 1)) for op in ops)
        return layers * self._layer_launches * self.dispatch.kernel_s

    @property
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
        times, matmuls = rows / n_tokens, self._layer_matmuls(rows)
        windows = self._windows_of(layer, layers, start + n_tokens)
        parts = {
            window: total_of([matmuls, self._prefill_attention(start, n_tokens, times, window)])
            for window in windows
        }
        block = self._block.prefill
        step_s = block.step_s.value / self.model.n_layers if block is not None else 0.0
        work_s = sum(windows[window] * (one.seconds + step_s) for window, one in parts.items())
        seconds = self.dispatch.compute_task_s + max(work_s, self._launch_s(layers))
        each = [replace(one, seconds=windows[at] * one.seconds) for at, one in parts.items()]
        return replace(total_of(each), seconds=seconds)

    def _windows_of(self, layer: int, layers: int, stop: int) -> Counter[int | None]:
        """Number of layers by window, None where `stop` tokens fit; of layers from `layer` on."""
        key = layer, layers
        if key not in self._windows:
            self._windows[key] = Counter(map(self.model.window, range(layer, layer + layers)))
        found: Counter[int | None] = Counter()
        for window, count in self._windows[key].items():
            found[None if window is None or window >= stop else window] += count
        return found

    def _layer_matmuls(self, rows: int) -> Estimate:
        """All kernels of a layer over `rows` tokens except the attention itself."""
        if rows not in self._matmul_estimates:
            estimates = []
            for op in ("qkv", "attention", "mlp"):
                for kernel in kernels(op, rows, 1, self.model, 1):
                    if not isinstance(kernel, DecodeAttention):
                        one = self.operations.kernel(kernel)
                        faster = self._weight_speedup if isinstance(kernel, MatMul) else 1.0
                        estimates.append(replace(one, seconds=one.seconds / faster))
            self._matmul_estimates[rows] = total_of(estimates)
        return self._matmul_estimates[rows]

    def step_s(self, parts: Sequence[tuple[int, int]], sampled: int) -> float:
        """Time of an engine step over several requests, all layers.

        Args:
            parts: first position and tokens of each request in it.
            sampled: requests that produce a token in it.
        """
        product = self._layer_matmuls(sum(n_tokens for _, n_tokens in parts))
        work_s, stop = 0.0, max(sum(part) for part in parts)
        for window, layers in self._windows_of(0, self.model.n_layers, stop).items():
            attention_s = sum(self._prefill_attention(*part, 1.0, window).seconds for part in parts)
            work_s += layers * (product.seconds + attention_s)
        block = self._block.prefill
        fixed_s = block.step_s.value if block is not None else 0.0
        head_s = self.operations.compute("head", sampled, 1).seconds if sampled else 0.0
        return work_s + fixed_s + head_s

    def layer_matmuls_s(self, rows: int) -> float:
        """All kernels of a layer over `rows` tokens except the attention itself."""
        return self._layer_matmuls(rows).seconds

    def shared_step_s(
        self, prompts: Sequence[tuple[int, int]], decoding: int, context: float, matmuls_s: float
    ) -> float:
        """Time of an engine step over prompts and decoding requests, without the output head.

        A step of one prompt takes as long as the task of a restore that computes the same tokens.

        Args:
            prompts: first position and tokens of each prompt in it.
            decoding: requests that decode one token each.
            context: mean number of tokens that they attend to.
            matmuls_s: `layer_matmuls_s` of all tokens of the step.
        """
        layers = self.model.n_layers
        stop = max([ceil(context), *(start + n_tokens for start, n_tokens in prompts)])
        block = self._block.prefill
        step_s = block.step_s.value / layers if block is not None else 0.0
        work_s = 0.0
        for window, count in self._windows_of(0, layers, stop).items():
            seconds = matmuls_s + step_s
            for start, n_tokens in prompts:
                seconds += self._prefill_attention(start, n_tokens, 1.0, window).seconds
            if decoding:
                keys = context if window is None else min(context, window)
                attention = DecodeAttention(decoding, ceil(keys))
                seconds += self.operations.kernel(attention).seconds
            work_s += count * seconds
        return self.dispatch.compute_task_s + max(work_s, self._launch_s(layers))

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
        self, start: int, n_tokens: int, times: float, window: int | None
    ) -> Estimate:
        """Attention with `times` the FLOPs, but no faster than reading K and V once.

        Where chunks of the head shape were measured, it is one of `times` as many tokens; where
        whole prompts were, the rate is that of a prompt of as many tokens as the chunk reads.

        Args:
            window: tokens that each attends to at most, itself included.
        """
        keys = start + 1 if window is None else min(start + 1, window)
        table = self._prefill_tables.get(self._heads)
        if table is not None:
            seconds, inside = table.at(times * n_tokens, keys)
            return Estimate(seconds, "measured", inside)
        flops = times * prefill_attention_flops(self.model, start, n_tokens, window)
        read = self._hardware.attention
        n_read = keys - 1 + n_tokens
        read_s = n_read * self.model.kv_token_bytes / read.bytes_per_s
        block = self._block.prefill
        if block is None:
            rate = self._hardware.gemm.flops_per_s
            return Estimate(max(flops / rate, read_s), weakest(read.source, "fitted"), False)
        rate, source = block.attention_flops_per_s.value, block.attention_flops_per_s.source
        measured = self._whole_attention(n_read)
        if measured is None:
            return Estimate(max(flops / rate, read_s), source, True)
        whole_s, inside = measured
        seconds = whole_s * flops / prefill_attention_flops(self.model, 0, n_read)
        source = source if inside else weakest(source, "fitted")
        return Estimate(max(seconds, read_s), source, inside)

    def _whole_attention(self, n_tokens: int) -> tuple[float, bool] | None:
        """Measured seconds of the first `n_tokens` of a prompt; None where nothing was measured."""
        if self._whole_prompts is None:
            return None
        if n_tokens not in self._prompts:
            self._prompts[n_tokens] = self._whole_prompts.at(n_tokens)
        return self._prompts[n_tokens]

    def _tier_copy(self, lane: str, n_bytes: int) -> Estimate:
        tier = self._block.tier(lane)
        return Estimate(
            tier.chunk_s + n_bytes / tier.bytes_per_s.value, tier.bytes_per_s.source, True
        )
