"""The index of shipped models, which `kvoverlap models` prints: `data/models.json`.

`python tests/model_index.py` rewrites it from the configs in data/models.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from kvoverlap.cli.model_list import INDEX
from sim.catalog import find_model, model_names, model_source
from sim.files import write_bytes
from sim.model.runnable import why_not_run
from sim.model.spec import ModelSpec


def entries() -> list[dict[str, Any]]:
    """Every shipped model, by family."""
    specs = sorted(map(find_model, model_names()), key=lambda spec: (spec.family, spec.name))
    return list(map(entry, specs))


def entry(spec: ModelSpec) -> dict[str, Any]:
    """One model as `kvoverlap models --json` prints it."""
    as_is = why_not_run(spec) is None
    dequantised = why_not_run(spec.dequantised()) is None
    return {
        "name": spec.name,
        "family": spec.family,
        "parameters": spec.n_parameters,
        "active_parameters": spec.active_parameters,
        "n_layers": spec.n_layers,
        "hidden_size": spec.hidden_size,
        "n_heads": spec.n_heads,
        "n_kv_heads": spec.n_kv_heads,
        "kv_bytes_per_token_and_layer": max(one.attention.kv_size for one in spec.layers)
        * spec.element_bytes,
        "x_bytes_per_token_and_layer": spec.x_token_bytes,
        "kv_bytes_per_token": spec.all_rows_bytes,
        "planned": True,
        "runs": as_is or dequantised,
        "runs_dequantised": dequantised and not as_is,
        "source": model_source(spec.name),
    }


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(one) for one in entries())
    write_bytes(INDEX, f"[\n{lines}\n]\n".encode())
