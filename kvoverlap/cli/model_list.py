"""The list of shipped models, from an index that a test compares with their configs.

Reading all configs takes a second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvoverlap.cli.output import print_json, say, table
from sim.files import decode_json

INDEX = Path(__file__).resolve().parents[2] / "data" / "models.json"
"""Written by tests/model_index.py."""

COLUMNS = (
    "family",
    "model",
    "parameters",
    "active",
    "layers",
    "heads/kv",
    "KV / token",
    "X / token",
    "runs",
)


def list_models(json: bool = False) -> None:
    """Print every shipped model, by family."""
    entries = decode_json(INDEX)
    if json:
        print_json(entries)
        return
    table(
        "Shipped models, from their published configs", COLUMNS, list(map(_row, entries)), n_text=2
    )
    say(
        "\nAll can be planned and simulated; `runs` says whether a device can run their plans.\n"
        "`kvoverlap models NAME` shows one model; the path of a config.json works too."
    )


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    return (
        entry["family"],
        entry["name"],
        billions(entry["parameters"]),
        billions(entry["active_parameters"]),
        str(entry["n_layers"]),
        f"{entry['n_heads']}/{entry['n_kv_heads']}",
        f"{entry['kv_bytes_per_token'] / 1024:,.4g} KiB",
        f"{entry['n_layers'] * entry['x_bytes_per_token_and_layer'] / 1024:,.4g} KiB",
        "yes" if entry["runs"] else "no",
    )


def billions(count: int) -> str:
    """A number of parameters."""
    return f"{count / 1e9:,.2f} B"
