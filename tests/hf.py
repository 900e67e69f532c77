"""`transformers`, imported by the first test that uses it: its models take seconds to import."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("_"):  # pytest looks for marks of fixtures in every module
        raise AttributeError(name)
    return getattr(import_module("transformers"), name)
