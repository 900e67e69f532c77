"""Models and machines by shipped name or by path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sim.errors import BadInput, UnknownName
from sim.hardware import HardwareProfile
from sim.model_config import load_model_config
from sim.model_spec import DTYPE_BYTES, ModelSpec

DATA = Path(__file__).resolve().parent.parent / "data"
"""Beside the packages in a checkout and in an installed wheel alike."""


def model_names() -> list[str]:
    return sorted(path.stem for path in (DATA / "models").glob("*.json"))


def hardware_names() -> list[str]:
    return sorted(path.stem for path in (DATA / "hardware").glob("*.json"))


def find_model(name_or_path: str, dtype: str | None = None) -> ModelSpec:
    """A shipped model by name, or any model by its config.json or the folder that holds it.

    Args:
        dtype: element type to use instead of the config's.

    Raises:
        UnknownName: no such shipped model and no such path; suggests the nearest name.
        BadFile: the config is unreadable, incomplete, or of an unsupported architecture.
    """
    model = _find_model(name_or_path)
    if dtype is None:
        return model
    if dtype not in DTYPE_BYTES:
        raise BadInput(f"dtype(={dtype!r}) must be one of {', '.join(DTYPE_BYTES)}.")
    return replace(model, dtype=dtype)


def _find_model(name_or_path: str) -> ModelSpec:
    shipped = DATA / "models" / f"{name_or_path.lower()}.json"
    if "/" not in name_or_path and shipped.is_file():
        return load_model_config(shipped)
    if Path(name_or_path).exists():
        return load_model_config(name_or_path)
    raise UnknownName("model", name_or_path, model_names(), "A path to a config.json works too.")


def find_hardware(name_or_path: str) -> HardwareProfile:
    """A shipped profile by name, or any profile by path.

    Raises:
        UnknownName: no such shipped profile and no such path; suggests the nearest name.
        BadFile: the profile is unreadable or has an unknown, absent or invalid key.
    """
    shipped = DATA / "hardware" / f"{name_or_path.lower()}.json"
    if "/" not in name_or_path and shipped.is_file():
        return HardwareProfile.load(shipped)
    if Path(name_or_path).exists():
        return HardwareProfile.load(name_or_path)
    raise UnknownName(
        "hardware", name_or_path, hardware_names(), "A path to a profile.json works too."
    )
