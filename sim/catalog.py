"""Models and machines by shipped name or by path."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TypeVar

from sim.errors import BadInput, UnknownName
from sim.files import decode_json, naming_file
from sim.machine.components import JOIN, UNIFIED, ComputePart, LinkPart, compose, split_name
from sim.machine.datasheet import SUFFIX as DATA_SHEET
from sim.machine.datasheet import DataSheet, plain_link
from sim.machine.profile import HardwareProfile
from sim.machine.runtime import Runtime
from sim.model.config import load_model_config
from sim.model.spec import DTYPE_BYTES, ModelSpec

DATA = Path(__file__).resolve().parent.parent / "data"
"""Folder next to the packages, in a checkout and in an installed wheel."""

RECORDINGS = DATA / "recordings"

Part = TypeVar("Part", ComputePart, LinkPart)


def model_names() -> list[str]:
    """Names of the shipped models."""
    return list(_names("models"))


def hardware_names() -> list[str]:
    """Names of the shipped machines that are whole; DEVICE+LINK names compose others."""
    return list(_names("hardware"))


def compute_names() -> list[str]:
    """Devices that a machine can be composed of."""
    return list(_names("hardware/compute"))


def link_names() -> list[str]:
    """Hosts with their links that a machine can be composed of."""
    return [name for name in _names("hardware/links") if name != UNIFIED]


def runtime_names() -> list[str]:
    """Serving runtimes that come with the program."""
    return list(_names("runtimes"))


def find_runtime(name_or_path: str) -> Runtime:
    """A serving runtime by shipped name or by path.

    Raises:
        UnknownName: neither; suggests the nearest name.
        BadFile: the file is unreadable or has an unknown, absent or invalid key.
    """
    if name_or_path.lower() in runtime_names():
        return _shipped_runtime(DATA / "runtimes" / f"{name_or_path.lower()}.json")
    if _exists(Path(name_or_path)):
        return Runtime.load(name_or_path)
    raise UnknownName("runtime", name_or_path, runtime_names(), "A path to such a file works too.")


@cache
def _shipped_runtime(path: Path) -> Runtime:
    return Runtime.load(path)


def find_model(
    name_or_path: str, dtype: str | None = None, assume_like: str | None = None
) -> ModelSpec:
    """A shipped model by name, or any model by its config.json or the folder that holds it.

    Args:
        dtype: element type to use instead of the config's.
        assume_like: family to read a config of an unknown family as.

    Raises:
        UnknownName: no such shipped model and no such path; suggests the nearest name.
        BadFile: the config is unreadable, incomplete, or of an unsupported architecture.
    """
    model = _find_model(name_or_path, assume_like)
    if dtype is None:
        return model
    if dtype not in DTYPE_BYTES:
        raise BadInput(f"dtype(={dtype!r}) must be one of {', '.join(DTYPE_BYTES)}.")
    return replace(model, dtype=dtype)


def model_source(name: str) -> str:
    """Where the config of a shipped model was published."""
    source: str = decode_json(DATA / "models" / f"{name}.json")["_source"]
    return source


def hub_id(model: ModelSpec) -> str:
    """The name by which Hugging Face knows a shipped model; of another model its own name."""
    if model.name not in model_names():
        return model.name
    found = re.search(r"huggingface\.co/([^/]+/[^/]+)", model_source(model.name))
    return model.name if found is None else found[1]


def _find_model(name_or_path: str, assume_like: str | None) -> ModelSpec:
    shipped = DATA / "models" / f"{name_or_path.lower()}.json"
    if "/" not in name_or_path and _exists(shipped):
        return _shipped_model(shipped)
    if _exists(Path(name_or_path)):
        return load_model_config(name_or_path, assume_like=assume_like)
    raise UnknownName("model", name_or_path, model_names(), "A path to a config.json works too.")


@cache
def _shipped_model(path: Path) -> ModelSpec:
    return load_model_config(path)


@cache
def _names(folder: str) -> tuple[str, ...]:
    files = (DATA / folder).iterdir()
    return tuple(sorted(path.stem for path in files if path.suffix in (".json", DATA_SHEET)))


def find_hardware(name_or_path: str) -> HardwareProfile:
    """A shipped profile by name, any profile by path, or a machine composed of two parts.

    `h100-sxm+pcie5-x16` is the device h100-sxm behind the link pcie5-x16; either part may be the
    path of a file of its kind. A device alone, by name or by the path of its data sheet, is behind
    the link that it is mostly sold with.

    Raises:
        UnknownName: no such shipped profile and no such path; suggests the nearest name.
        BadFile: the profile is unreadable or has an unknown, absent or invalid key.
    """
    shipped = DATA / "hardware" / f"{name_or_path.lower()}.json"
    if "/" not in name_or_path and _exists(shipped):
        return HardwareProfile.load(shipped)
    is_file = _exists(Path(name_or_path))
    if name_or_path.lower() in compute_names() or (is_file and _is_data_sheet(name_or_path)):
        device = find_compute(name_or_path)
        with naming_file(name_or_path):
            return compose(device, find_link(device.usual_link))
    if is_file:
        return HardwareProfile.load(name_or_path)
    if JOIN in name_or_path:
        compute, link = split_name(name_or_path)
        return compose(find_compute(compute), find_link(link))
    raise UnknownName(
        "hardware",
        name_or_path,
        [*hardware_names(), *compute_names(), *composed_names()],
        "A path to a profile.json or to a data sheet in TOML works too.",
    )


def is_shipped(name: str) -> bool:
    """Whether a machine of this name comes with the program, in one file or in two parts."""
    device, _, link = name.rpartition(JOIN)
    whole = name in (*hardware_names(), *composed_names())
    return whole or (device in compute_names() and link in link_names())


def composed_names() -> list[str]:
    """Every device behind the link it is mostly sold with, if it has one."""
    links = {name: find_compute(name).usual_link for name in compute_names()}
    return [name if link == UNIFIED else f"{name}{JOIN}{link}" for name, link in links.items()]


def find_compute(name_or_path: str) -> ComputePart:
    """A device by shipped name or by path.

    Raises:
        UnknownName: neither; suggests the nearest name.
        BadFile: the file is unreadable or has an unknown, absent or invalid key.
    """
    return _find_part("compute", name_or_path, compute_names(), _load_compute)


def _load_compute(path: Path | str) -> ComputePart:
    return (DataSheet if _is_data_sheet(path) else ComputePart).load(path)


def _is_data_sheet(path: Path | str) -> bool:
    return Path(path).suffix.lower() == DATA_SHEET


def find_link(name_or_path: str) -> LinkPart:
    """A host with its links by shipped name, by path, or by the rate of its link, such as 25GB/s;
    raises as `find_compute` does."""
    if name_or_path[:1].isdigit():
        return plain_link(name_or_path)
    return _find_part("links", name_or_path, list(_names("hardware/links")), LinkPart.load)


@cache
def _shipped_part(load: Callable[[Path | str], Part], path: Path) -> Part:
    """A part that comes with the program, read once: none of its fields can be changed."""
    return load(path)


def _find_part(
    folder: str, name_or_path: str, known: list[str], load: Callable[[Path | str], Part]
) -> Part:
    if name_or_path.lower() in known:
        file = DATA / "hardware" / folder / f"{name_or_path.lower()}.json"
        part: Part = _shipped_part(load, file if file.exists() else file.with_suffix(DATA_SHEET))
        return part
    if _exists(Path(name_or_path)):
        return load(name_or_path)
    kind = {"compute": "device", "links": "link"}[folder]
    raise UnknownName(kind, name_or_path, known, "A path to such a file works too.")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False
