"""Predicted time of an operation, kernel or copy on a machine, with its source.

An operation is broken into the kernels that it launches. Each kernel is read from the profile's
measured table, or computed from the profile's rates where no table covers it.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil, floor

from sim.cost.attention import AttentionCosts
from sim.cost.estimate import Estimate, total_of
from sim.cost.matmul import MatmulCosts
from sim.graph.jobs import Workload
from sim.machine.all_reduce import AllReduce
from sim.machine.curves import Curve
from sim.machine.experts import SCALES_FRAC
from sim.machine.profile import HardwareProfile
from sim.machine.provenance import weakest
from sim.model.kernels import (
    AllReduceKernel,
    DecodeAttention,
    ElementwiseKernel,
    ExpertsKernel,
    GroupedMatMul,
    IndexedAttention,
    IndexScores,
    Kernel,
    MatMul,
    StateUpdate,
    n_launches,
)
from sim.model.kv_format import host_row_bytes
from sim.model.operations import kernels
from sim.model.spec import ModelSpec


class OperationCosts:
    """Times of the operations and copies of one model and workload on one machine."""

    def __init__(self, hardware: HardwareProfile, model: ModelSpec, workload: Workload) -> None:
        self.hardware = hardware
        self.model = model
        self.workload = workload
        self._matmuls = MatmulCosts(hardware.gemm, model)
        self._attention = AttentionCosts(hardware, model.element_bytes)
        self._quantisation = {
            table.op: table.curve
            for table in hardware.elementwise.tables
            if table.bits == workload.kv_bits
        }
        self._all_reduce = hardware.all_reduce or AllReduce.over_pcie(hardware.links)
        self._computed: dict[tuple[str, int, int, int], Estimate] = {}
        self._launches: dict[tuple[str, int], int] = {}
        self._copied: dict[tuple[str, int], Estimate] = {}
        self._setting = (model, workload.batch_size, workload.kv_bits)

    def compute(self, op: str, n_tokens: int, context: int, kind: int = -1) -> Estimate:
        """Time of a compute operation on `n_tokens` tokens that attends to `context` keys.

        Args:
            kind: place of the layer in `model.kinds`; by default the last.
        """
        key = (op, n_tokens, context if op == "attention" else 0, kind)
        if key not in self._computed:
            self._computed[key] = self._compute(*key)
        return self._computed[key]

    def _compute(self, op: str, n_tokens: int, context: int, kind: int) -> Estimate:
        task_s = self.hardware.dispatch.compute_task_s
        if op in self._quantisation:
            seconds, inside = self._quantisation[op].at(n_tokens * self._kv_elements(kind))
            return Estimate(task_s + seconds, self.hardware.elementwise.source, inside)
        launched = kernels(op, n_tokens, context, *self._setting, kind)
        total = total_of([self.kernel(kernel) for kernel in launched])
        return replace(total, seconds=task_s + total.seconds)

    def _kv_elements(self, kind: int) -> int:
        """Elements of a token's K and V in all sequences."""
        return self.workload.batch_size * self.model.kinds[kind].attention.kv_size

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

    def launches(self, op: str, kind: int = -1) -> int:
        """Kernels that a task of operation `op` launches, 0 if a layer of this kind has no such."""
        if (op, kind) not in self._launches:
            launched = kernels(op, 1, 1, *self._setting, kind)
            self._launches[op, kind] = n_launches(launched)
        return self._launches[op, kind]

    def load_bytes(self, op: str, n_tokens: int, layer: int = 0) -> int:
        """Bytes of `load_x` or `load_kv` of `n_tokens` tokens of every sequence."""
        one = self.model.x_token_bytes
        if op == "load_kv":
            one = host_row_bytes(self.model, self.workload.kv_bits, layer)
        return self.workload.batch_size * n_tokens * one

    def token_knots(self, op: str, max_tokens: int, layer: int = 0) -> list[int]:
        """Token counts in [0, max_tokens] between which the time of `op` is a straight line.

        Count 0 means that the task does not exist. Knots that fall between two whole counts
        are represented by both.
        """
        knots = {0.0, 1.0, float(max_tokens)}
        batch, kind = self.workload.batch_size, self.model.kind_of[layer]
        if op in ("load_kv", "load_x"):
            link = self.hardware.links.h2d
            unit = self.load_bytes(op, 1, layer)
            if link.curve is not None:
                knots.update(work / unit for work in link.curve.work)
        elif op in self._quantisation:
            unit = self._kv_elements(kind)
            knots.update(work / unit for work in self._quantisation[op].work)
        else:
            for kernel in kernels(op, 1, 1, *self._setting, kind):
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
            return self._attention.estimate(kernel)
        if isinstance(kernel, StateUpdate):
            return self._attention.state(kernel)
        if isinstance(kernel, IndexedAttention):
            whole = self._attention.indexed(kernel)
            return whole or total_of([self.kernel(part) for part in kernel.parts])
        if isinstance(kernel, IndexScores):
            return self._attention.without_table(kernel)
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
