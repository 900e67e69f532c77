"""Request traces of a study's points, each read or generated once per process."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from sim.service import RequestTrace, Traffic, generated_trace, read_trace


def request_trace(path: str, block_tokens: int | None = None) -> RequestTrace:
    """The requests of a file, which is read again when it changes.

    Raises:
        BadFile: as `read_trace`.
    """
    exists = Path(path).exists()
    return _read(path, block_tokens, Path(path).stat().st_mtime_ns if exists else 0)


@lru_cache(maxsize=2)
def _read(path: str, block_tokens: int | None, changed_ns: int) -> RequestTrace:  # noqa: ARG001
    return read_trace(path, block_tokens)


@lru_cache(maxsize=2)
def generated_requests(asked: Traffic) -> RequestTrace:
    """The requests that a generator makes."""
    return generated_trace(asked)
