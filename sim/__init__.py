"""The vocabulary of kvoverlap and its model of the machine, from specs to timelines."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sim.api import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """A name of `sim.api`, which is loaded at its first use: `sim.errors` starts without it."""
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module 'sim' has no attribute {name!r}")
    return getattr(importlib.import_module("sim.api"), name)
