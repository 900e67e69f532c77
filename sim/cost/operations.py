"""Predicted time of an operation, kernel or copy on a machine, with its source.

An operation is broken into the kernels that it launches. Each kernel is read from the profile's
measured table, or computed from the profile's rates where no table covers it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, floor, log

from sim.cost.matmul import MatmulCosts
from sim.graph.jobs import Workload
from sim.machine.all_reduce import AllReduce
from sim.machine.curves import Curve
from sim.machine.experts import SCALES_FRAC
from sim.machine.profile import HardwareProfile
from sim.machine.provenance import Source, weakest
from sim.model.kernels import (
    AllReduceKernel,
    DecodeAttention,
    ElementwiseKernel,
    ExpertsKernel,
    GroupedMatMul,
    Kernel,
    MatMul,
    kernels,
    n_launches,
)
from sim.model.kv_format import host_kv_token_bytes
from sim.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Estimate:
    """Predicted seconds, the weakest source among its terms, and whether all were calibrated.

    Args:
        shares: of a sum, each source of its terms with its fraction of the seconds.
    """

    seconds: float
    source: Source
    in_range: bool
    shares: tuple[tuple[Source, float], ...] = ()

    @property
    def seconds_by_source(self) -> dict[Source, float]:
        shares = self.shares or ((self.source, 1.0),)
        return {source: share * self.seconds for source, share in shares}


def total_of(estimates: Sequence[Estimate]) -> Estimate:
    """The sum: the weakest source counts, and every term must be in range."""
    seconds = sum(one.seconds for one in estimates)
    shares: dict[Source, float] = {}
    for one in estimates:
        for source, part_s in one.seconds_by_source.items():
            shares[source] = shares.get(source, 0.0) + part_s / seconds if seconds else 0.0
    return Estimate(
        seconds,
        weakest(*(one.source for one in estimates)),
        all(one.in_range for one in estimates),
        tuple(shares.items()),
    )


class OperationCosts:
    """Times of the operations and copies of one model and workload on one machine."""

    def __init__(self, hardware: HardwareProfile, model: ModelSpec, workload: Workload) -> None:
        self.hardware = hardware
        self.model = model
        self.workload = workload
        self._matmuls = MatmulCosts(hardware.gemm, model)
        self._attention_tables = {
            (table.n_heads, table.n_kv_heads, table.head_dim): table
            for table in hardware.attention.tables
        }
        self._quantisation = {
            table.op: table.curve
            for table in hardware.elementwise.tables
            if table.bits == workload.kv_bits
        }
        self._all_reduce = hardware.all_reduce or AllReduce.over_pcie(hardware.links)
        self._computed: dict[tuple[str, int, int], Estimate] = {}
        self._launches: dict[str, int] = {}
        self._copied: dict[tuple[str, int], Estimate] = {}
        self._setting = (model, workload.batch_size, workload.kv_bits)
        self._kv_elements = 2 * workload.batch_size * model.kv_size

    def compute(self, op: str, n_tokens: int, context: int) -> Estimate:
        """Time of a compute operation on `n_tokens` tokens that attends to `context` keys."""
        key = (op, n_tokens, context if op == "attention" else 0)
        if key not in self._computed:
            self._computed[key] = self._compute(op, n_tokens, context)
        return self._computed[key]

    def _compute(self, op: str, n_tokens: int, context: int) -> Estimate:
        task_s = self.hardware.dispatch.compute_task_s
        if op in self._quantisation:
            seconds, inside = self._quantisation[op].at(n_tokens * self._kv_elements)
            return Estimate(task_s + seconds, self.hardware.elementwise.source, inside)
        launched = kernels(op, n_tokens, context, *self._setting)
        total = total_of([self.kernel(kernel) for kernel in launched])
        return replace(total, seconds=task_s + total.seconds)

    def copy(self, lane: str, n_bytes: int) -> Estimate:
        """Time of one copy in direction `lane`, or within the host; 0 in unified memory.

        Raises:
            NotMeasured: the profile has no rate of copies within the host.
        """
        key = (lane, n_bytes)
        if key not in self._copied:
            link = self.hardware.links.of(lane)
            seconds, inside = link.copy_s(n_bytes)
            seconds += self.hardware.dispatch.copy_task_s
            if self.hardware.memory.unified:
                seconds, inside = 0.0, True
            self._copied[key] = Estimate(seconds, link.source, inside)
        return self._copied[key]

    @property
    def measured_bits(self) -> int:
        """Bits of the layers' weights in the measurements behind the estimates."""
        return self._matmuls.measured_bits

    def launches(self, op: str) -> int:
        """Kernels that a task of operation `op` launches."""
        if op not in self._launches:
            self._launches[op] = n_launches(kernels(op, 1, 1, *self._setting))
        return self._launches[op]

    def load_bytes(self, op: str, n_tokens: int) -> int:
        """Bytes of `load_x` or `load_kv` of `n_tokens` tokens of every sequence."""
        one = self.model.x_token_bytes
        if op == "load_kv":
            one = host_kv_token_bytes(self.model, self.workload.kv_bits)
        return self.workload.batch_size * n_tokens * one

    def token_knots(self, op: str, max_tokens: int) -> list[int]:
        """Token counts in [0, max_tokens] between which the time of `op` is a straight line.

        Count 0 means that the task does not exist. Knots that fall between two whole counts
        are represented by both.
        """
        knots = {0.0, 1.0, float(max_tokens)}
        batch = self.workload.batch_size
        if op in ("load_kv", "load_x"):
            link = self.hardware.links.h2d
            unit = self.load_bytes(op, 1)
            if link.curve is not None:
                knots.update(work / unit for work in link.curve.work)
        elif op in self._quantisation:
            knots.update(work / self._kv_elements for work in self._quantisation[op].work)
        else:
            for kernel in kernels(op, 1, 1, *self._setting):
                knots.update(self._kernel_knots(kernel, batch))
        whole = {bound for knot in knots for bound in (floor(knot), ceil(knot))}
        return sorted(count for count in whole if 0 <= count <= max_tokens)

    def _kernel_knots(self, kernel: Kernel, batch: int) -> list[float]:
        if isinstance(kernel, MatMul):
            return [m / batch for m in self._matmuls.row_knots(kernel)]
        if (
            isinstance(kernel, ElementwiseKernel)
            and (curve := self._pass_curve(kernel)) is not None
        ):
            return [work / kernel.bytes for work in curve.work]
        return []

    def _pass_curve(self, kernel: ElementwiseKernel) -> Curve | None:
        """Measured seconds over bytes, of plain copies where those were measured too."""
        costs = self.hardware.elementwise
        return costs.copies if kernel.plain and costs.copies is not None else costs.curve

    def kernel(self, kernel: Kernel) -> Estimate:
        """Time of one kernel."""
        if isinstance(kernel, MatMul):
            return self.matmul(kernel)
        if isinstance(kernel, GroupedMatMul):
            return self.matmul(kernel.stacked)
        if isinstance(kernel, DecodeAttention):
            return self._attention(kernel)
        if isinstance(kernel, ExpertsKernel):
            return self._experts(kernel)
        if isinstance(kernel, AllReduceKernel):
            return Estimate(*self._all_reduce.seconds(self.model.tensor_parallel, kernel.bytes))
        costs, curve = self.hardware.elementwise, self._pass_curve(kernel)
        if curve is None:
            return Estimate(kernel.bytes / costs.bytes_per_s, costs.source, True)
        seconds, inside = curve.at(kernel.bytes)
        return Estimate(seconds, costs.source, inside)

    def _experts(self, kernel: ExpertsKernel) -> Estimate:
        """By the table of the weights' bits, or of the next more bits that were measured."""
        gemm, bits = self.hardware.gemm, self.model.bits.experts
        wide_enough = [one for one in gemm.experts if bits <= (1 + SCALES_FRAC) * one.weight_bits]
        if not wide_enough:
            return total_of([self.kernel(part) for part in kernel.parts])
        table = min(wide_enough, key=lambda one: one.weight_bits)
        curve, measured = table.curve(kernel.shape, bits)
        seconds, inside = curve.at(kernel.rows)
        source = gemm.source if measured else weakest(gemm.source, "fitted")
        return Estimate(seconds, source, measured and inside)

    def matmul(self, shape: MatMul) -> Estimate:
        """Time of one matrix product."""
        return Estimate(*self._matmuls.estimate(shape))

    def _attention(self, kernel: DecodeAttention) -> Estimate:
        costs = self.hardware.attention
        model = self.model
        table = self._attention_tables.get((model.n_heads, model.n_kv_heads, model.head_dim))
        if table is not None and model.mla is None:
            seconds, inside = table.grid.at(kernel.batch, kernel.context)
            return Estimate(seconds, costs.source, inside)
        if costs.heads and model.mla is None:
            return self._attention_of_heads(kernel)
        if costs.latent and model.mla is not None:
            return self._attention_of_latents(kernel)
        n_bytes = kernel.batch * kernel.context * model.kv_token_bytes
        source = weakest(costs.source, "fitted") if costs.tables else costs.source
        seconds = n_bytes / costs.bytes_per_s
        if model.mla is not None:  # all heads share each latent, so arithmetic may take longer
            seconds = max(seconds, kernel.flops(model) / self.hardware.gemm.flops_per_s)
        return Estimate(seconds, source, not costs.tables)

    def _attention_of_latents(self, kernel: DecodeAttention) -> Estimate:
        """By the table of the nearest number of heads, in proportion to a latent's size."""
        costs, model = self.hardware.attention, self.model
        near = min(costs.latent, key=lambda one: abs(log(one.n_heads / model.n_heads)))
        seconds, inside = near.fan.at(kernel.batch, kernel.context)
        same = (near.n_heads, near.latent_size) == (model.n_heads, model.kv_token_size)
        source = costs.source if same else weakest(costs.source, "fitted")
        return Estimate(seconds * model.kv_token_size / near.latent_size, source, same and inside)

    def _attention_of_heads(self, kernel: DecodeAttention) -> Estimate:
        """By the KV heads of all sequences; heads of another size go at the nearest one's rate."""
        costs, head_dim = self.hardware.attention, self.model.head_dim
        near = min(costs.heads, key=lambda one: abs(log(one.head_dim / head_dim)))
        seconds, inside = near.fan.at(kernel.batch * self.model.n_kv_heads, kernel.context)
        if near.head_dim == head_dim:
            return Estimate(seconds, costs.source, inside)
        scaled_s = seconds * head_dim / near.head_dim
        return Estimate(scaled_s, weakest(costs.source, "fitted"), False)
