"""What fills GPU memory and host memory, against their capacity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import plotly.graph_objects as go

from dashboard.figures.style import bars, rule, style_rows, text_colour
from sim.graph.memory import Footprint
from sim.machine.profile import Memory

BEYOND = "does not fit"
MEMORY_COLOUR = {
    "weights": "#8c6f9e",
    "KV": "#2577bc",
    "X": "#e3a84b",
    "workspace": "#616c71",
    "staging": "#61b7c7",
    "reserve": "#c5ccca",
    BEYOND: "#b3261e",
}
"""Colours as of the copies that fill the memory; red is what is beyond the capacity."""

GPU, HOST = PLACES = ("GPU", "host")
GIB = 2**30
MIN_LABELLED_FRAC = 0.01
"""Smallest part of the capacity that is labelled."""


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes by purpose on each GPU and on the host."""

    device: dict[str, float]
    host: dict[str, float]

    @classmethod
    def of_decode(cls, need: Footprint) -> MemoryUse:
        """Of a decode; K, V and X on a GPU are those that stay and those that a step loads."""
        kv_bytes = need.resident_bytes + need.kv_slot_bytes + need.quantised_slot_bytes
        return cls(
            {
                "weights": need.weight_bytes,
                "KV": kv_bytes + need.index_bytes + need.state_bytes,
                "X": need.x_slot_bytes,
                "workspace": need.workspace_bytes,
            },
            {
                "weights": need.host_weight_bytes,
                "KV": need.host_kv_bytes,
                "X": need.host_x_bytes,
                "staging": need.host_staging_bytes,
            },
        )


def memory_bars(uses: Mapping[str, tuple[MemoryUse, Memory]]) -> go.Figure:
    """Bytes by purpose as parts of each memory; what exceeds its capacity is red.

    Args:
        uses: by name, which is empty for the only one: what fills which memory.
    """
    rows: list[tuple[str, dict[str, float], float]] = []
    for place in PLACES:
        for name, (use, memory) in uses.items():
            parts, capacity = use.host, memory.host_bytes
            if place == GPU:
                parts = {**use.device, "reserve": memory.device_reserve_bytes}
                capacity = memory.device_bytes
            rows.append((f"{name} {place}".strip(), parts, capacity))
    filled = [_within(parts, capacity) for _, parts, capacity in rows]
    capacities = [capacity for *_, capacity in rows]
    figure = go.Figure()
    for name, colour in MEMORY_COLOUR.items():
        sizes = [one.get(name, 0.0) for one in filled]
        if not any(sizes):
            continue
        labels = [
            f"{name} {_gib(n_bytes)}" if n_bytes > MIN_LABELLED_FRAC * capacity else ""
            for n_bytes, capacity in zip(sizes, capacities, strict=True)
        ]
        figure.add_trace(
            bars(
                name,
                [n_bytes / capacity for n_bytes, capacity in zip(sizes, capacities, strict=True)],
                list(range(len(rows))),
                colour,
                "%{customdata}",
                customdata=[f"{name}: {_gib(n_bytes)}" for n_bytes in sizes],
                text=labels,
                textposition="inside",
                insidetextanchor="middle",
                textangle=0,
                textfont={"color": text_colour(colour)},
                width=0.8,
            )
        )
    totals = [sum(parts.values()) for _, parts, _ in rows]
    names = [
        f"{name}: {total / GIB:,.1f} of {_gib(capacity)}"
        for (name, *_), total, capacity in zip(rows, totals, capacities, strict=True)
    ]
    most = max(1.0, *(total / one for total, one in zip(totals, capacities, strict=True)))
    style_rows(
        figure,
        names,
        list(range(len(rows))),
        {"title": "part of the capacity", "tickformat": ".0%", "range": [0, 1.03 * most]},
        barmode="stack",
        uniformtext={"minsize": 10, "mode": "hide"},
        shapes=[rule("x", 1.0, dash="dot")],
    )
    return figure


def _within(parts: dict[str, float], capacity: float) -> dict[str, float]:
    """The parts as far as they fit one after another, and what is beyond the capacity."""
    found, left = {}, capacity
    for name in MEMORY_COLOUR:
        found[name] = min(parts.get(name, 0.0), left)
        left -= found[name]
    return found | {BEYOND: max(0.0, sum(parts.values()) - capacity)}


def _gib(n_bytes: float) -> str:
    """The bytes with a unit that stays on the same line."""
    return f"{n_bytes / GIB:,.1f}\N{NO-BREAK SPACE}GiB"
