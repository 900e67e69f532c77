"""The list of shipped models, from an index that a test compares with their configs.

Reading all configs takes a second.
"""

from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from kvoverlap.cli.output import print_json, say, table
from sim.files import decode_json

INDEX = Path(__file__).resolve().parents[2] / "data" / "models.json"
"""Written by tests/model_index.py."""

COLUMNS = ("model", "params", "active", "layers", "KV", "X", "runs")


def list_models(json: bool = False) -> None:
    """Print every shipped model, by family."""
    entries = decode_json(INDEX)
    if json:
        print_json(entries)
        return
    rows = []
    for family, members in groupby(entries, key=itemgetter("family")):
        rows.append((family, *[""] * (len(COLUMNS) - 1)))
        rows += map(_row, members)
    table("Shipped models by family, from their published configs", COLUMNS, rows)
    say(
        "\nparams, active: billions of parameters, and those of one token. KV, X: KiB a token of "
        "all layers. All can be planned and simulated; runs says whether a device can run their "
        "plans, and dequant. if they have to be made with --dequantise. `kvoverlap models NAME` "
        "shows one model; the path of a config.json works too."
    )


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    runs = "dequant." if entry["runs_dequantised"] else "yes" if entry["runs"] else "no"
    return (
        f" {entry['name']}",
        f"{entry['parameters'] / 1e9:,.4g}",
        f"{entry['active_parameters'] / 1e9:,.4g}",
        str(entry["n_layers"]),
        f"{entry['kv_bytes_per_token'] / 1024:,.4g}",
        f"{entry['n_layers'] * entry['x_bytes_per_token_and_layer'] / 1024:,.4g}",
        runs,
    )
