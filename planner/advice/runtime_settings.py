"""Settings of serving runtimes that an advice implies, by their documented names.

None of these runtimes loads the K and V of a running request step by step, and none recomputes K
and V from X. They hold K and V of prompts in host memory and load them before a later request with
the same prefix is prefilled. The settings size that cache for the prefixes of one batch, and
restrict it to lengths at which loading a prefix is faster than computing it.

Names, units and defaults are those of

- vLLM: https://docs.vllm.ai/en/stable/api/vllm/config/cache/ (size in GiB over all tensor-parallel
  ranks; backends `native` and `lmcache`, whose server has its own size; gpu_memory_utilization) and
  https://docs.vllm.ai/en/latest/features/kv_offloading_usage/ (copies by `cudaMemcpyAsync`),
- LMCache: https://docs.lmcache.ai/api_reference/configurations.html (chunks of 256 tokens; size in
  GB, 5 by default; minimum tokens of a hit that is retrieved). With it vLLM runs without its
  hybrid cache manager, and then holds all tokens of layers with a window too
  (https://docs.vllm.ai/en/v0.9.2/api/vllm/v1/kv_cache_interface.html),
- SGLang: https://docs.sglang.io/advanced_features/hicache_design.html (size in GB of 1e9 bytes for
  each rank, larger than the pool in GPU memory, or the ratio of the two; `kernel` copies by GPU
  kernels and is recommended, `direct` by CUDA's copies).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from sim.machine.links import Link
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec

PAGES = {
    "vLLM": "https://docs.vllm.ai/en/stable/api/vllm/config/cache/",
    "LMCache": "https://docs.lmcache.ai/api_reference/configurations.html",
    "SGLang": "https://docs.sglang.io/advanced_features/hicache_design.html",
}
VLLM_MEMORY_FRAC = 0.92
"""Default of --gpu-memory-utilization, the part of GPU memory that vLLM uses."""

LMCACHE_CHUNK_TOKENS = 256
MAX_CHUNK_TOKENS = 4096
HICACHE_PAGE_TOKENS = 64
HICACHE_RATIO = 2
"""LMCache's default, the largest chunk proposed, SGLang's page size in examples and its default."""

FULL_RATE_FRAC = 0.95
"""Fraction of the link's rate at which a copy size counts as large enough."""


@dataclass(frozen=True, slots=True)
class RuntimeSetting:
    """One setting: `value` as it is typed, why, and the page that documents it."""

    runtime: str
    setting: str
    value: str
    why: str
    page: str


@dataclass(frozen=True, slots=True)
class CacheBudget:
    """The cache that a runtime should hold.

    Args:
        kv_bytes: K and V of all sequences, in host memory, of each GPU that shares the model.
        all_kv_bytes: the same where layers with a window hold all tokens too.
        least_tokens: shortest prefix that is loaded faster than computed, or None.
    """

    kv_bytes: int
    all_kv_bytes: int
    least_tokens: int | None


