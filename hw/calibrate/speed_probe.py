"""How fast the machine is now against its profile, told by a few matrix products and copies."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from statistics import median

import torch

from hw.backends import Backend
from hw.calibrate.bench import MAX_EVICTED_BYTES, SLOTS, Bench, rotation_copies
from hw.model.weights import TORCH_DTYPE
from sim.cost.operations import OperationCosts
from sim.graph.jobs import Workload
from sim.lanes import H2D
from sim.machine.profile import HardwareProfile
from sim.model.kernels import MatMul, kernels
from sim.model.spec import ModelSpec

RECOMPUTED_ROWS = 1024
DECODED_ROWS = 4
LINK_BYTES = 2**24
"""Size of the copy that tells the speed of a real link."""

RECENT_SAMPLES = 48
"""Beats whose median is the present speed."""

Sampler = Callable[[], list[float]]


def probe_samplers(
    bench: Bench, model: ModelSpec, most_rows: int
) -> dict[str, dict[MatMul, Sampler]]:
    """Products by what bounds them: one of a recomputation (`flops`), those of a decode (`hbm`).

    Args:
        most_rows: rows of the largest recomputation that the profile knows.
    """
    recomputed = MatMul(min(RECOMPUTED_ROWS, most_rows), 2 * model.kv_size, model.hidden_size)
    return {
        "flops": {recomputed: partial(bench.matmul_after_copy, *astuple(recomputed))},
        "hbm": step_points(bench, model, DECODED_ROWS),
    }


def step_points(bench: Bench, model: ModelSpec, n_tokens: int) -> dict[MatMul, Sampler]:
    """Products of a layer over so many tokens."""
    shapes = [MatMul(n_tokens, n, k) for n, k in layer_matrices(model)]
    return {shape: partial(bench.matmul, *astuple(shape)) for shape in shapes}


def layer_matrices(model: ModelSpec) -> set[tuple[int, int]]:
    """Output and input width of every matrix of a layer."""
    return {
        (kernel.n, kernel.k)
        for op in ("qkv", "attention", "mlp")
        for kernel in kernels(op, 1, 1, model, 1)
        if isinstance(kernel, MatMul)
    }


class SpeedProbe:
    """The products of `probe_samplers`, timed again and again between what is measured.

    Where the link is real, a copy to the device tells the speed of part `link`.

    Args:
        step_tokens: of restores, tokens of a step; products of steps tell of `flops` then.
    """

    def __init__(
        self,
        backend: Backend,
        model: ModelSpec,
        hardware: HardwareProfile,
        step_tokens: int | None = None,
    ) -> None:
        tables = {(table.n, table.k): table for table in hardware.gemm.tables}
        table = tables.get((2 * model.kv_size, model.hidden_size))
        most_rows = RECOMPUTED_ROWS if table is None else int(table.curve.work[-1])
        costs = OperationCosts(hardware, model, Workload(1, 1, 1))
        slot = RECOMPUTED_ROWS * max(2 * model.kv_size, model.hidden_size)
        largest = max(slot, model.layer_weight_bytes // model.element_bytes)
        bench = Bench(backend, TORCH_DTYPE[model.dtype], largest, slot, model.layer_weight_bytes)
        points = probe_samplers(bench, model, most_rows)
        if step_tokens is not None:
            points["flops"] = step_points(bench, model, step_tokens)
        self._profiled_s = {
            part: sum(costs.matmul(shape).seconds for shape in shapes)
            for part, shapes in points.items()
        }
        self._samplers = {part: list(shapes.values()) for part, shapes in points.items()}
        if hardware.links.h2d.paced_bytes_per_s is None and backend.kind != "cpu":
            n_bytes = min(LINK_BYTES, slot * model.element_bytes)
            self._samplers["link"] = [
                partial(bench.back_to_back, H2D, bench.copy_work(H2D, n_bytes))
            ]
            self._profiled_s["link"], _ = hardware.links.h2d.copy_s(n_bytes)
        self._recent: deque[dict[str, float]] = deque(maxlen=RECENT_SAMPLES)

    @staticmethod
    def device_bytes(model: ModelSpec, kind: str) -> int:
        """Device memory that the probe of a model takes on a device of this kind."""
        shapes = {*layer_matrices(model), (2 * model.kv_size, model.hidden_size)}
        sizes = [n * k * model.element_bytes for n, k in shapes]
        slot = RECOMPUTED_ROWS * max(2 * model.kv_size, model.hidden_size) * model.element_bytes
        largest = max(slot, model.layer_weight_bytes, MAX_EVICTED_BYTES)
        cold = sum(size * rotation_copies(size, kind) for size in sizes)
        return cold + (1 + SLOTS) * largest + SLOTS * slot

    def sample(self) -> dict[str, float]:
        """For each part: time of its products now / their time in the profile."""
        with torch.inference_mode():
            ratios = {
                part: sum(median(sample()) for sample in samplers) / self._profiled_s[part]
                for part, samplers in self._samplers.items()
            }
        self._recent.append(ratios)
        return ratios

    def drift(self, samples: int) -> dict[str, float]:
        """The same ratios, medians over some beats now and the last ones before."""
        for _ in range(samples):
            self.sample()
        return {part: median(sample[part] for sample in self._recent) for part in self._samplers}
