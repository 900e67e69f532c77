"""Small studies that several tests sweep."""

from __future__ import annotations

from typing import Any

SMALL = {
    "title": "small",
    "fixed": {"model": "opt-125m", "hardware": "kvpr-a100", "prompt": 64},
    "grid": {"link.bandwidth": ["25GB/s", "100GB/s"], "policy": ["load-all", "lp"]},
    "zip": {"batch": [2, 8], "gen": [1, 2]},
}
RESTORE = {
    "scenario": "restore",
    "fixed": {"model": "longalpaca-7b", "hardware": "a100-80g", "prompt": "4K"},
    "grid": {"tier": ["1GB/s", "8GB/s"], "policy": ["load-only", "compute-only"]},
}
TRAFFIC = {
    "scenario": "traffic",
    "fixed": {
        "model": "llama-3.1-8b",
        "hardware": "h100-sxm+pcie5-x16",
        "gpu_memory": "22GB",
        "generate": 60,
        "rate": 2,
        "seed": 3,
    },
    "grid": {"policy": ["load-only", "two-ended"], "host_cache": [0, "8GB", "16GB"]},
}


def toml(study: dict[str, Any]) -> str:
    """A study's content as TOML text; its values are texts, numbers, booleans and lists of them."""
    lines = [f"{key} = {_value(one)}" for key, one in study.items() if not isinstance(one, dict)]
    for name, table in study.items():
        if isinstance(table, dict):
            lines += [f"[{name}]", *(f'"{key}" = {_value(one)}' for key, one in table.items())]
    return "\n".join(lines) + "\n"


def _value(one: Any) -> str:
    if isinstance(one, bool):
        return str(one).lower()
    if isinstance(one, list):
        return f"[{', '.join(map(_value, one))}]"
    if isinstance(one, dict):
        return "{" + ", ".join(f'"{key}" = {_value(value)}' for key, value in one.items()) + "}"
    if isinstance(one, str):
        return '"' + one.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(one)
