"""Measure the rates and times of a device that the cost model needs, as a HardwareProfile.

All points are sampled in several passes over the whole list, so that a disturbance of some
seconds affects one pass of many points instead of all samples of one. The kernels of a CPU are
sampled relative to reference kernels (`hw.calibrate.reference`). A profile holds the samples and
their medians, of copies over a real link the least.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from statistics import median
from time import perf_counter

import torch

from hw.backends import Backend
from hw.calibrate import attention, elementwise, experts, gemm, lanes, restores
from hw.calibrate.bench import Bench
from hw.calibrate.ranges import SampledRanges
from hw.calibrate.reference import RelativeSamples, references
from hw.calibrate.tables import Samplers
from hw.model.weights import TORCH_DTYPE, check_runnable
from sim.machine.profile import HardwareProfile, Memory
from sim.machine.provenance import Point, Samples
from sim.model.spec import ModelSpec
from sim.progress import Progress, Silent

PASSES = {"cpu": 12, "cuda": 3}
"""Passes over all points."""

LANES_EVERY = {"cpu": 6, "cuda": 1}
"""Lanes and the disk are sampled in the first of so many passes. On a CPU they vary less
than matmuls that wait for memory, and take longer."""

WARM_UP_S = 1.0
"""Seconds of matmuls before the first sample: clocks rise and libraries load."""

SILENT = Silent()


def profile_device(
    backend: Backend,
    models: Sequence[ModelSpec],
    name: str,
    ranges: SampledRanges,
    link_bytes_per_s: float | None = None,
    progress: Progress = SILENT,
    max_s: float = math.inf,
) -> HardwareProfile:
    """A measured profile of a device for the shapes of `models`, which share one dtype.

    Args:
        link_bytes_per_s: pace of an emulated link, recorded as such.
        progress: receives the number of the pass and the fraction done.
        max_s: seconds after which no further pass begins; there is always one.
    """
    for model in models:
        check_runnable(model, backend.kind)
    memory, environment = backend.memory(), backend.environment()
    with torch.inference_mode():
        bench = _bench(backend, models, ranges)
        samples = _sample(bench, models, ranges, progress, max_s)
    medians = {point: value(point, values, backend.kind) for point, values in samples.items()}
    products = gemm.block(medians, models[0].element_bytes)
    return HardwareProfile(
        name=name,
        description=f"measured on {environment['device']}",
        device_kind="cuda" if backend.kind == "cuda" else "cpu",
        dtype=models[0].dtype,
        memory=Memory("measured", memory.device_bytes, memory.host_bytes),
        gemm=replace(products, experts=experts.block(medians, products, models[0].element_bytes)),
        attention=attention.block(medians, models, ranges),
        elementwise=elementwise.block(medians),
        links=lanes.links_block(medians, link_bytes_per_s),
        dispatch=lanes.dispatch_block(medians, bench),
        interference=lanes.interference_block(medians),
        environment=environment,
        restore=restores.block(medians, models, ranges),
        samples=tuple(Samples.rounded(point, values) for point, values in samples.items()),
    )


def balanced_link_bytes_per_s(backend: Backend, model: ModelSpec) -> float:
    """The link pace at which recomputing about half of the cache pays off, to two digits.

    At this pace, loading half of the tokens as X and half as KV takes as long as recomputing half.
    """
    rows, n = 2048, model.kv_token_size
    with torch.inference_mode():
        slot = rows * max(n, model.hidden_size)
        largest = max(slot, n * model.hidden_size)
        bench = Bench(backend, TORCH_DTYPE[model.dtype], largest, slot, model.layer_weight_bytes)
        seconds = median(bench.matmul_after_copy(rows, n, model.hidden_size))
    return float(f"{rows * (model.x_token_bytes + model.kv_token_bytes) / seconds:.1e}")


def _bench(backend: Backend, models: Sequence[ModelSpec], ranges: SampledRanges) -> Bench:
    """A bench with room for the largest operand and the largest copy of all points."""
    dtype = TORCH_DTYPE[models[0].dtype]
    operands, slots = [], [ranges.copy_bytes[-1] // dtype.itemsize]
    for model in models:
        hidden = model.hidden_size
        operands += [
            max(model.vocab_size, 2 * model.intermediate_size) * hidden,
            2 * ranges.max_rows * max(model.kv_token_size, hidden),
            *_expert_operands(model),
        ]
        attended = ranges.batches[-1] * ranges.contexts[-1]
        slots += [ranges.max_rows * hidden, attended * model.kv_token_size]
    layer_bytes = min(model.layer_weight_bytes for model in models)
    return Bench(backend, dtype, max(operands), max(slots), layer_bytes)


def _expert_operands(model: ModelSpec) -> list[int]:
    """Elements of the matrices of a layer's experts that are one operand."""
    shape = experts.shape_of(model)
    return [] if shape is None else [2 * shape.routed * shape.width * shape.hidden]


def _sample(
    bench: Bench,
    models: Sequence[ModelSpec],
    ranges: SampledRanges,
    progress: Progress,
    max_s: float,
) -> dict[Point, list[float]]:
    """The samples of every point from `PASSES` passes."""
    kind = bench.backend.kind
    kernels: Samplers = {}
    for block in (gemm, attention, elementwise, experts):
        kernels |= block.samplers(bench, models, ranges)
    reference_parts = [references(bench, model, ranges.max_rows) for model in models]
    for points in (points for parts in reference_parts for points in parts.values()):
        kernels |= points
    relative = RelativeSamples(reference_parts[0]) if kind == "cpu" else None
    _warm_up(bench)
    with ExitStack() as stack:
        others = lanes.samplers(bench, models, ranges)
        if ranges.restores:
            # some matmuls of prefill are recomputations too, whose samplers count
            kernels = {**restores.samplers(bench, models, ranges), **kernels}
            others |= stack.enter_context(restores.disk_samplers(bench))
        samples: dict[Point, list[float]] = defaultdict(list)
        begun_s = perf_counter()
        for number in range(PASSES[kind]):
            spent_s = perf_counter() - begun_s
            if number and spent_s * (number + 1) / number > max_s:
                break
            points = kernels if number % LANES_EVERY[kind] else {**kernels, **others}
            if relative is not None:
                relative.begin_pass()
            for done, (point, sampler) in enumerate(points.items()):
                fraction = (number + done / len(points)) / PASSES[kind]
                progress(f"pass {number + 1} of {PASSES[kind]}", fraction)
                if relative is not None and point in kernels:
                    relative.sample(point, sampler)
                else:
                    samples[point] += sampler()
    return samples if relative is None else samples | relative.samples()


def _warm_up(bench: Bench) -> None:
    until = perf_counter() + WARM_UP_S
    while perf_counter() < until:
        bench.matmul(1024, 1024, 1024)


def value(point: Point, samples: Sequence[float], kind: str) -> float:
    """The value of a point: the median of its samples.

    Of copies over a real link the least, because other jobs can only slow them down.
    """
    return min(samples) if (point[0], kind) == ("link", "cuda") else median(samples)
