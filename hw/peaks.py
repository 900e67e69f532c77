"""The most memory that a run held, and how that is known."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass

import torch

from hw.backends import Backend
from hw.cache import HostCache

RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024
"""What `ru_maxrss` counts in."""


@dataclass(frozen=True, slots=True)
class MemoryPeaks:
    """Bytes at their highest.

    Args:
        device_bytes: weights, staging slots and temporaries.
        device_source: `allocated` where the device's allocator counted them, `planned` where
            device and host share memory and only the plan tells them apart.
        host_bytes: what the cache holds of K, V and X, and the weights that a column schedule keeps
            there.
        process_bytes: this process's resident memory, libraries and mapped files included.
    """

    device_bytes: int
    device_source: str
    host_bytes: int
    process_bytes: int


def forget_peaks(backend: Backend) -> None:
    """Count the device's peak from here on."""
    if backend.kind == "cuda":
        torch.get_device_module(backend.device).reset_peak_memory_stats(backend.device)


def memory_peaks(
    backend: Backend,
    cache: HostCache,
    planned_device_bytes: int,
    host_weight_bytes: int = 0,
) -> MemoryPeaks:
    """Peaks since `forget_peaks`; of the process, since it started.

    Args:
        planned_device_bytes: stands for the device's peak where its allocator does not count.
        host_weight_bytes: weights kept beside the cache.
    """
    device_bytes, source = planned_device_bytes, "planned"
    if backend.kind == "cuda":
        module = torch.get_device_module(backend.device)
        device_bytes, source = module.max_memory_allocated(backend.device), "allocated"
    return MemoryPeaks(
        device_bytes=device_bytes,
        device_source=source,
        host_bytes=sum(tensor.nbytes for tensor in (*cache.kv, *cache.x)) + host_weight_bytes,
        process_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT_BYTES,
    )
