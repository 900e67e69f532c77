"""Names of the parts of a machine, as answers and tables show them."""

from __future__ import annotations

PARTS = {
    "h2d": ("h2d link", "bandwidth"),
    "d2h": ("d2h link", "bandwidth"),
    "flops": ("compute", "FLOP/s"),
    "hbm": ("device memory", "HBM bandwidth"),
    "host": ("host copying", "bandwidth"),
    "uplink": ("shared uplink", "bandwidth"),
    "memory": ("GPU memory size", "bytes"),
}
"""Name and unit of each part of a machine that may be faster or larger."""

SERIES = "h2d+uplink"
"""A link and the switch behind it, which a copy passes one after the other."""

PART_NAMES = {**PARTS, SERIES: ("h2d link and its switch", "bandwidth of both")}
"""Of everything that a `Sensitivity` is of."""

SPELLED_OUT = {
    "h2d": "host-to-GPU link is",
    "d2h": "GPU-to-host link is",
    "flops": "GPU's arithmetic is",
    "host": "copying within the host is",
    SERIES: "host-to-GPU link and its switch together are",
}
"""Subjects of the sentence on the bottleneck, where they differ from the names."""
