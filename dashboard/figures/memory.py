"""What fills GPU memory and host memory, against their capacity."""

from __future__ import annotations

import plotly.graph_objects as go

from dashboard.figures.style import MUTED, bars, style_rows, text_colour
from sim.graph.memory import Footprint
from sim.machine.profile import Memory

MEMORY_COLOUR = {
    "weights": "#8c6f9e",
    "KV": "#2577bc",
    "X": "#e3a84b",
    "workspace": "#616c71",
    "staging": "#61b7c7",
}
"""Colours as of the copies that fill the memory."""

GPU, HOST = 0, 1
MIN_LABELLED_FRAC = 0.01
"""Smallest part of the capacity that is labelled."""


def memory_bars(need: Footprint, memory: Memory) -> go.Figure:
    """Bytes by purpose on each GPU and on the host, as parts of what a job may use there.

    K, V and X on a GPU are those that stay and those that a step loads.
    """
    device = {
        "weights": need.weight_bytes,
        "KV": need.resident_bytes + need.kv_slot_bytes + need.quantised_slot_bytes,
        "X": need.x_slot_bytes,
        "workspace": need.workspace_bytes,
    }
    host = {
        "weights": need.host_weight_bytes,
        "KV": need.host_kv_bytes,
        "X": need.host_x_bytes,
        "staging": need.host_staging_bytes,
    }
    capacities = (memory.job_device_bytes, memory.host_bytes)
    figure = go.Figure()
    for name, colour in MEMORY_COLOUR.items():
        parts = [where.get(name, 0) for where in (device, host)]
        if not any(parts):
            continue
        labels = [
            f"{name} {_gib(n_bytes)}" if n_bytes > MIN_LABELLED_FRAC * capacity else ""
            for n_bytes, capacity in zip(parts, capacities, strict=True)
        ]
        figure.add_trace(
            bars(
                name,
                [n_bytes / capacity for n_bytes, capacity in zip(parts, capacities, strict=True)],
                [GPU, HOST],
                colour,
                "%{customdata}",
                customdata=[f"{name}: {_gib(n_bytes)}" for n_bytes in parts],
                text=labels,
                textposition="inside",
                insidetextanchor="middle",
                textangle=0,
                textfont={"color": text_colour(colour)},
                width=0.8,
            )
        )
    totals = [sum(where.values()) for where in (device, host)]
    names = [
        f"{name}: {_gib(total)} of {_gib(capacity)}"
        for name, total, capacity in zip(("GPU", "host"), totals, capacities, strict=True)
    ]
    style_rows(figure, names, [GPU, HOST])
    figure.update_layout(barmode="stack", uniformtext={"minsize": 10, "mode": "hide"})
    figure.update_xaxes(title="part of the memory that a job may use", tickformat=".0%")
    figure.add_vline(1.0, line={"color": MUTED, "dash": "dot"})
    return figure


def _gib(n_bytes: float) -> str:
    return f"{n_bytes / 2**30:,.1f} GiB"
