"""Chooses what to load and what to recompute, and turns the choice into a task graph."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.api import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """A name of `planner.api`, which is loaded at its first use: a restore needs no LP."""
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module 'planner' has no attribute {name!r}")
    return getattr(importlib.import_module("planner.api"), name)
