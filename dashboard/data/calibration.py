"""A profile as tables: rates over size with their samples, checks, and main figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import pandas as pd

from sim.lanes import D2H, H2D
from sim.machine.curves import Curve
from sim.machine.prefill import HeadShape, PromptAttention
from sim.machine.profile import HardwareProfile
from sim.model.spec import DTYPE_BYTES

COPY_BYTES = tuple(float(4**power) for power in range(5, 16))
ROWS = tuple(float(2**power) for power in range(15))
CONTEXTS = tuple(float(2**power) for power in range(6, 14))
PASS_BYTES = tuple(float(4**power) for power in range(5, 14))
"""Sizes at which a rate without samples is drawn."""

SAMPLE_COLUMNS = ["x", "rate", "residual_frac"]

SHAPES = ((4096, 4096), (8192, 8192), (28672, 8192), (8192, 28672))
"""Weights n, k whose matmuls are drawn if the profile has utilisation tables."""

KV_HEADS = (8, 64, 256, 1024)
QUERY_HEADS = 32
"""Heads whose attention is drawn if the profile has tables by heads."""

BETWEEN = 12
"""Points of the curve between two samples."""


@dataclass(frozen=True, slots=True)
class RateCurve:
    """A rate over the size of the work.

    Args:
        x, rate: the curve of the cost model.
        point_x, point_rate: medians that it interpolates; empty if the profile has one rate.
        samples: timings behind the medians, with columns `x`, `rate` and `residual_frac` (seconds
            over those of the curve, minus 1); empty if the profile has none.
    """

    name: str
    source: str
    x: tuple[float, ...]
    rate: tuple[float, ...]
    point_x: tuple[float, ...] = ()
    point_rate: tuple[float, ...] = ()
    samples: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=SAMPLE_COLUMNS))


@dataclass(frozen=True, slots=True)
class Subject:
    """One kind of work whose rate is drawn.

    Args:
        name: in menus and in links.
        x_title, rate_title: with units.
        curve: of a profile, under a name.
        lane_or_op: of the tasks that consist of this work only; None if no task does.
    """

    name: str
    x_title: str
    rate_title: str
    curve: Callable[[HardwareProfile, str], RateCurve]
    lane_or_op: str | None = None


def _read(
    name: str,
    source: str,
    curve: Curve | None,
    formula: Callable[[float], float],
    amount: Callable[[float], float],
    axis: Sequence[float],
    samples: Iterable[tuple[float, float]],
) -> RateCurve:
    """The rate `amount(x) / seconds(x)` of a sampled curve, or of a formula along `axis`.

    Args:
        samples: sizes and seconds behind the points of the curve.
    """
    if curve is None:
        return RateCurve(name, source, tuple(axis), tuple(amount(x) / formula(x) for x in axis))
    x = [*_dense(curve.work)]
    return RateCurve(
        name,
        source,
        tuple(x),
        tuple(amount(value) / curve.at(value)[0] for value in x),
        curve.work,
        tuple(amount(w) / s for w, s in zip(curve.work, curve.seconds, strict=True)),
        pd.DataFrame(
            [(x, amount(x) / seconds, seconds / curve.at(x)[0] - 1) for x, seconds in samples],
            columns=SAMPLE_COLUMNS,
        ),
    )


def _samples(profile: HardwareProfile, *work: object) -> list[tuple[float, float]]:
    """Sizes and seconds of all samples of one kind of work, the point without its size."""
    return [
        (float(one.point[-1]), seconds)
        for one in profile.samples
        if one.point[:-1] == work and isinstance(one.point[-1], int)
        for seconds in one.values
        if seconds > 0
    ]


def _dense(axis: Sequence[float]) -> Iterable[float]:
    """The axis with points between every two, evenly spaced by factors."""
    for low, high in pairwise(axis):
        for step in range(BETWEEN):
            yield low * (high / low) ** (step / BETWEEN)
    yield axis[-1]


def _link(direction: str, profile: HardwareProfile, name: str) -> RateCurve:
    link = getattr(profile.links, direction)
    return _read(
        name,
        link.source,
        link.curve,
        lambda n_bytes: link.latency_s + n_bytes / link.bytes_per_s,
        lambda n_bytes: n_bytes / 1e9,
        COPY_BYTES,
        _samples(profile, "link", direction),
    )


def _matmul(n: int, k: int, weight_bits: int, profile: HardwareProfile, name: str) -> RateCurve:
    tables = {(table.n, table.k): table.curve for table in profile.gemm.tables}
    known = {table.weight_bits: table for table in profile.gemm.utilisation}
    sampled = tables.get((n, k))
    if sampled is None and weight_bits in known:
        sampled, _ = known[weight_bits].curve(n, k)
    size = DTYPE_BYTES[profile.dtype]
    return _read(
        name,
        profile.gemm.source,
        sampled,
        lambda rows: profile.gemm.roofline_s(int(rows), n, k, size, 8 * size),
        lambda rows: 2 * rows * n * k / 1e12,
        ROWS,
        _samples(profile, "gemm", n, k),
    )


def _attention(
    heads: tuple[int, int, int], batch: float, profile: HardwareProfile, name: str
) -> RateCurve:
    n_bytes = 2 * heads[1] * heads[2] * DTYPE_BYTES[profile.dtype]
    sampled = None
    for table in profile.attention.tables:
        if (table.n_heads, table.n_kv_heads, table.head_dim) == heads:
            rows = dict(zip(table.grid.rows, table.grid.seconds, strict=True))
            if batch in rows:
                sampled = Curve(table.grid.columns, rows[batch])
    return _read(
        name,
        profile.attention.source,
        sampled,
        lambda context: batch * context * n_bytes / profile.attention.bytes_per_s,
        lambda context: batch * context * n_bytes / 1e9,
        CONTEXTS,
        _samples(profile, "attention", *heads, batch),
    )


def _kv_heads(head_dim: int, rows: float, profile: HardwareProfile, name: str) -> RateCurve:
    """Decode attention of `rows` KV heads, of all sequences together, over context."""
    token_bytes = 2 * rows * head_dim * DTYPE_BYTES[profile.dtype]
    sampled = None
    for heads in profile.attention.heads:
        if heads.head_dim == head_dim and rows in heads.fan.rows:
            sampled = heads.fan.curves[heads.fan.rows.index(rows)]
    return _read(
        name,
        profile.attention.source,
        sampled,
        lambda context: context * token_bytes / profile.attention.bytes_per_s,
        lambda context: context * token_bytes / 1e9,
        CONTEXTS,
        (),
    )


def _prefill(head_dim: int, queries_per_kv: int, profile: HardwareProfile, name: str) -> RateCurve:
    """Causal attention of one prompt over its tokens."""

    def rate(tokens: float, seconds: float) -> float:
        return 2 * QUERY_HEADS * head_dim * tokens * (tokens + 1) / seconds / 1e12

    block = profile.restore.prefill if profile.restore is not None else None
    for heads in block.heads if block is not None else ():
        if heads.shape == HeadShape(queries_per_kv, head_dim, head_dim):
            points, measured = (
                heads.fan.curves[0].work,
                PromptAttention(heads, QUERY_HEADS, heads.shape),
            )
            return RateCurve(
                name,
                "measured" if block is None else block.attention_flops_per_s.source,
                tuple(_dense(points)),
                tuple(rate(x, measured.at(x)[0]) for x in _dense(points)),
                points,
                tuple(rate(x, measured.at(x)[0]) for x in points),
            )
    figure = None if block is None else block.attention_flops_per_s
    value = profile.gemm.flops_per_s if figure is None else figure.value
    source = "fitted" if figure is None else figure.source
    return RateCurve(name, source, CONTEXTS, tuple(value / 1e12 for _ in CONTEXTS))


def _elementwise(profile: HardwareProfile, name: str) -> RateCurve:
    costs = profile.elementwise
    return _read(
        name,
        costs.source,
        costs.curve,
        lambda n_bytes: n_bytes / costs.bytes_per_s,
        lambda n_bytes: n_bytes / 1e9,
        PASS_BYTES,
        _samples(profile, "elementwise"),
    )


def subjects(profile: HardwareProfile) -> list[Subject]:
    """The kinds of work whose rates a profile has."""
    found = [
        Subject("copies to the device (h2d)", "bytes", "GB/s", partial(_link, H2D), H2D),
        Subject("copies from the device (d2h)", "bytes", "GB/s", partial(_link, D2H), D2H),
    ]
    shapes = [(table.n, table.k) for table in profile.gemm.tables]
    shapes = shapes or list(SHAPES if profile.gemm.utilisation else SHAPES[:1])
    found += [
        Subject(
            f"products, [rows, {k}] x [{k}, {n}]",
            "rows",
            "TFLOP/s",
            partial(_matmul, n, k, 16),
            f"recompute {n} {k}",
        )
        for n, k in shapes
    ]
    for table in profile.attention.tables:
        heads = (table.n_heads, table.n_kv_heads, table.head_dim)
        found += [
            Subject(
                f"attention, {heads[0]} heads, {heads[1]} of KV, batch {batch:g}",
                "keys of each sequence",
                "GB/s",
                partial(_attention, heads, batch),
            )
            for batch in table.grid.rows
        ]
    found += _published_subjects(profile)
    return [*found, Subject("element-wise passes", "bytes", "GB/s", _elementwise)]


def _published_subjects(profile: HardwareProfile) -> Iterable[Subject]:
    """The kinds of work that only published operator timings have."""
    if any(table.weight_bits == 8 for table in profile.gemm.utilisation):
        for n, k in SHAPES:
            title = f"products in 8 bits, [rows, {k}] x [{k}, {n}]"
            yield Subject(title, "rows", "TFLOP/s", partial(_matmul, n, k, 8))
    for heads in profile.attention.heads:
        for rows in KV_HEADS:
            title = f"decode attention, {rows} KV heads of {heads.head_dim}"
            curve = partial(_kv_heads, heads.head_dim, float(rows))
            yield Subject(title, "keys of each head", "GB/s", curve)
    block = profile.restore.prefill if profile.restore is not None else None
    for queries in block.heads if block is not None else ():
        title = (
            f"prefill attention, {QUERY_HEADS} heads of {queries.head_dim}, "
            f"{queries.queries_per_kv} to a KV head"
        )
        curve = partial(_prefill, queries.head_dim, queries.queries_per_kv)
        yield Subject(title, "tokens", "TFLOP/s", curve)


def checks_table(profile: HardwareProfile) -> pd.DataFrame:
    """How well the tables of published timings predict their own points; no rows without them."""
    rows = [
        {
            "table": errors.kind.replace("_", " "),
            "points": errors.points,
            "median |error| (%)": 100 * errors.median_abs_error_frac,
            "90 % within (%)": 100 * errors.p90_abs_error_frac,
            "worst (%)": 100 * errors.worst_error_frac,
            "which": errors.worst,
        }
        for errors in profile.checks
    ]
    return pd.DataFrame(rows)


def key_figures(profile: HardwareProfile) -> pd.DataFrame:
    """The profile's main figures with their units and sources."""
    gemm, links, dispatch = profile.gemm, profile.links, profile.dispatch
    attention, elementwise = profile.attention, profile.elementwise
    read_gb_per_s = None if gemm.bytes_per_s is None else gemm.bytes_per_s / 1e9
    rates: list[tuple[str, float | None, str, Any]] = [
        ("matrix products", gemm.flops_per_s / 1e12, "TFLOP/s", gemm),
        ("weights, read", read_gb_per_s, "GB/s", gemm),
        ("attention, K and V read", attention.bytes_per_s / 1e9, "GB/s", attention),
        ("element-wise passes", elementwise.bytes_per_s / 1e9, "GB/s", elementwise),
        ("link, h2d", links.h2d.bytes_per_s / 1e9, "GB/s", links.h2d),
        ("link, d2h", links.d2h.bytes_per_s / 1e9, "GB/s", links.d2h),
        ("link, latency", links.h2d.latency_s * 1e6, "us", links.h2d),
    ]
    if profile.memory.unified:
        rates = [row for row in rates if not row[0].startswith("link")]
    without_note = ("weights, read", "link, latency")
    rows = [
        (name, value, unit, part.source, "" if name in without_note else part.note)
        for name, value, unit, part in rates
    ]
    rows += [
        (f"{entry.lane} while {entry.while_busy} works", entry.rate, "x", entry.source, "")
        for entry in profile.interference
    ]
    memory = profile.memory
    rows += [
        ("gap between tasks", dispatch.gap_s * 1e6, "us", dispatch.source, ""),
        ("hand-over between lanes", dispatch.handover_s * 1e6, "us", dispatch.source, ""),
        ("device memory", memory.device_bytes / 2**30, "GiB", memory.source, ""),
        ("device memory, reserved", memory.device_reserve_bytes / 2**30, "GiB", memory.source, ""),
        ("host memory", memory.host_bytes / 2**30, "GiB", memory.source, ""),
    ]
    if memory.unified:
        del rows[-1]
    return pd.DataFrame(rows, columns=["figure", "value", "unit", "source", "note"])
