"""Restoring a cached prefix: what to compute, what to load, and how that becomes a task graph."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.restore.api import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """A name of `planner.restore.api`, which is loaded at its first use: not all are needed."""
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module 'planner.restore' has no attribute {name!r}")
    return getattr(importlib.import_module("planner.restore.api"), name)
