"""Measure what the cost model needs of a device, and write it down as a HardwareProfile.

Everything runs on the lanes of the backend, with the kernels of the executor, on random data and
on weights that rotate so that they do not stay in a cache. Each figure is a median of repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import TypeVar

import torch
from torch import Tensor

from hw.backends import Backend
from hw.kernels import Kernels, linear_into
from hw.weights import TORCH_DTYPE, Linear, random_weights
from sim.cost import MatMul, kernels
from sim.curves import Curve, Grid
from sim.graph import COMPUTE, D2H, H2D
from sim.hardware import (
    Attention,
    AttentionTable,
    Elementwise,
    Gemm,
    GemmTable,
    HardwareProfile,
    Interference,
    IssueCost,
    Link,
    Links,
    Memory,
)
from sim.model_spec import ModelSpec

REPEATS = 5
SAMPLE_S = 2e-3
"""Short work is repeated inside one timing until it takes this long."""

SLOTS = 2
"""Staging buffers that take turns, as in the executor."""

ROTATION_BYTES = 192 * 2**20
"""Weights of one shape that take turns, so that a product finds them as cold as a real layer."""

CONTEXTS = (64, 256, 512, 1024, 2048)
LINK_BYTES = (2**14, 2**16, 2**18, 2**20, 2**22, 2**24, 2**26)
Progress = Callable[[str], None]
T = TypeVar("T")


def profile_device(
    backend: Backend,
    models: Sequence[ModelSpec],
    name: str,
    max_batch: int = 16,
    max_rows: int = 8192,
    link_bytes_per_s: float | None = None,
    progress: Progress = lambda _: None,
) -> HardwareProfile:
    """Measure a device for the shapes of `models`, which must share one dtype.

    Args:
        max_batch: largest batch whose decode steps are sampled.
        max_rows: largest `batch * tokens` of a recomputation that is sampled.
        link_bytes_per_s: pace of an emulated link, recorded as such.
        progress: called with what is measured next.
    """
    dtype = models[0].dtype
    with torch.inference_mode():
        bench = _Bench(backend, TORCH_DTYPE[dtype])
        batches = [2**power for power in range(max_batch.bit_length()) if 2**power <= max_batch]
        progress("warming up")
        bench.warm_up(models[0])
        progress("matrix products")
        gemm = _measure_gemm(bench, models, batches, max_rows, progress)
        progress("attention")
        attention = _measure_attention(bench, models, batches)
        progress("element-wise kernels")
        elementwise = _measure_elementwise(bench, models[0], max_rows)
        progress("links")
        links = _measure_links(bench, link_bytes_per_s)
        progress("lanes side by side")
        interference = _measure_interference(bench, models[0], links)
        issue = _measure_issue(bench)
    memory = backend.memory()
    return HardwareProfile(
        name=name,
        description=f"measured on {backend.environment()['device']}",
        device_kind="cuda" if backend.kind == "cuda" else "cpu",
        dtype=dtype,
        memory=Memory("measured", memory.device_bytes, memory.host_bytes),
        gemm=gemm,
        attention=attention,
        elementwise=elementwise,
        links=links,
        issue=issue,
        interference=interference,
        environment=backend.environment(),
    )


def balanced_link_bytes_per_s(backend: Backend, model: ModelSpec) -> float:
    """A link pace at which recomputing about half of the cache is worth while on this machine.

    Half the tokens as X and half as KV take as long to load as the first half to recompute:
    `1.5 h p / v = 2 h_kv h / F` a token, rounded to two digits.
    """
    with torch.inference_mode():
        bench = _Bench(backend, TORCH_DTYPE[model.dtype])
        shape = MatMul(2048, 2 * model.kv_size, model.hidden_size)
        seconds = bench.matmul(shape.m, [bench.linear(shape.n, shape.k)])
    x_and_kv = (model.x_token_bytes + model.kv_token_bytes) * shape.m / 2
    return float(f"{2 * x_and_kv / seconds:.1e}")


class _Bench:
    """Timing of single operations on the lanes of a backend."""

    def __init__(self, backend: Backend, dtype: torch.dtype) -> None:
        self.backend = backend
        self.dtype = dtype
        self._generator = torch.Generator(device=backend.device).manual_seed(0)

    def random(self, *shape: int) -> Tensor:
        out = torch.empty(shape, dtype=self.dtype, device=self.backend.device)
        return out.normal_(generator=self._generator)

    def linear(self, n: int, k: int) -> Linear:
        return Linear(self.random(n, k), self.random(n))

    def seconds(
        self, lane: str, work: Callable[[int], None], repeats: int = REPEATS
    ) -> float:
        """Median time of `work(i)` on `lane`, where i counts the calls."""
        once = self._sample(lane, work, 1, 2)[-1]
        inner = max(1, min(200, round(SAMPLE_S / max(once, 1e-7))))
        return median(self._sample(lane, work, inner, repeats)) / inner

    def _sample(
        self, lane: str, work: Callable[[int], None], inner: int, repeats: int
    ) -> list[float]:
        def several(first: int) -> Callable[[], None]:
            def run() -> None:
                for call in range(first, first + inner):
                    work(call)

            return run

        self.backend.begin()
        markers = [
            self.backend.issue(lane, several(repeat * inner)) for repeat in range(repeats + 1)
        ]
        self.backend.finish()
        return [end - start for start, end in self.backend.times_s(markers)[1:]]

    def rotation(self, make: Callable[[], T], size: int) -> list[T]:
        """As many copies of an operand of `size` bytes as take a cache's worth of memory."""
        return [make() for _ in range(max(1, min(256, ROTATION_BYTES // size)))]

    def warm_up(self, model: ModelSpec) -> None:
        """A second of matrix products: clocks rise, libraries load."""
        linear = self.linear(2 * model.kv_size, model.hidden_size)
        until = perf_counter() + 1.0
        while perf_counter() < until:
            self.matmul(1024, [linear])

    def matmul(self, m: int, linears: Sequence[Linear]) -> float:
        """Median time of `[m, k] x [k, n]` on activations that are still in a cache."""
        n, k = linears[0].weight.shape
        x, out = self.random(m, k), self.random(m, n)
        return self.seconds(
            COMPUTE, lambda call: linear_into(linears[call % len(linears)], x, out)
        )

    def matmul_fed(self, m: int, linears: Sequence[Linear]) -> float:
        """Median time of `[m, k] x [k, n]` when x just came over the link, as in a recomputation."""
        n, k = linears[0].weight.shape
        outs = [self.random(m, n) for _ in range(SLOTS)]

        def work(call: int, x: Tensor) -> None:
            linear_into(linears[call % len(linears)], x, outs[call % SLOTS])

        return self.seconds_fed(work, (m, k))

    def seconds_fed(self, work: Callable[[int, Tensor], None], shape: Sequence[int]) -> float:
        """Median time of `work(i, slot)` when slot was filled over the link just before."""
        host = self.backend.host_empty(shape, self.dtype)
        host.normal_()
        slots = [self.random(*shape) for _ in range(SLOTS)]
        self.backend.begin()
        markers = []
        for call in range(REPEATS + 2):
            slot = slots[call % SLOTS]
            fill = self.backend.issue(
                H2D,
                lambda slot=slot: slot.copy_(host, non_blocking=True),  # type: ignore[misc]
                markers[-1:],
            )
            markers.append(
                self.backend.issue(COMPUTE, lambda i=call, slot=slot: work(i, slot), [fill])  # type: ignore[misc]
            )
        self.backend.finish()
        return median(end - start for start, end in self.backend.times_s(markers[2:]))

    def seconds_between(self, work: Callable[[int], None], disturb: Callable[[], None]) -> float:
        """Median time of `work(i)` on the compute lane when `disturb` runs before each call.

        A small kernel in a tight loop finds code and data in the nearest cache, which it never
        does between the matrix products of a layer.
        """
        self.backend.begin()
        markers = []
        for call in range(4 * REPEATS):
            self.backend.issue(COMPUTE, disturb)
            markers.append(self.backend.issue(COMPUTE, lambda call=call: work(call)))  # type: ignore[misc]
        self.backend.finish()
        return median(end - start for start, end in self.backend.times_s(markers))


def _measure_gemm(
    bench: _Bench,
    models: Sequence[ModelSpec],
    batches: Sequence[int],
    max_rows: int,
    progress: Progress,
) -> Gemm:
    """Every matrix shape of the models over decode rows, the K/V projection over all rows."""
    shapes: dict[tuple[int, int], set[int]] = {}
    fed: set[tuple[int, int]] = set()
    for model in models:
        for op in ("qkv", "attention", "mlp", "head"):
            for kernel in kernels(op, 1, 1, model, 1):
                if isinstance(kernel, MatMul):
                    shapes.setdefault((kernel.n, kernel.k), set()).update(batches)
        rows = {*batches} | {2**power for power in range(5, max_rows.bit_length())} | {max_rows}
        wide = {3 * 2**power for power in range(7, max_rows.bit_length()) if 3 * 2**power < max_rows}
        shapes.setdefault((2 * model.kv_size, model.hidden_size), set()).update(rows | wide)
        fed.add((2 * model.kv_size, model.hidden_size))
    tables, best_flops, best_bytes = [], 0.0, 0.0
    element_bytes = models[0].element_bytes
    for done, ((n, k), rows) in enumerate(sorted(shapes.items())):
        progress(f"matrix products, shape {done + 1} of {len(shapes)}")
        linears = bench.rotation(lambda n=n, k=k: bench.linear(n, k), n * k * element_bytes)
        work = sorted(rows)
        time_of = bench.matmul_fed if (n, k) in fed else bench.matmul
        seconds = [time_of(m, linears) for m in work]
        tables.append(GemmTable(n, k, Curve(tuple(map(float, work)), tuple(seconds))))
        for m, time in zip(work, seconds, strict=True):
            best_flops = max(best_flops, 2 * m * n * k / time)
            best_bytes = max(best_bytes, (n * k + m * (n + k)) * element_bytes / time)
    return Gemm("measured", best_flops, best_bytes, tuple(tables))


def _measure_attention(
    bench: _Bench, models: Sequence[ModelSpec], batches: Sequence[int]
) -> Attention:
    tables, best = [], 0.0
    for model in {(m.n_heads, m.n_kv_heads, m.head_dim): m for m in models}.values():
        contexts = [context for context in CONTEXTS if context <= model.max_positions]
        attend = _attend_only(model, bench)
        grid = []
        for batch in batches:
            row = []
            for context in contexts:
                queries = bench.random(batch, model.n_heads, model.head_dim)
                row.append(
                    bench.seconds_fed(
                        lambda _, kv, queries=queries: attend(queries, kv),  # type: ignore[misc]
                        (context, batch, 2, model.n_kv_heads, model.head_dim),
                    )
                )
                best = max(best, batch * context * model.kv_token_bytes / row[-1])
            grid.append(tuple(row))
        table = Grid(tuple(map(float, batches)), tuple(map(float, contexts)), tuple(grid))
        tables.append(AttentionTable(model.n_heads, model.n_kv_heads, model.head_dim, table))
    return Attention("measured", best, tuple(tables))


def _attend_only(model: ModelSpec, bench: _Bench) -> Callable[[Tensor, Tensor], Tensor]:
    tiny = replace(model, n_layers=1, vocab_size=8, intermediate_size=8)
    return Kernels(random_weights(tiny, 0, bench.backend.device), 1).attend


def _measure_elementwise(bench: _Bench, model: ModelSpec, max_rows: int) -> Elementwise:
    """The input norm over growing numbers of rows stands for all element-wise kernels."""
    tiny = replace(model, n_layers=1, vocab_size=8, intermediate_size=8)
    weights = random_weights(tiny, 0, bench.backend.device)
    kernel = Kernels(weights, 1)
    rows = [2**power for power in range(0, max_rows.bit_length(), 2) if 2**power <= max_rows]
    linear, a = bench.linear(2048, 2048), bench.random(64, 2048)
    b = torch.empty_like(a)
    work, seconds = [], []
    for count in rows:
        size = 2 * count * model.x_token_bytes
        xs = bench.rotation(lambda count=count: bench.random(count, model.hidden_size), size)
        work.append(float(size))
        seconds.append(
            bench.seconds_between(
                lambda call, xs=xs: kernel.norm(weights.final_norm, xs[call % len(xs)]),  # type: ignore[misc]
                lambda: linear_into(linear, a, b),
            )
        )
    best = max(n_bytes / time for n_bytes, time in zip(work, seconds, strict=True))
    return Elementwise("measured", best, Curve(tuple(work), tuple(seconds)))


def _measure_links(bench: _Bench, paced_bytes_per_s: float | None) -> Links:
    measured = {}
    for lane in (H2D, D2H):
        seconds = [
            bench.seconds(lane, _copy_work(bench, lane, size), repeats=3) for size in LINK_BYTES
        ]
        measured[lane] = Link(
            "measured",
            bytes_per_s=LINK_BYTES[-1] / seconds[-1],
            latency_s=seconds[0],
            curve=Curve(tuple(map(float, LINK_BYTES)), tuple(seconds)),
            paced_bytes_per_s=paced_bytes_per_s,
        )
    return Links(measured[H2D], measured[D2H])


def _copy_work(bench: _Bench, lane: str, size: int) -> Callable[[int], None]:
    """A copy of `size` random bytes between host and device in the direction of `lane`."""
    backend = bench.backend
    n = size // torch.empty((), dtype=bench.dtype).element_size()
    host = backend.host_empty((n,), bench.dtype)
    host.normal_()
    device = bench.random(n)
    pair = (device, host) if lane == H2D else (host, device)
    return lambda _: backend.copy(*pair)


def _measure_interference(
    bench: _Bench, model: ModelSpec, links: Links
) -> tuple[Interference, ...]:
    """How much each lane slows down while another works; alone and together take turns."""
    linear = bench.linear(2 * model.kv_size, model.hidden_size)
    x = bench.random(1024, model.hidden_size)
    out = torch.empty((1024, 2 * model.kv_size), dtype=bench.dtype, device=bench.backend.device)
    works: dict[str, Callable[[int], None]] = {
        COMPUTE: lambda _: linear_into(linear, x, out),
        H2D: _copy_work(bench, H2D, 2**22),
        D2H: _copy_work(bench, D2H, 2**22),
    }
    alone = {lane: bench.seconds(lane, work) for lane, work in works.items()}
    found = []
    for lane, other in ((H2D, D2H), (D2H, H2D), (COMPUTE, H2D), (H2D, COMPUTE)):
        ratios = []
        calls = max(3, round(0.05 / alone[lane]))
        beside = max(3, round(1.5 * calls * alone[lane] / alone[other]))
        for _ in range(REPEATS):
            single = _burst_s(bench, lane, works[lane], calls, None)
            double = _burst_s(bench, lane, works[lane], calls, (other, works[other], beside))
            ratios.append(single / double)
        rate, spread = median(ratios), max(ratios) - min(ratios)
        if rate < 1.0 - max(0.01, spread):
            found.append(Interference(lane, other, rate, "measured"))
    return tuple(found)


def _burst_s(
    bench: _Bench,
    lane: str,
    work: Callable[[int], None],
    calls: int,
    beside: tuple[str, Callable[[int], None], int] | None,
) -> float:
    """Time of `calls` calls in a row on `lane`, perhaps with another lane kept busy."""
    bench.backend.begin()
    if beside is not None:
        other, other_work, other_calls = beside
        for call in range(other_calls):
            bench.backend.issue(other, lambda call=call: other_work(call))  # type: ignore[misc]
    markers = [
        bench.backend.issue(lane, lambda call=call: work(call))  # type: ignore[misc]
        for call in range(calls)
    ]
    bench.backend.finish()
    times = bench.backend.times_s(markers)
    return times[-1][1] - times[0][0]


def _measure_issue(bench: _Bench) -> IssueCost:
    """Host seconds per task, per kernel launch and per copy, with the device kept out of it."""
    backend, n = bench.backend, 200
    x = bench.random(8)
    copy = _copy_work(bench, H2D, 4096)

    def host_s(lane: str, work: Callable[[], None]) -> float:
        samples = []
        for _ in range(REPEATS):
            backend.begin()
            start = perf_counter()
            for _ in range(n):
                backend.issue(lane, work)
            samples.append((perf_counter() - start) / n)
            backend.finish()
        return median(samples)

    task_s = host_s(COMPUTE, lambda: None)
    if backend.kind == "cpu":
        return IssueCost("measured", task_s)
    kernel_s = max(0.0, host_s(COMPUTE, lambda: torch.add(x, 1.0, out=x)) - task_s)
    copy_s = max(0.0, host_s(H2D, lambda: copy(0)) - task_s)
    return IssueCost("measured", task_s, kernel_s, copy_s)
