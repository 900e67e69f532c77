"""Profiles a device and runs task graphs on it with real tensors."""

from hw.backends import DEVICES, open_backend, resolve_device
from hw.cache.host import HostCache, prefill, prefilled_caches, prompt_ids
from hw.cache.reference import ResidentPrefill, reference_bytes, resident_decode, resident_prefill
from hw.calibrate.profiler import balanced_link_bytes_per_s, profile_device
from hw.calibrate.ranges import SAMPLED, SampledRanges
from hw.calibrate.speed_probe import SpeedProbe
from hw.model.layout import random_weights, weights_from_tensors
from hw.model.offload import OffloadedLayers
from hw.model.weights import check_runnable
from hw.run.adaptive_split import AdaptiveSplit
from hw.run.arena import DeviceArena, buffer_bytes
from hw.run.decode import DecodeExecutor, executor_buffers
from hw.run.executor import Executor
from hw.run.preflight import check_graph_fits, check_restore_fits, check_runnable_request
from hw.run.restore import RestoreExecutor, Share
from hw.tiers.cache_file import CacheFile, PrefixKey, write_cache_file
from hw.tiers.opening import open_tier
from hw.tiers.tiers import FarMemory, HostMemory, Tier, lost_tokens

__all__ = [
    "DEVICES",
    "SAMPLED",
    "AdaptiveSplit",
    "CacheFile",
    "DecodeExecutor",
    "DeviceArena",
    "Executor",
    "FarMemory",
    "HostCache",
    "HostMemory",
    "OffloadedLayers",
    "PrefixKey",
    "ResidentPrefill",
    "RestoreExecutor",
    "SampledRanges",
    "Share",
    "SpeedProbe",
    "Tier",
    "balanced_link_bytes_per_s",
    "buffer_bytes",
    "check_graph_fits",
    "check_restore_fits",
    "check_runnable",
    "check_runnable_request",
    "executor_buffers",
    "lost_tokens",
    "open_backend",
    "open_tier",
    "prefill",
    "prefilled_caches",
    "profile_device",
    "prompt_ids",
    "random_weights",
    "reference_bytes",
    "resident_decode",
    "resident_prefill",
    "resolve_device",
    "weights_from_tensors",
    "write_cache_file",
]
