"""The routed experts of a layer over the tokens that pass through them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import cycle

import torch
from torch import Tensor

from hw.calibrate.bench import ROTATION_BYTES, Bench
from hw.calibrate.ranges import SampledRanges
from hw.calibrate.tables import Medians, Samplers, named
from hw.model.experts import choose, mix, weigh
from hw.model.weights import Experts, Linear
from sim.lanes import COMPUTE
from sim.machine.experts import ExpertsTable
from sim.machine.profile import Gemm
from sim.machine.provenance import Point
from sim.machine.utilisation import UNIT
from sim.model.arithmetic import Arithmetic
from sim.model.kernels import ExpertsKernel, ExpertsShape
from sim.model.operations import kernels
from sim.model.spec import ModelSpec

MAX_LAYERS = 16
"""Layers of experts to cycle through."""

DRAWS = 8
"""Batches of tokens to cycle through, each of which chooses other experts."""


def samplers(bench: Bench, models: Sequence[ModelSpec], ranges: SampledRanges) -> Samplers:
    """The experts of each shape over tokens, from a decode step to the largest prefill chunk."""
    found: Samplers = {}
    for model in models:
        shape = shape_of(model)
        if shape is not None:
            found |= _samplers(bench, model, shape, ranges)
    return found


def shape_of(model: ModelSpec) -> ExpertsShape | None:
    """The routed experts of a layer; None if no layer has any."""
    launched = [
        kernel
        for kind in range(len(model.kinds))
        for kernel in kernels("mlp", 1, 1, model, 1, kind=kind)
    ]
    return next((one.shape for one in launched if isinstance(one, ExpertsKernel)), None)


def _samplers(
    bench: Bench, model: ModelSpec, shape: ExpertsShape, ranges: SampledRanges
) -> Samplers:
    device, most = bench.backend.device, ranges.batches[-1]
    if ranges.restores:
        most = max(most, ranges.max_rows // 8)
    n_bytes = 3 * shape.routed * shape.width * shape.hidden * bench.dtype.itemsize
    copies = max(1, min(MAX_LAYERS, ROTATION_BYTES // n_bytes))
    biased = model.arithmetic.router.biased
    layers = cycle([_random_experts(bench, shape, biased) for _ in range(copies)])
    generator = torch.Generator(device=device).manual_seed(0)
    found: Samplers = {}
    for count in (2**power for power in range(most.bit_length())):
        logits = torch.empty((DRAWS, count, shape.routed), dtype=bench.dtype, device=device)
        draws = cycle(logits.normal_(generator=generator).unbind())
        x = bench.random(count, shape.hidden)
        work = partial(_mix, layers, x, draws, shape.active, model.arithmetic)
        found[_point(shape, count)] = partial(bench.back_to_back, COMPUTE, work)
    return found


def _mix(
    layers: Iterator[Experts], x: Tensor, draws: Iterator[Tensor], active: int, how: Arithmetic
) -> None:
    experts, logits = next(layers), next(draws)
    chosen = choose(logits, active, how.router)
    mix(experts, x, weigh(logits, chosen, how.router), chosen, how)


def _random_experts(bench: Bench, shape: ExpertsShape, biased: bool) -> Experts:
    gate_up = bench.random(shape.routed, 2 * shape.width, shape.hidden).clone()
    down = bench.random(shape.routed, shape.hidden, shape.width).clone()
    biases = bench.random(*gate_up.shape[:2]), bench.random(*down.shape[:2])
    return Experts(
        router=Linear(bench.random(1, 1), None),
        correction=None,
        gate_up=gate_up,
        gate_up_bias=biases[0] if biased else None,
        down=down,
        down_bias=biases[1] if biased else None,
        shared=None,
        shared_gate=None,
    )


def _point(shape: ExpertsShape, n_tokens: int) -> Point:
    return "experts", shape.hidden, shape.width, shape.active, shape.routed, n_tokens


def block(medians: Medians, gemm: Gemm, element_bytes: int) -> tuple[ExpertsTable, ...]:
    """The table of all shapes, if any was sampled.

    Args:
        gemm: matmuls of the same profile, whose best rates are the peaks.
    """
    seconds = {point: value for point, value in medians.items() if point[0] == "experts"}
    if not seconds or gemm.bytes_per_s is None:
        return ()
    tokens = sorted({int(point[-1]) for point in seconds})
    floor_s = min(seconds.values())
    rates = gemm.flops_per_s, gemm.bytes_per_s
    lines = []
    for _, *sizes in named(medians, "experts"):
        shape = ExpertsShape(*map(int, sizes))
        shares = []
        for count in tokens:
            took_s = seconds.get(_point(shape, count))
            ideal_s = shape.roofline_s(count, shape.touched(count), 8 * element_bytes, *rates)
            share = 0 if took_s is None else max(1, round(UNIT * (floor_s + ideal_s) / took_s))
            shares.append(share)
        lines.append(" ".join(map(str, (*sizes, *shares))))
    table = ExpertsTable(8 * element_bytes, *rates, floor_s, tuple(tokens), tuple(lines))
    return (table,)