def runtime_settings(
    model: ModelSpec, hardware: HardwareProfile, cache: CacheBudget
) -> tuple[RuntimeSetting, ...]:
    """Settings of each runtime for `cache`; none if loading is never faster."""
    if cache.least_tokens is None:
        return ()
    link, gigabytes = hardware.links.h2d, f"{ceil(cache.kv_bytes / 1e9)}"
    chunk, why_chunk = _chunk_tokens(model.all_rows_bytes, link)
    tp = model.tensor_parallel
    ranks = " of each rank" if tp > 1 else ""
    windowed = ", all tokens of layers with windows" if cache.all_kv_bytes > cache.kv_bytes else ""
    settings = [("vLLM", "--tensor-parallel-size", f"{tp}", "GPUs")] if tp > 1 else []
    settings += [
        (
            "vLLM",
            "--kv-offloading-size",
            f"{ceil(model.tensor_parallel * cache.kv_bytes / 2**30)}",
            "GiB for K and V of this batch, of all tensor-parallel ranks together",
        ),
        (
            "vLLM",
            "--kv-offloading-backend",
            "native",
            "the default; lmcache takes its size from the LMCache server instead",
        ),
        ("LMCache", "LMCACHE_CHUNK_SIZE", f"{chunk}", why_chunk),
        ("LMCache", "LMCACHE_LOCAL_CPU", "true", "keeps chunks in host memory"),
        (
            "LMCache",
            "LMCACHE_MAX_LOCAL_CPU_SIZE",
            f"{ceil(cache.all_kv_bytes / 1e9)}",
            f"GB{ranks} for K and V of this batch{windowed}; 5 by default",
        ),
    ]
    if cache.least_tokens > chunk:
        why = "a shorter prefix is computed faster than it is loaded"
        settings.append(("LMCache", "LMCACHE_MIN_RETRIEVE_TOKENS", f"{cache.least_tokens}", why))
    if tp > 1:
        settings.append(("SGLang", "--tp-size", f"{tp}", "GPUs"))
    settings.append(("SGLang", "--enable-hierarchical-cache", "", "HiCache is off without it"))
    if cache.kv_bytes > hardware.memory.job_device_bytes - model.weight_bytes:
        why = "GB on each rank for K and V of this batch; overrides --hicache-ratio"
        settings.append(("SGLang", "--hicache-size", gigabytes, why))
    else:
        why = (
            "the default: host memory has to hold more than the pool in GPU memory, which this "
            "batch does not fill"
        )
        settings.append(("SGLang", "--hicache-ratio", f"{HICACHE_RATIO}", why))
    settings.append(("SGLang", "--hicache-io-backend", *_io_backend(model, link)))
    return tuple(RuntimeSetting(*one, PAGES[one[0]]) for one in settings)


def _chunk_tokens(token_bytes: int, link: Link) -> tuple[int, str]:
    """Tokens of a chunk of all layers that the link copies at its rate, and why."""
    chunk = LMCACHE_CHUNK_TOKENS
    if not _has_copy_times(link):
        return chunk, "the default; the profile has no copy times by size that would speak for more"
    while chunk < MAX_CHUNK_TOKENS and _rate_frac(link, chunk * token_bytes) < FULL_RATE_FRAC:
        chunk *= 2
    size = f"chunks of {chunk * token_bytes / 2**20:,.1f} MiB reach"
    rate = f"{100 * _rate_frac(link, chunk * token_bytes):.0f} % of the link's rate"
    default = "the default; " if chunk == LMCACHE_CHUNK_TOKENS else ""
    return chunk, f"{default}{size} {rate}"


def _io_backend(model: ModelSpec, link: Link) -> tuple[str, str]:
    """`direct` if a copy of one page and layer reaches the link's rate, else `kernel`; and why."""
    if not _has_copy_times(link):
        return "kernel", "the default; the profile has no copy times by size to compare with"
    row_bytes = max(model.row_bytes(layer) for layer in range(model.n_layers))
    page_bytes = HICACHE_PAGE_TOKENS * row_bytes
    frac = _rate_frac(link, page_bytes)
    why = (
        f"copies of {page_bytes / 2**10:,.0f} KiB of a page and layer (--page-size "
        f"{HICACHE_PAGE_TOKENS}) reach {100 * frac:.0f} % of the link's rate"
    )
    if frac < FULL_RATE_FRAC:
        return "kernel", why
    return "direct", f"{why}, and copy engines take nothing from compute"


def _has_copy_times(link: Link) -> bool:
    return link.curve is not None or link.latency_s > 0


def _rate_frac(link: Link, n_bytes: int) -> float:
    """Fraction of its rate that a link reaches with copies of this size."""
    seconds, _ = link.copy_s(n_bytes)
    return min(1.0, n_bytes / seconds / link.bytes_per_s)
