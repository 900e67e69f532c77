"""TTFT of single hits in host memory: `kvoverlap traffic --runtime vllm` and AISimulate.

    python benchmarks/single_hits.py [--json]

Both load a hit and then compute the last block of its prompt. AISimulate (ai-dynamo-runtime) gets
what it cannot know: the rate at which our link copies a block of the runtime, and our time of the
step and around a request. So the table compares how load and prefill add up, not their rates.
`serial` is bytes / rate + step + time around a request, by hand. A peer that is not installed is
skipped with the reason; `serial` is compared all the same.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from common import options, report
from peers_published import BLOCK, replayed_hit_s
from services import hit_ttft_s

from planner.restore.service import make_service
from sim import find_hardware, find_model
from sim.catalog import find_runtime
from sim.service import Engine, ServiceSettings

MODELS = ("llama-3.1-8b", "qwen3-8b", "opt-13b")
PROMPTS = (2_032, 10_240, 20_480, 32_256)
MACHINE = "h100-sxm+pcie5-x16"


def hit(model: str, prompt: int) -> dict[str, Any]:
    """One hit of all blocks but the last, by both."""
    runtime, spec = find_runtime("vllm"), find_model(model)
    settings = ServiceSettings(engine=Engine(policy="load-only"), tier_bytes={"dram": 1e12})
    service = make_service(settings, spec, find_hardware(MACHINE), BLOCK, runtime)
    costs = service.costs
    cached = prompt - BLOCK
    kv_bytes = spec.n_layers * spec.kv_token_bytes
    chunk = costs.io_chunk_tokens
    rate = chunk * kv_bytes / costs.chunk_load_s(None)
    step_s = costs.step_s([(cached, BLOCK)], 0, 0, 1) + runtime.request_s.value
    one = {
        "model": model,
        "prompt": prompt,
        "link_bytes_per_s": rate,
        "ours_s": hit_ttft_s(service, prompt, cached // BLOCK, BLOCK),
        "serial_s": cached * kv_bytes / rate + step_s,
    }
    try:
        one["aisimulate_s"] = replayed_hit_s(prompt, kv_bytes, rate / 1e9, step_s)
    except ImportError as error:
        one["skipped"] = str(error)
    return one


def main() -> None:
    asked = options(__doc__)
    hits = [
        hit(model, prompt)
        for model in MODELS
        for prompt in PROMPTS
        if prompt < find_model(model).max_positions
    ]
    lines = [f"{'model':16} {'prompt':>7} {'ours':>10} {'serial':>18} {'AISimulate':>18}"]
    for one in hits:
        cells = []
        for key in ("serial_s", "aisimulate_s"):
            if key in one:
                cells.append(
                    f"{1e3 * one[key]:>7.1f} ms {100 * (one['ours_s'] / one[key] - 1):+5.1f} %"
                )
        line = f"{one['model']:16} {one['prompt']:>7,} {1e3 * one['ours_s']:>7.1f} ms"
        lines.append(" ".join([line, *(f"{cell:>18}" for cell in cells)]))
    if skipped := hits[0].get("skipped"):
        lines.append(f"AISimulate is skipped: {skipped}")
    report({"hits": hits}, asked.json, *lines)


if __name__ == "__main__":
    main()
