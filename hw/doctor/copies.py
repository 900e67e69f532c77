"""Rates of the link in each direction, alone, both ways at once, and from pageable memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor

from hw.backends import Backend
from hw.doctor.check import Check, Durations, judged
from hw.doctor.lanes import SAMPLES, Call, call_s, calls_in, length_s, times_s
from sim.lanes import COPY_LANES, H2D
from sim.units import percent

COPY_BYTES = (4 * 2**10, 2**20, 64 * 2**20)
"""Sizes of the copies: launch-bound, usual for one layer's K and V, and link-bound."""

PCIE_BYTES_PER_S = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.56e9}
"""Payload rate of one PCIe lane and direction by generation."""

MIN_LINK_FRAC = 0.7
"""A pinned copy of 64 MiB usually reaches 80 to 85 % of the PCIe rate."""


@dataclass(slots=True)
class CopyBuffers:
    """Random bytes on host and device, for copies in both directions that share no memory."""

    backend: Backend
    n_bytes: int
    _host: dict[str, Tensor] = field(init=False)
    _device: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        shape = (self.n_bytes,)
        self._host = {lane: self.backend.host_empty(shape, torch.uint8) for lane in COPY_LANES}
        self._device = {lane: self.backend.device_empty(shape, torch.uint8) for lane in COPY_LANES}
        for lane in COPY_LANES:
            self._device[lane].random_(0, 256)
            self._host[lane].copy_(self._device[lane])

    def copy(self, lane: str, n_bytes: int) -> Call:
        """One copy of `n_bytes` in the direction of `lane`."""
        host, device = self._host[lane][:n_bytes], self._device[lane][:n_bytes]
        if lane == H2D:
            return lambda: self.backend.copy(device, host)
        return lambda: self.backend.copy(host, device)

    def pageable_copy(self) -> Call:
        """One h2d copy of all bytes from ordinary host memory."""
        source = torch.ones(self.n_bytes, dtype=torch.uint8)
        return lambda: self.backend.copy(self._device[H2D], source, pageable=True)


@dataclass(frozen=True, slots=True)
class CopyRates:
    """Bytes per second of the link.

    Args:
        uncontended: by lane and copy size, while the other direction is idle.
        both_ways: sum of both directions while both copy 64 MiB at a time.
        pageable: h2d from ordinary host memory; None where host memory is not page-locked.
    """

    uncontended: Mapping[str, Mapping[int, float]]
    both_ways: float
    pageable: float | None


def copy_rates(backend: Backend, durations: Durations) -> CopyRates:
    """Measure the link; about 2 seconds."""
    buffers = CopyBuffers(backend, COPY_BYTES[-1])
    uncontended = {
        lane: {
            n_bytes: n_bytes
            * _calls_per_s(backend, lane, buffers.copy(lane, n_bytes), durations.copy_s)
            for n_bytes in COPY_BYTES
        }
        for lane in COPY_LANES
    }
    largest = COPY_BYTES[-1]
    bursts = [
        (
            lane,
            buffers.copy(lane, largest),
            calls_in(2 * durations.copy_s, largest / uncontended[lane][largest]),
        )
        for lane in COPY_LANES
    ]
    sums = []
    for _ in range(SAMPLES):
        times = times_s(backend, bursts)
        sums.append(
            sum(
                largest * calls / (end_s - start_s)
                for (_, _, calls), (start_s, end_s) in zip(bursts, times, strict=True)
            )
        )
    pageable = None
    if backend.kind == "cuda":
        calls_per_s = _calls_per_s(backend, H2D, buffers.pageable_copy(), durations.copy_s)
        pageable = largest * calls_per_s
    return CopyRates(uncontended, median(sums), pageable)


def check_copies(backend: Backend, durations: Durations, link: tuple[int, int] | None) -> Check:
    """The rates of the link against what its PCIe generation and width allow.

    Args:
        link: PCIe generation and width under load; None if unknown or emulated.
    """
    return copies_check(copy_rates(backend, durations), link)


def copies_check(rates: CopyRates, link: tuple[int, int] | None) -> Check:
    """Judge measured rates: warned below `MIN_LINK_FRAC` of the link, or if pinning gains nothing.

    Args:
        link: PCIe generation and width; None if unknown or emulated.
    """
    sizes = "4 KiB / 1 MiB / 64 MiB"
    listed = []
    for lane in COPY_LANES:
        by_size = " / ".join(f"{rate / 1e9:.3g}" for rate in rates.uncontended[lane].values())
        listed.append(f"{lane} {by_size} GB/s")
    measured = (
        f"{', '.join(listed)} at {sizes}; both ways {rates.both_ways / 1e9:.3g} GB/s in total"
    )
    if rates.pageable is not None:
        measured += f"; pageable h2d {rates.pageable / 1e9:.3g} GB/s"
    else:
        measured += " (emulated link: unpaced copies in host memory)"
    advice = []
    best = {lane: max(rates.uncontended[lane].values()) for lane in COPY_LANES}
    if link is not None and link[0] in PCIE_BYTES_PER_S:
        limit = PCIE_BYTES_PER_S[link[0]] * link[1]
        measured += f"; PCIe {link[0]} x{link[1]} carries {limit / 1e9:.3g} GB/s"
        slow = [lane for lane in COPY_LANES if best[lane] < MIN_LINK_FRAC * limit]
        if slow:
            advice.append(
                f"{' and '.join(slow)} reach less than {percent(MIN_LINK_FRAC)} of the link: look "
                "for other traffic on it, an IOMMU, or a process on the wrong NUMA node."
            )
    if rates.pageable is not None and best[H2D] < 1.2 * rates.pageable:
        advice.append(
            "Page-locked memory is hardly faster than pageable memory: check for a virtualised "
            "link, and that no other process copies."
        )
    return judged("copies", measured, advice)


def link_of(state: Mapping[str, object]) -> tuple[int, int] | None:
    """PCIe generation and width in a `gpu_state`; None if it lacks one."""
    generation, width = state.get("pcie_generation"), state.get("pcie_width")
    if not isinstance(generation, int) or not isinstance(width, int):
        return None
    return generation, width


def _calls_per_s(backend: Backend, lane: str, call: Call, seconds: float) -> float:
    """Median rate of bursts that last about `seconds` in all."""
    calls = calls_in(seconds / SAMPLES, call_s(backend, lane, call))
    return calls / median(length_s(backend, lane, call, calls) for _ in range(SAMPLES))
