"""Restores of a cached prefix on a device, with real tensors."""

from hw.restore.cache_file import CacheFile, PrefixKey, write_cache_file
from hw.restore.checks import check_restore_fits, check_runnable_request
from hw.restore.executor import RestoreExecutor
from hw.restore.moving import MovingSplit
from hw.restore.opening import open_tier
from hw.restore.reference import ResidentPrefill, resident_prefill
from hw.restore.shares import Share
from hw.restore.tiers import FarMemory, HostMemory, Tier, lost_tokens

__all__ = [
    "CacheFile",
    "FarMemory",
    "HostMemory",
    "MovingSplit",
    "PrefixKey",
    "ResidentPrefill",
    "RestoreExecutor",
    "Share",
    "Tier",
    "check_restore_fits",
    "check_runnable_request",
    "lost_tokens",
    "open_tier",
    "resident_prefill",
    "write_cache_file",
]
