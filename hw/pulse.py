"""Whether the machine is as fast now as when it was profiled, told by one matrix product."""

from __future__ import annotations

from statistics import median

import torch

from hw.backends import Backend
from hw.bench import Bench
from hw.weights import TORCH_DTYPE
from sim.cost import CostModel, MatMul
from sim.hardware import HardwareProfile
from sim.model_spec import ModelSpec
from sim.workload import Workload

PULSE_ROWS = 1024
BEATS = 12
"""Samples whose median is taken for the present speed."""


def pulse_shape(model: ModelSpec, most_rows: int = PULSE_ROWS) -> tuple[int, int, int]:
    """(m, n, k) of the reference product, a recomputation of up to `PULSE_ROWS` rows."""
    return min(PULSE_ROWS, most_rows), 2 * model.kv_size, model.hidden_size


class Pulse:
    """The reference product, timed again and again beside what is measured."""

    def __init__(self, backend: Backend, model: ModelSpec, hardware: HardwareProfile) -> None:
        self._shape = m, n, k = pulse_shape(model)
        slot = m * max(n, k)
        dtype, layer_bytes = TORCH_DTYPE[model.dtype], model.layer_weight_bytes
        self._bench = Bench(backend, dtype, max(slot, n * k), slot, layer_bytes)
        costs = CostModel(hardware, model, Workload(1, m, 1))
        self._profiled_s = costs.matmul(MatMul(m, n, k)).seconds
        self._seen_s: list[float] = []

    def slowdown_frac(self) -> float:
        """Time of the product now / its time in the profile - 1."""
        with torch.inference_mode():
            now_s = median(self._bench.matmul_fed(*self._shape))
        self._seen_s.append(now_s)
        return now_s / self._profiled_s - 1.0

    def drift_frac(self) -> float:
        """Usual time of the product since profiling / its time in the profile - 1."""
        for _ in range(BEATS):
            self.slowdown_frac()
        return median(self._seen_s) / self._profiled_s - 1.0
