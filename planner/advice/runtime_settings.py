"""What an answer means for the settings of serving runtimes, by their documented names.

None of these runtimes streams the K and V of a running request step by step, and none recomputes
K and V from X. What their settings do is keep K and V of prompts in host memory and load them back
before a later request with the same prefix is prefilled. So they are sized for the prefixes that
are to be kept, and pay where loading a prefix is faster than computing it anew.

Names, units and defaults are those of

- vLLM: https://docs.vllm.ai/en/stable/api/vllm/config/cache/ (size in GiB over all tensor-parallel
  ranks; backends `native` and `lmcache`, whose server has a size of its own) and
  https://docs.vllm.ai/en/latest/features/kv_offloading_usage/ (copies by `cudaMemcpyAsync`),
- LMCache: https://docs.lmcache.ai/api_reference/configurations.html (chunks of 256 tokens; size in
  GB, 5 by default; the least tokens of a hit that is retrieved),
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

VLLM_PAGE = "https://docs.vllm.ai/en/stable/api/vllm/config/cache/"
LMCACHE_PAGE = "https://docs.lmcache.ai/api_reference/configurations.html"
SGLANG_PAGE = "https://docs.sglang.io/advanced_features/hicache_design.html"

LMCACHE_CHUNK_TOKENS = 256
MAX_CHUNK_TOKENS = 4096
HICACHE_PAGE_TOKENS = 64
HICACHE_RATIO = 2
"""LMCache's default, the most that is proposed, the page of SGLang's examples, its default."""

FULL_RATE_FRAC = 0.95
"""Part of its rate from which on a link counts as used well."""


@dataclass(frozen=True, slots=True)
class RuntimeSetting:
    """One setting: `value` as it is typed, why, and the page that documents it."""

    runtime: str
    setting: str
    value: str
    why: str
    page: str


@dataclass(frozen=True, slots=True)
class Held:
    """What a runtime is to keep.

    Args:
        kv_bytes: K and V of all sequences, in host memory.
        least_tokens: prefixes from this length on are loaded faster than they are computed; None
            where none is.
    """

    kv_bytes: int
    least_tokens: int | None


def hints(model: ModelSpec, hardware: HardwareProfile, held: Held) -> tuple[RuntimeSetting, ...]:
    """Settings of each runtime that keep `held`; none where loading never pays."""
    if held.least_tokens is None:
        return ()
    return (
        *_vllm(held),
        *_lmcache(model, hardware.links.h2d, held),
        *_sglang(model, hardware, held),
    )


def _vllm(held: Held) -> tuple[RuntimeSetting, ...]:
    size = f"{ceil(held.kv_bytes / 2**30)}"
    return (
        RuntimeSetting(
            "vLLM",
            "--kv-offloading-size",
            size,
            "GiB for K and V of this batch, of all tensor-parallel ranks together",
            VLLM_PAGE,
        ),
        RuntimeSetting(
            "vLLM",
            "--kv-offloading-backend",
            "native",
            "the default; lmcache takes its size from the LMCache server instead",
            VLLM_PAGE,
        ),
    )


def _lmcache(model: ModelSpec, link: Link, held: Held) -> tuple[RuntimeSetting, ...]:
    chunk, why = _chunk_tokens(model.n_layers * model.kv_token_bytes, link)
    found = [
        RuntimeSetting("LMCache", "LMCACHE_CHUNK_SIZE", f"{chunk}", why, LMCACHE_PAGE),
        RuntimeSetting(
            "LMCache", "LMCACHE_LOCAL_CPU", "true", "keeps chunks in host memory", LMCACHE_PAGE
        ),
        RuntimeSetting(
            "LMCache",
            "LMCACHE_MAX_LOCAL_CPU_SIZE",
            f"{ceil(held.kv_bytes / 1e9)}",
            "GB for K and V of this batch; 5 by default",
            LMCACHE_PAGE,
        ),
    ]
    if held.least_tokens is not None and held.least_tokens > chunk:
        found.append(
            RuntimeSetting(
                "LMCache",
                "LMCACHE_MIN_RETRIEVE_TOKENS",
                f"{held.least_tokens}",
                "a shorter prefix is computed faster than it is loaded",
                LMCACHE_PAGE,
            )
        )
    return tuple(found)


def _chunk_tokens(token_bytes: int, link: Link) -> tuple[int, str]:
    """Tokens of a chunk of all layers that the link moves at its rate, and why."""
    chunk = LMCACHE_CHUNK_TOKENS
    if not _has_size_figures(link):
        return chunk, "the default; the profile has no copy times by size that would speak for more"
    while chunk < MAX_CHUNK_TOKENS and _rate_frac(link, chunk * token_bytes) < FULL_RATE_FRAC:
        chunk *= 2
    size = f"chunks of {chunk * token_bytes / 2**20:,.1f} MiB reach"
    rate = f"{100 * _rate_frac(link, chunk * token_bytes):.0f} % of the link's rate"
    default = "the default; " if chunk == LMCACHE_CHUNK_TOKENS else ""
    return chunk, f"{default}{size} {rate}"


def _sglang(model: ModelSpec, hardware: HardwareProfile, held: Held) -> tuple[RuntimeSetting, ...]:
    pool_bytes = hardware.memory.job_device_bytes - model.weight_bytes
    if held.kv_bytes > pool_bytes:
        size = RuntimeSetting(
            "SGLang",
            "--hicache-size",
            f"{ceil(held.kv_bytes / 1e9)}",
            "GB on each rank for K and V of this batch; overrides --hicache-ratio",
            SGLANG_PAGE,
        )
    else:
        size = RuntimeSetting(
            "SGLang",
            "--hicache-ratio",
            f"{HICACHE_RATIO}",
            "the default: host memory has to hold more than the pool in GPU memory, which this "
            "batch does not fill",
            SGLANG_PAGE,
        )
    return (
        RuntimeSetting(
            "SGLang", "--enable-hierarchical-cache", "", "HiCache is off without it", SGLANG_PAGE
        ),
        size,
        _io_backend(model, hardware.links.h2d),
    )


def _io_backend(model: ModelSpec, link: Link) -> RuntimeSetting:
    """CUDA's copies where a page of one layer is enough to reach the link's rate."""
    page_bytes = HICACHE_PAGE_TOKENS * model.kv_token_bytes
    size = f"{page_bytes / 2**10:,.0f} KiB of a page and layer"
    value, why = "kernel", "the default; the profile has no copy times by size to compare with"
    if _has_size_figures(link):
        frac = _rate_frac(link, page_bytes)
        value = "direct" if frac >= FULL_RATE_FRAC else "kernel"
        why = f"copies of {size} (--page-size {HICACHE_PAGE_TOKENS}) reach {100 * frac:.0f} % of "
        why += "the link's rate"
        if value == "direct":
            why += ", and copy engines take nothing from compute"
    return RuntimeSetting("SGLang", "--hicache-io-backend", value, why, SGLANG_PAGE)


def _has_size_figures(link: Link) -> bool:
    return link.curve is not None or link.latency_s > 0


def _rate_frac(link: Link, n_bytes: int) -> float:
    """Part of its rate that a link reaches with copies of this size."""
    seconds, _ = link.copy_s(n_bytes)
    return min(1.0, n_bytes / seconds / link.bytes_per_s)
