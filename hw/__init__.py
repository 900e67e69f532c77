"""Profiles a device and runs task graphs on it with real tensors."""

from hw.arena import DeviceArena, buffer_bytes
from hw.backends import DEVICES, open_backend, resolve_device
from hw.cache import (
    HostCache,
    prefill,
    prefilled_caches,
    prompt_ids,
    reference_bytes,
    resident_decode,
)
from hw.executor import Executor, check_graph_fits, executor_buffers
from hw.offload import OffloadedLayers
from hw.profiler import balanced_link_bytes_per_s, profile_device
from hw.pulse import Pulse
from hw.weights import random_weights, weights_from_tensors

__all__ = [
    "DEVICES",
    "DeviceArena",
    "Executor",
    "HostCache",
    "OffloadedLayers",
    "Pulse",
    "balanced_link_bytes_per_s",
    "buffer_bytes",
    "check_graph_fits",
    "executor_buffers",
    "open_backend",
    "prefill",
    "prefilled_caches",
    "profile_device",
    "prompt_ids",
    "random_weights",
    "reference_bytes",
    "resident_decode",
    "resolve_device",
    "weights_from_tensors",
]
