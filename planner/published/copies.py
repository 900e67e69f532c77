"""Inputs and prediction of the scenario `copy`: copies of one size over a machine's link."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from planner.sweep.inputs import MACHINE_AND_MODEL, REQUIRED, Input, one_of, read_bytes
from planner.sweep.machines import machine_of
from sim.lanes import COPY_LANES
from sim.machine.profile import HardwareProfile

BOTH = "both"

COPY: dict[str, Input] = {
    "lane": Input(one_of((*COPY_LANES, BOTH)), COPY_LANES[0]),
    "bytes": Input(read_bytes, REQUIRED, "bytes"),
    **{key: MACHINE_AND_MODEL[key] for key in ("hardware", "copies", "host.reads")},
}
"""Inputs of copies from one size of buffer, one after another; with `both`, in both directions."""


def copy_row(values: Mapping[str, Any]) -> dict[str, float]:
    """Rate of copies of one size, of both directions together where both are busy."""
    hardware, n_bytes = machine_of(values).hardware, values["bytes"]
    lanes = COPY_LANES if values["lane"] == BOTH else (values["lane"],)
    rates = [_bytes_per_s(hardware, lane, lanes, n_bytes) for lane in lanes]
    return {"bytes_per_s": sum(rates), "copy_s": n_bytes / rates[0]}


def _bytes_per_s(
    hardware: HardwareProfile, lane: str, busy: tuple[str, ...], n_bytes: float
) -> float:
    seconds, _ = hardware.links.of(lane).copy_s(n_bytes)
    slowed = prod(
        one.rate for one in hardware.interference if one.lane == lane and one.while_busy in busy
    )
    return slowed * n_bytes / seconds
