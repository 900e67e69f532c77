"""The present speed of a machine against its profile, from reference kernels and copies."""

from __future__ import annotations

from collections import deque
from functools import partial
from statistics import mean, median

import torch

from hw.backends import Backend
from hw.calibrate.bench import MAX_EVICTED_BYTES, SLOTS, Bench, rotation_copies
from hw.calibrate.gemm import matmuls, matrices, shape_of
from hw.calibrate.reference import ATTENTION, FLOPS, RECOMPUTED_ROWS, references
from hw.model.weights import TORCH_DTYPE
from sim.cost.operations import OperationCosts
from sim.graph.jobs import Workload
from sim.lanes import H2D
from sim.machine.profile import HardwareProfile
from sim.machine.provenance import Point
from sim.model.kernels import DecodeAttention
from sim.model.operations import kernels
from sim.model.spec import ModelSpec

LINK_BYTES = 2**24
"""Size of the copy that measures the speed of a real link."""

COPY_BYTES = 2**21
"""Size of the copy that shows how late other processes make the copies of an emulated link."""

RECENT_SAMPLES = 48
"""Samples whose median is the present speed."""


class SpeedProbe:
    """Times of the reference kernels, to be sampled between measurements.

    Part `link`, which only a real link has, is the time of one copy to the device; part `copy` is
    the same for an emulated link.

    Args:
        step_tokens: tokens of a restore's step, whose matmuls are then part `flops`; a step's
            attention changes its speed as its matmuls do.

    Attributes:
        keeps_speed: the device does, so that a sample after one run serves the next run too.
    """

    def __init__(
        self,
        backend: Backend,
        model: ModelSpec,
        hardware: HardwareProfile,
        step_tokens: int | None = None,
    ) -> None:
        self.keeps_speed = backend.kind != "cpu"
        tables = {(table.n, table.k): table for table in hardware.gemm.tables}
        table = tables.get((model.kv_token_size, model.hidden_size))
        max_rows = RECOMPUTED_ROWS if table is None else int(table.curve.work[-1])
        costs = OperationCosts(hardware, model, Workload(1, 1, 1))
        slot = RECOMPUTED_ROWS * max(model.kv_token_size, model.hidden_size)
        largest = max(slot, model.layer_weight_bytes // model.element_bytes)
        bench = Bench(backend, TORCH_DTYPE[model.dtype], largest, slot, model.layer_weight_bytes)
        self._bench = bench
        parts = references(bench, model, max_rows)
        if step_tokens is not None:
            parts[FLOPS] = matmuls(bench, model, [step_tokens])
            parts.pop(ATTENTION, None)
        self._profiled_s = {
            part: sum(_profiled_s(point, costs) for point in points)
            for part, points in parts.items()
        }
        self._samplers = {part: list(points.values()) for part, points in parts.items()}
        part, most_bytes = ("copy", COPY_BYTES) if backend.kind == "cpu" else ("link", LINK_BYTES)
        n_bytes = min(most_bytes, slot * model.element_bytes)
        self._samplers[part] = [partial(bench.back_to_back, H2D, bench.copy_work(H2D, n_bytes))]
        self._profiled_s[part], _ = hardware.links.h2d.copy_s(n_bytes)
        self._recent: deque[dict[str, float]] = deque(maxlen=RECENT_SAMPLES)

    @staticmethod
    def device_bytes(model: ModelSpec, kind: str) -> int:
        """Device memory that the probe of a model uses, by kind of device."""
        shapes = {*matrices(model), (model.kv_token_size, model.hidden_size)}
        sizes = [n * k * model.element_bytes for n, k in shapes]
        slot = RECOMPUTED_ROWS * max(model.kv_token_size, model.hidden_size) * model.element_bytes
        largest = max(slot, model.layer_weight_bytes, MAX_EVICTED_BYTES)
        cold = sum(size * rotation_copies(size, kind) for size in sizes)
        attention = model.layer_weight_bytes if kind == "cpu" else 0
        return cold + attention + (1 + SLOTS) * largest + SLOTS * slot

    def sample(self, before_run: bool = False) -> dict[str, float]:
        """For each part, its time now divided by its time in the profile.

        Compute is in processor time. Of the copies the mean counts, because some are late.

        Args:
            before_run: take the large matmuls last, so that they are next to the run that follows;
                else first, next to the run that just ended. Their speed changes the most.
        """
        parts = list(self._samplers)
        with torch.inference_mode():
            ratios = {
                part: sum(
                    map(
                        mean if part == "copy" else median,
                        (sample() for sample in self._samplers[part]),
                    )
                )
                / self._profiled_s[part]
                for part in (reversed(parts) if before_run else parts)
            }
        self._recent.append(ratios)
        return ratios

    def drift(self, samples: int) -> dict[str, float]:
        """For each part, its duration now divided by its time in the profile.

        Medians over `samples` new samples and the recent ones, over the share of the core that the
        new ones had.
        """
        took_s, worked_s = self._bench.took_s, self._bench.worked_s
        for _ in range(samples):
            self.sample()
        core_share = (self._bench.worked_s - worked_s) / (self._bench.took_s - took_s)
        drift = {part: median(sample[part] for sample in self._recent) for part in self._samplers}
        return {
            part: one if part in ("link", "copy") else one / core_share
            for part, one in drift.items()
        }


def _profiled_s(point: Point, costs: OperationCosts) -> float:
    """Seconds of a reference point in the profile."""
    if point[0] == "gemm":
        return costs.matmul(shape_of(point)).seconds
    batch, context = map(int, point[-2:])
    launched = kernels("attention", 1, context, costs.model, batch)
    return sum(costs.kernel(one).seconds for one in launched if isinstance(one, DecodeAttention))
