"""Errors of kvoverlap and of other predictors on figures that others published.

    python benchmarks/peers_published.py

The figures are those of `kvoverlap accuracy --published`; the means leave out those that gave us a
constant. A peer that is not installed is skipped with the reason.

aiconfigurator-core  static prefill and decode steps, operator by operator, without an engine's own
                     time; it has no link to the host, so loaded prompts are left out
ai-dynamo-runtime    AISimulate's replay of a request trace; it charges a load and then a prefill
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from common import options, report

from planner.published import GROUPS, Cell, assess_published
from sim.catalog import find_model, find_runtime, hub_id

SYSTEMS = {"h100-sxm+pcie5-x16": "h100_sxm", "h200+pcie5-x16": "h200_sxm"}
"""aiconfigurator's names of our machines."""

MODELS = {"meta-llama/Llama-3.1-8B": "meta-llama/Meta-Llama-3.1-8B"}
"""aiconfigurator's names where they differ from the hub's."""

Peer = Callable[[Cell], float | None]


def aiconfigurator() -> Peer:
    """Seconds of a figure by aiconfigurator-core; None where it has no model."""
    handle = import_module("aiconfigurator_core.sdk").EngineHandle
    engines: dict[tuple[str, str], Any] = {}

    def predict(cell: Cell) -> float | None:
        inputs = cell.inputs
        system = SYSTEMS.get(str(inputs.get("hardware")))
        if system is None or cell.group not in ("computed-ttft", "resident-decode"):
            return None
        name = hub_id(find_model(str(inputs["model"])))
        key = (MODELS.get(name, name), system)
        if key not in engines:
            engines[key] = handle.compile(*key, "vllm")
        prompt = int(inputs["prompt"])
        if cell.group == "computed-ttft":
            return float(engines[key].predict_prefill_latency(1, prompt)) / 1e3
        return float(engines[key].predict_decode_latency(int(inputs["batch"]), prompt)) / 1e3

    return predict


def aisimulate() -> Peer:
    """Seconds of a loaded prompt by ai-dynamo-runtime.

    Its fixed prefill is the last block's by aiconfigurator-core, with the host time around a
    request that `data/runtimes/vllm.json` has, so that only the load is compared.
    """
    import_module("dynamo._core")
    engine = import_module("aiconfigurator_core.sdk").EngineHandle
    prefill = engine.compile("meta-llama/Meta-Llama-3.1-8B", "h100_sxm", "vllm")
    around_s = find_runtime("vllm").request_s.value

    def predict(cell: Cell) -> float | None:
        if cell.group != "loaded-ttft":
            return None
        prompt = int(cell.inputs["prompt"])
        model = find_model(str(cell.inputs["model"]))
        last_s = prefill.predict_prefill_latency(1, prompt, prompt - BLOCK) / 1e3
        kv_bytes = model.n_layers * model.kv_token_bytes
        return replayed_hit_s(prompt, kv_bytes, LINK_GBPS, last_s + around_s)

    return predict


def replayed_hit_s(prompt: int, kv_bytes: int, link_gbps: float, prefill_s: float) -> float:
    """TTFT of a hit in host memory by AISimulate's replay of a request trace.

    The request comes again after another one that fills GPU memory has moved its blocks to the
    host.

    Args:
        kv_bytes: of K and V of one token.
        link_gbps: GB/s in each direction.
        prefill_s: fixed time of a step that computes tokens of a prompt.
    """
    replay = import_module("dynamo._core").run_mocker_trace_replay
    blocks = prompt // BLOCK
    link = {"h2d_bandwidth_gbps": link_gbps, "d2h_bandwidth_gbps": link_gbps}
    asked = {
        "backend": "vllm",
        "num_gpu_blocks": blocks + SPARE_BLOCKS,
        "block_size": BLOCK,
        "max_num_batched_tokens": 8192,
        "enable_prefix_caching": True,
        "kv_cache_bytes_per_token": kv_bytes,
        "native_host_offload": {"num_host_blocks": 4 * blocks, **link},
        "timing_model": {
            "type": "fixed",
            "prefill_ms": 1e3 * prefill_s,
            "decode_ms": 1e3 * prefill_s,
        },
    }
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.jsonl"
        path.write_text(requests(prompt), encoding="utf-8")
        found = replay(
            [str(path)],
            extra_engine_args={"engine": asked},
            trace_block_size=TRACE_BLOCK,
            capture_per_request=True,
        )
    return float(found.per_request[-1]["ttft_ms"]) / 1e3


BLOCK, TRACE_BLOCK, LINK_GBPS = 16, 512, 51
"""Tokens of a block of vLLM and of the trace; GB/s of the link, as its users set it for an H100."""

SPARE_BLOCKS = 2
"""Blocks of GPU memory besides a prompt: so few that the other prompt evicts all of the first."""


def requests(prompt: int) -> str:
    """A prompt, another one of the same length, and the first again, far apart."""
    ids = range(-(-prompt // TRACE_BLOCK))
    rows = [(0, list(ids)), (10**5, [10**6 + one for one in ids]), (2 * 10**5, list(ids))]
    return "".join(
        json.dumps(
            {"timestamp": at, "input_length": prompt, "output_length": 2, "hash_ids": hashes}
        )
        + "\n"
        for at, hashes in rows
    )


PEERS = {"aiconfigurator-core": aiconfigurator, "ai-dynamo-runtime": aisimulate}


def main() -> None:
    asked = options(__doc__)
    figures = [one for one in assess_published().figures if one.error_frac is not None]
    found: dict[str, Any] = {"figures": [], "groups": {}, "skipped": {}}
    lines: list[str] = []
    for name, start in PEERS.items():
        try:
            predict = start()
        except ImportError as error:
            found["skipped"][name] = str(error)
            lines.append(f"{name} is skipped: {error}")
            continue
        rows: list[tuple[Cell, float, float]] = []
        for one in figures:
            seconds = predict(one.cell)
            if seconds is not None:
                theirs = seconds / one.cell.value - 1
                rows.append((one.cell, one.error_frac or 0.0, theirs))
        lines += compared(name, rows, found)
    report(found, asked.json, *lines)


def compared(name: str, rows: list[tuple[Cell, float, float]], found: dict[str, Any]) -> list[str]:
    """The figures of one peer, then mean |error| by group."""
    lines = [f"{'figure':28} {'published':>12} {'ours':>9} {name:>20}"]
    for cell, ours, theirs in rows:
        mark = " (gave a constant of ours)" if cell.calibrates else ""
        lines.append(
            f"{cell.id:28} {1e3 * cell.value:>9.1f} ms {100 * ours:>+7.1f} % "
            f"{100 * theirs:>+18.1f} %{mark}"
        )
        found["figures"].append(
            {
                "id": cell.id,
                "peer": name,
                "ours_frac": ours,
                "peer_frac": theirs,
                "calibrates": cell.calibrates or None,
            }
        )
    for group in GROUPS:
        of_group = [row for row in rows if row[0].group == group and not row[0].calibrates]
        if of_group:
            ours = fmean(abs(row[1]) for row in of_group)
            theirs = fmean(abs(row[2]) for row in of_group)
            found["groups"][group] = {
                "peer": name,
                "figures": len(of_group),
                "ours_frac": ours,
                "peer_frac": theirs,
            }
            lines.append(
                f"{group}: mean |error| of {len(of_group)} figures {100 * ours:.1f} %, "
                f"{name} {100 * theirs:.1f} %"
            )
    return lines


if __name__ == "__main__":
    main()
