"""Opens a tier by name, with the prefix on it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hw.cache.reference import ResidentPrefill
from hw.model.weights import Weights
from hw.tiers.cache_file import CacheFile, PrefixKey, write_cache_file
from hw.tiers.tiers import FarMemory, HostMemory, Tier
from sim.graph.jobs import RestoreRequest


@contextmanager
def open_tier(
    request: RestoreRequest, weights: Weights, reference: ResidentPrefill, path: Path | None = None
) -> Iterator[Tier]:
    """The tier of a request, holding its prefix.

    Args:
        path: cache file of tier `ssd`, written if it does not exist; by default a temporary one.

    Raises:
        BadFile, Mismatch: the file cannot be written or read, or holds another prefix.
    """
    if request.tier == "dram":
        yield HostMemory(reference.cache)
    elif request.tier == "net":
        yield FarMemory(reference.cache)
    else:
        key = PrefixKey.of(
            weights, reference.prompt, request.cached_tokens, request.io_chunk_tokens
        )
        with tempfile.TemporaryDirectory() as folder:
            file = path or Path(folder) / "prefix.kv"
            if not file.exists():
                write_cache_file(file, key, reference.cache)
            with CacheFile(file, key, weights.model) as opened:
                yield opened
