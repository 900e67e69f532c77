"""Profile blocks of the lanes: links, interference between lanes, and launch costs (`Dispatch`)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from hw.calibrate.bench import Bench, Work, one_layer
from hw.calibrate.gemm import LAYER_OPS
from hw.calibrate.ranges import SampledRanges
from hw.calibrate.tables import Medians, Samplers, curve
from hw.model.attention import kv_shape
from hw.model.kernels import Kernels
from sim.lanes import COMPUTE, D2H, H2D, HOST
from sim.machine.links import Dispatch, Interference, Link, Links
from sim.model.kernels import n_launches
from sim.model.operations import kernels
from sim.model.spec import ModelSpec

INTERFERING = ((H2D, D2H), (D2H, H2D), (COMPUTE, H2D), (H2D, COMPUTE))
"""Pairs of a lane and the other lane that may slow it down."""

INTERFERING_BYTES = {"cpu": 2**21, "cuda": 2**23}
"""Size of the copies that may slow another lane down; an emulated link is slow."""

MIN_SPEED_FRAC = 0.01
"""Lower bound of a lane's relative speed while another works; a noisy sample can be below 0."""

CONTEXT = 16
"""Past tokens of the decoder layer whose launch time is measured, which does not depend on them."""


def samplers(bench: Bench, models: Sequence[ModelSpec], ranges: SampledRanges) -> Samplers:
    """Samplers of copies by size, lane interference, and the launch costs of `Dispatch`."""
    model = models[0]
    n, k = model.kv_token_size, model.hidden_size
    a, weight, out = bench.random(1024, k), bench.random(n, k), bench.out(1024, n)
    works: dict[str, Work] = {
        COMPUTE: lambda: torch.mm(a, weight.t(), out=out),
        H2D: bench.copy_work(H2D, INTERFERING_BYTES[bench.backend.kind]),
        D2H: bench.copy_work(D2H, INTERFERING_BYTES[bench.backend.kind]),
    }
    found: Samplers = {
        ("link", lane, size): partial(bench.back_to_back, lane, bench.copy_work(lane, size))
        for lane in (H2D, D2H, HOST)
        for size in ranges.copy_bytes
    }
    for lane, other in INTERFERING:
        found["pace", lane, other] = partial(
            bench.speed_while, lane, works[lane], other, works[other]
        )
    found["gap",], found["handover",] = bench.gap_s, bench.handover_s
    found["task",] = partial(bench.launch_s, COMPUTE, _nothing)
    if bench.backend.kind == "cpu":  # a lane's own thread launches its kernels and copies
        found["kernel",] = found["copy",] = lambda: [0.0]
    else:
        found["turn",] = bench.turn_s
        found["kernel",] = partial(_kernel_launch_s, bench, model)
        found["copy",] = partial(bench.launch_s, H2D, bench.copy_work(H2D, 4096))
    return found


def _nothing() -> None:
    """An empty task."""


def _kernel_launch_s(bench: Bench, model: ModelSpec) -> list[float]:
    """Host seconds to launch one kernel, a sample for each run of a decoder layer's kernels.

    A sample is the mean over the layer: a matmul takes longer to launch than an addition, and
    attention longer still.
    """
    layer_kernels = Kernels(one_layer(model, bench.backend.device), 1)
    layer = layer_kernels.weights.layers[0]
    hidden = bench.out(1, model.hidden_size)
    x = bench.out(1, model.hidden_size, slot=1)
    kv = bench.random(CONTEXT, 1, *kv_shape(model)).clone()

    def decode() -> None:
        queries = layer_kernels.qkv(layer, hidden, kv[-1:], x, 0)
        layer_kernels.attention(layer, hidden, queries, kv)
        layer_kernels.mlp(layer, hidden)

    launches = sum(n_launches(kernels(op, 1, CONTEXT, layer_kernels.model, 1)) for op in LAYER_OPS)
    task_s = min(bench.launch_s(COMPUTE, _nothing))
    layers_s = bench.launch_s(COMPUTE, decode, n=40)
    return [(layer_s - task_s) / launches for layer_s in layers_s]


def links_block(medians: Medians, paced_bytes_per_s: float | None) -> Links:
    """The curve of each direction; its rate is that of the largest copy.

    Args:
        paced_bytes_per_s: rate of an emulated link, None for a real one.
    """
    links = {}
    for lane in (H2D, D2H, HOST):
        copies = curve(medians, "link", lane)
        links[lane] = Link(
            "measured",
            bytes_per_s=copies.work[-1] / copies.seconds[-1],
            latency_s=copies.seconds[0],
            curve=copies,
            paced_bytes_per_s=None if lane == HOST else paced_bytes_per_s,
        )
    return Links(**links)


def dispatch_block(medians: Medians, bench: Bench) -> Dispatch:
    """Launch costs of the host, and pauses between tasks on the device (see `Dispatch`)."""
    return Dispatch(
        "measured",
        task_s=medians["task",],
        kernel_s=max(0.0, medians["kernel",]),
        copy_s=max(0.0, medians["copy",] - medians["task",]),
        gap_s=medians["gap",],
        handover_s=medians["handover",],
        head_start_s=bench.backend.head_start_s(),
        turn_s=medians.get(("turn",), 0.0),
        compute_task_s=bench.compute_task_s,
        copy_task_s=bench.copy_task_s,
    )


def interference_block(medians: Medians) -> tuple[Interference, ...]:
    """Speed of each lane that another may slow down, relative to its speed when that is idle."""
    speeds = {pair: medians["pace", *pair] for pair in INTERFERING}
    return tuple(
        Interference(*pair, min(1.0, max(MIN_SPEED_FRAC, speed)), "measured")
        for pair, speed in speeds.items()
    )
