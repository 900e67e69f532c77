"""Measure what the cost model needs of a device, and write it down as a HardwareProfile.

All points are sampled in several passes over the whole list, so that a disturbance of some
seconds spoils one pass of many points instead of all samples of one; each figure is a median, and
the samples are kept beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from statistics import median
from time import perf_counter

import torch

from hw.backends import Backend
from hw.calibrate.bench import Bench
from hw.calibrate.samplers import (
    disk_points,
    prefill_points,
    product_points,
    quantisation_points,
    quantisation_tables,
    restore_block,
    step_point,
)
from hw.calibrate.speed_probe import probe_samplers
from hw.model.kernels import Kernels
from hw.model.weights import TORCH_DTYPE, Norm, check_runnable, random_weights
from sim.lanes import COMPUTE, D2H, H2D, HOST
from sim.machine.curves import Curve, Grid
from sim.machine.links import Dispatch, Interference, Link, Links
from sim.machine.profile import (
    Attention,
    AttentionTable,
    Elementwise,
    Gemm,
    GemmTable,
    HardwareProfile,
    Memory,
)
from sim.machine.provenance import Point, Samples
from sim.model.kernels import MatMul, kernels
from sim.model.kv_format import KV_BITS
from sim.model.spec import ModelSpec

PASSES = {"cpu": 8, "cuda": 3}
LANES_EVERY = {"cpu": 3, "cuda": 1}
"""Passes over all kernels, and in every which of them lanes and prefill are sampled too: on a CPU
they vary less than products that wait for memory, and take longer."""

CONTEXTS = {
    "cpu": (64, 256, 512, 1024, 2048),
    "cuda": (65, 257, 513, 769, 1025, 1537, 2049),
}
"""Keys of the sampled attention. A GPU works in tiles of 64, and a decode attends to its prompt and
the new token."""

MIN_PACE = 0.01
"""Least pace that a lane is said to keep while another works; a bad sample can come out below 0."""

LINK_BYTES = tuple(4**power for power in range(5, 16))
"""Copies of 1 KiB to 1 GiB."""

WARM_UP_S = 1.0
INTERFERING = ((H2D, D2H), (D2H, H2D), (COMPUTE, H2D), (H2D, COMPUTE))
"""Which lane may slow down while which other works."""

Sampler = Callable[[], list[float]]
Progress = Callable[[str, float], None]


def profile_device(
    backend: Backend,
    models: Sequence[ModelSpec],
    name: str,
    max_batch: int = 8,
    max_rows: int = 4096,
    max_copy_bytes: int = 2**26,
    link_bytes_per_s: float | None = None,
    kv_bits: Sequence[int] = KV_BITS,
    restores: bool = True,
    progress: Progress = lambda _text, _done: None,
    max_s: float = math.inf,
) -> HardwareProfile:
    """Measure a device for the shapes of `models`, which share one dtype.

    Args:
        max_batch: largest batch whose decode steps are sampled.
        max_rows: largest `batch * tokens` of a recomputation that is sampled.
        max_copy_bytes: largest copy that is sampled.
        link_bytes_per_s: pace of an emulated link, recorded as such.
        kv_bits: quantised caches whose kernels are sampled.
        restores: sample prefill in chunks and the disk too.
        progress: called with what is measured and the fraction done.
        max_s: after this time no further pass over the points begins; there is always one.
    """
    for model in models:
        check_runnable(model)
    batches = [2**power for power in range(max_batch.bit_length()) if 2**power <= max_batch]
    copies = [size for size in LINK_BYTES if size <= max_copy_bytes]
    memory, environment = backend.memory(), backend.environment()
    with torch.inference_mode():
        profiler = _Profiler(backend, models, batches, max_rows, copies, kv_bits, restores)
        samples = profiler.measure(progress, max_s)
    figures = {point: _figure(point, values, backend.kind) for point, values in samples.items()}
    links = _links(figures, copies, link_bytes_per_s)
    return HardwareProfile(
        name=name,
        description=f"measured on {environment['device']}",
        device_kind="cuda" if backend.kind == "cuda" else "cpu",
        dtype=models[0].dtype,
        memory=Memory("measured", memory.device_bytes, memory.host_bytes),
        gemm=_gemm(figures, models[0].element_bytes),
        attention=_attention(figures, models, batches, backend.kind),
        elementwise=_elementwise(figures),
        links=links,
        dispatch=Dispatch(
            "measured",
            task_s=figures["task",],
            kernel_s=max(0.0, figures["kernel",]),
            copy_s=max(0.0, figures["copy",] - figures["task",]),
            gap_s=figures["gap",],
            handover_s=figures["handover",],
            head_start_s=backend.head_start_s(),
            turn_s=figures.get(("turn",), 0.0),
            compute_task_s=profiler.bench.compute_task_s,
            copy_task_s=profiler.bench.copy_task_s,
        ),
        interference=tuple(
            Interference(
                lane, other, min(1.0, max(MIN_PACE, figures["pace", lane, other])), "measured"
            )
            for lane, other in INTERFERING
        ),
        environment=environment,
        restore=restore_block(figures, models, max_rows) if restores else None,
        samples=tuple(Samples.rounded(point, values) for point, values in samples.items()),
    )


def balanced_link_bytes_per_s(backend: Backend, model: ModelSpec) -> float:
    """A link pace at which recomputing about half of the cache is worth while on this machine.

    Half of the tokens as X and half as KV then take as long to load as half to recompute;
    rounded to two digits.
    """
    rows, n = 2048, 2 * model.kv_size
    with torch.inference_mode():
        slot = rows * max(n, model.hidden_size)
        largest = max(slot, n * model.hidden_size)
        bench = Bench(backend, TORCH_DTYPE[model.dtype], largest, slot, model.layer_weight_bytes)
        seconds = median(bench.matmul_after_copy(rows, n, model.hidden_size))
    return float(f"{rows * (model.x_token_bytes + model.kv_token_bytes) / seconds:.1e}")


class _Profiler:
    """The list of points to sample for some models, and their samples."""

    def __init__(
        self,
        backend: Backend,
        models: Sequence[ModelSpec],
        batches: Sequence[int],
        max_rows: int,
        copies: Sequence[int],
        kv_bits: Sequence[int],
        restores: bool,
    ) -> None:
        self.copies = copies
        self.restores = restores
        self.kv_bits = kv_bits
        self.backend = backend
        self.models = models
        self.batches = batches
        self.max_rows = max_rows
        widest = max(
            max(model.vocab_size, 2 * model.intermediate_size) * model.hidden_size
            for model in models
        )
        tall = max(2 * max_rows * max(model.kv_size, model.hidden_size) for model in models)
        slot = max(
            max(
                max_rows * model.hidden_size,
                batches[-1] * CONTEXTS[backend.kind][-1] * 2 * model.kv_size,
            )
            for model in models
        )
        dtype = TORCH_DTYPE[models[0].dtype]
        slot = max(slot, copies[-1] // dtype.itemsize)
        layer_bytes = min(model.layer_weight_bytes for model in models)
        self.bench = Bench(backend, dtype, max(widest, tall), slot, layer_bytes)

    def measure(self, progress: Progress, max_s: float) -> dict[Point, list[float]]:
        """Sample every point in `PASSES` passes."""
        passes = PASSES[self.backend.kind]
        kernel_points = {
            **self._gemm_points(),
            **self._attention_points(),
            **self._elementwise_points(),
            **self._copy_points(),
            **quantisation_points(
                self.bench, self.models[0], self.kv_bits, self.batches, self.max_rows
            ),
        }
        self._warm_up()
        with ExitStack() as stack:
            rarely = {**self._link_points(), **self._lane_points()}
            if self.restores:
                rarely |= self._prefill_points(kernel_points)
                rarely |= stack.enter_context(disk_points(self.bench))
            samples: dict[Point, list[float]] = {key: [] for key in (*kernel_points, *rarely)}
            begun_s = perf_counter()
            for number in range(passes):
                spent_s = perf_counter() - begun_s
                if number and spent_s * (number + 1) / number > max_s:
                    break
                points = kernel_points
                if number % LANES_EVERY[self.backend.kind] == 0:
                    points = {**kernel_points, **rarely}
                for done, (key, sampler) in enumerate(points.items()):
                    fraction = (number + done / len(points)) / passes
                    progress(f"pass {number + 1} of {passes}", fraction)
                    samples[key] += sampler()
        return samples

    def _warm_up(self) -> None:
        """A second of matrix products: clocks rise, libraries load."""
        until = perf_counter() + WARM_UP_S
        while perf_counter() < until:
            self.bench.matmul(1024, 1024, 1024)

    def _gemm_points(self) -> dict[Point, Sampler]:
        """Products of decode steps, and the K/V projection over all rows."""
        points: dict[Point, Sampler] = {
            ("gemm", kernel.n, kernel.k, m): _sampler(self.bench.matmul, m, kernel.n, kernel.k)
            for model in self.models
            for op in ("qkv", "attention", "mlp", "head")
            for kernel in kernels(op, 1, 1, model, 1)
            if isinstance(kernel, MatMul)
            for m in self._decode_rows
        }
        rows = sorted(
            {*self._decode_rows, self.max_rows}
            | {2**power for power in range(4, self.max_rows.bit_length())}
            | {3 * 2**power for power in range(7, 14) if 3 * 2**power < self.max_rows}
        )
        for model in self.models:
            n, k = 2 * model.kv_size, model.hidden_size
            for m in rows:
                points["gemm", n, k, m] = _sampler(self.bench.matmul_after_copy, m, n, k)
            for probes in probe_samplers(self.bench, model, self.max_rows).values():
                for shape, sampler in probes.items():
                    points["gemm", shape.n, shape.k, shape.m] = sampler
        return points

    @property
    def _decode_rows(self) -> list[int]:
        """Kernels for a few rows go in steps; every count is sampled before they get wide."""
        return sorted(
            {*range(1, min(8, self.batches[-1]) + 1), *self.batches}
            | {3 * batch // 2 for batch in self.batches if 8 <= batch < self.batches[-1]}
        )

    def _attention_points(self) -> dict[Point, Sampler]:
        points: dict[Point, Sampler] = {}
        for model in self.models:
            heads = (model.n_heads, model.n_kv_heads, model.head_dim)
            attend = _one_layer(model, self.backend).attend
            for batch in self.batches:
                queries = self.bench.random(batch, model.n_heads, model.head_dim)
                for context in _contexts(model, self.backend.kind):
                    shape = (context, batch, 2, model.n_kv_heads, model.head_dim)
                    points["attention", *heads, batch, context] = _sampler(
                        self.bench.after_copy,
                        shape,
                        lambda _, kv, q=queries, attend=attend: attend(q, kv),
                    )
        return points

    def _elementwise_points(self) -> dict[Point, Sampler]:
        """The input norm over growing numbers of rows, used for all element-wise kernels."""
        model = self.models[0]
        layer = _one_layer(model, self.backend)
        widest = model.hidden_size
        narrowest = min(other.kv_size for other in self.models) // 2
        shapes = {(1, max(1, min(widest, narrowest))), (2 * self.max_rows, widest)}
        shapes |= {(4**power, widest) for power in range(10) if 4**power < 2 * self.max_rows}
        points: dict[Point, Sampler] = {}
        for rows, width in sorted(shapes):
            x, norm = self.bench.random(rows, width), _narrowed(layer.weights.final_norm, width)
            points["elementwise", 2 * rows * width * model.element_bytes] = _sampler(
                self.bench.between_matmuls,
                model.hidden_size,
                lambda _, x=x, norm=norm: layer.norm(norm, x),
            )
        return points

    def _copy_points(self) -> dict[Point, Sampler]:
        """Copies within device memory, over bytes read and written together."""
        if self.backend.kind == "cpu":
            return {}
        bench = self.bench
        most = self.max_rows * max(2 * model.kv_size for model in self.models)
        points: dict[Point, Sampler] = {}
        for elements in (4**power for power in range(8, 16) if 4**power <= most):
            into, out_of = bench.out(elements), bench.random(elements)
            points["copied", 2 * elements * into.itemsize] = _sampler(
                bench.back_to_back, COMPUTE, lambda _, a=into, b=out_of: a.copy_(b)
            )
        return points

    def _link_points(self) -> dict[Point, Sampler]:
        return {
            ("link", lane, size): _sampler(
                self.bench.back_to_back, lane, self.bench.copy_work(lane, size)
            )
            for lane in (H2D, D2H, HOST)
            for size in self.copies
        }

    def _prefill_points(self, known: Mapping[Point, Sampler]) -> dict[Point, Sampler]:
        """What a restore needs besides: prefill in chunks."""
        points = step_point(self.bench, self.models[0])
        for model in self.models:
            points |= product_points(self.bench, model, self.max_rows)
            points |= prefill_points(self.bench, model, self.max_rows)
        return {key: sampler for key, sampler in points.items() if key not in known}

    def _lane_points(self) -> dict[Point, Sampler]:
        """Interference between lanes, launch time of the host, and the time between tasks."""
        bench, model = self.bench, self.models[0]
        n, k = 2 * model.kv_size, model.hidden_size
        a, weight, out = bench.random(1024, k), bench.random(n, k), bench.out(1024, n)
        works: dict[str, Callable[[int], object]] = {
            COMPUTE: lambda _: torch.mm(a, weight.t(), out=out),
            H2D: bench.copy_work(H2D, 2**23),
            D2H: bench.copy_work(D2H, 2**23),
        }
        points: dict[Point, Sampler] = {
            ("pace", lane, other): _sampler(
                bench.speed_while, lane, works[lane], other, works[other]
            )
            for lane, other in INTERFERING
        }
        points["gap",] = bench.gap_s
        points["handover",] = bench.handover_s
        points["task",] = _sampler(bench.launch_s, COMPUTE, lambda _: None)
        if self.backend.kind == "cpu":  # a lane's own thread launches its kernels and copies
            points["kernel",] = points["copy",] = lambda: [0.0]
        else:
            points["turn",] = bench.turn_s
            points["kernel",] = self._kernel_launch
            points["copy",] = _sampler(bench.launch_s, H2D, bench.copy_work(H2D, 4096))
        return points

    def _kernel_launch(self) -> list[float]:
        """Host seconds to launch one kernel, mean over those of a decoder layer.

        A matrix product takes longer to launch than an addition, and attention longer still.
        """
        model, bench = self.models[0], self.bench
        layer_kernels = _one_layer(model, self.backend)
        layer = layer_kernels.weights.layers[0]
        hidden = bench.out(1, model.hidden_size)
        x = bench.out(1, model.hidden_size, slot=1)
        context = 16
        kv = bench.random(context, 1, 2, model.n_kv_heads, model.head_dim).clone()

        def decode(_: int) -> None:
            queries = layer_kernels.qkv(layer, hidden, kv[-1:], x, 0)
            layer_kernels.attention(layer, hidden, queries, kv)
            layer_kernels.mlp(layer, hidden)

        ops = ("qkv", "attention", "mlp")
        launches = sum(len(kernels(op, 1, context, model, 1)) for op in ops)
        task_s = min(bench.launch_s(COMPUTE, lambda _: None))
        layers_s = bench.launch_s(COMPUTE, decode, n=40)
        return [(layer_s - task_s) / launches for layer_s in layers_s]


def _figure(point: Point, values: list[float], kind: str) -> float:
    """What a profile says of the samples of a point.

    Others on a shared host can only slow a real link down, and do so for milliseconds: its fastest
    copies tell its rate.
    """
    return min(values) if kind == "cuda" and point[0] == "link" else median(values)


def _sampler(function: Callable[..., list[float]], *args: object) -> Sampler:
    return lambda: function(*args)


def _one_layer(model: ModelSpec, backend: Backend) -> Kernels:
    tiny = replace(model, n_layers=1, vocab_size=8, intermediate_size=8, max_positions=8)
    return Kernels(random_weights(tiny, 0, backend.device), 1)


def _narrowed(norm: Norm, width: int) -> Norm:
    return Norm(norm.weight[:width], None if norm.bias is None else norm.bias[:width])


def _contexts(model: ModelSpec, kind: str) -> list[int]:
    return [context for context in CONTEXTS[kind] if context <= model.max_positions + 1]


def _gemm(figures: dict[Point, float], element_bytes: int) -> Gemm:
    shapes: dict[tuple[int, int], dict[int, float]] = {}
    best_flops = best_bytes = 0.0
    for key, seconds in figures.items():
        if key[0] == "gemm":
            n, k, m = (int(part) for part in key[1:])
            shapes.setdefault((n, k), {})[m] = seconds
            best_flops = max(best_flops, 2 * m * n * k / seconds)
            best_bytes = max(best_bytes, (n * k + m * (n + k)) * element_bytes / seconds)
    tables = tuple(GemmTable(n, k, _curve(points)) for (n, k), points in sorted(shapes.items()))
    return Gemm("measured", best_flops, best_bytes, tables)


def _attention(
    figures: dict[Point, float], models: Sequence[ModelSpec], batches: Sequence[int], kind: str
) -> Attention:
    tables, best = {}, 0.0
    for model in models:
        heads = (model.n_heads, model.n_kv_heads, model.head_dim)
        contexts = _contexts(model, kind)
        seconds = tuple(
            tuple(figures["attention", *heads, batch, context] for context in contexts)
            for batch in batches
        )
        grid = Grid(tuple(map(float, batches)), tuple(map(float, contexts)), seconds)
        tables[heads] = AttentionTable(*heads, grid)
        best = max(best, batches[-1] * contexts[-1] * model.kv_token_bytes / seconds[-1][-1])
    return Attention("measured", best, tuple(tables.values()))


def _elementwise(figures: dict[Point, float]) -> Elementwise:
    points = {int(key[1]): value for key, value in figures.items() if key[0] == "elementwise"}
    best = max(n_bytes / seconds for n_bytes, seconds in points.items())
    copied = {int(key[1]): value for key, value in figures.items() if key[0] == "copied"}
    return Elementwise(
        "measured",
        best,
        _curve(points),
        tables=quantisation_tables(figures),
        copies=_curve(copied) if copied else None,
    )


def _links(
    figures: dict[Point, float], copies: Sequence[int], paced_bytes_per_s: float | None
) -> Links:
    links = {}
    for lane in (H2D, D2H, HOST):
        points = {size: figures["link", lane, size] for size in copies}
        links[lane] = Link(
            "measured",
            bytes_per_s=copies[-1] / points[copies[-1]],
            latency_s=points[copies[0]],
            curve=_curve(points),
            paced_bytes_per_s=None if lane == HOST else paced_bytes_per_s,
        )
    return Links(**links)


def _curve(points: dict[int, float]) -> Curve:
    work = sorted(points)
    return Curve(tuple(map(float, work)), tuple(points[key] for key in work))
