"""`kvoverlap models` and `kvoverlap hardware`: the shipped models, machines, devices and links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from cyclopts import App

from kvoverlap.cli.import_profile import aiconfigurator
from kvoverlap.cli.output import print_json, say, table
from sim.catalog import (
    compute_names,
    find_compute,
    find_hardware,
    find_link,
    find_model,
    hardware_names,
    link_names,
    model_names,
)
from sim.machine.components import JOIN, ComputePart, LinkPart
from sim.machine.profile import HardwareProfile


def models(*, json: bool = False) -> None:
    """List the model architectures that come with kvoverlap.

    Any other OPT, Llama, Mistral, Qwen2 or Qwen3 model works by the path of its config.json.

    For example:
      kvoverlap models
      kvoverlap models --json

    Parameters
    ----------
    json
        Print JSON instead of a table.
    """
    specs = [find_model(name) for name in model_names()]
    if json:
        print_json(
            [
                {
                    "name": spec.name,
                    "family": spec.family,
                    "parameters": spec.n_parameters,
                    "n_layers": spec.n_layers,
                    "hidden_size": spec.hidden_size,
                    "n_heads": spec.n_heads,
                    "n_kv_heads": spec.n_kv_heads,
                    "kv_bytes_per_token_and_layer": spec.kv_token_bytes,
                    "x_bytes_per_token_and_layer": spec.x_token_bytes,
                    "source": "Hugging Face config.json",
                }
                for spec in specs
            ]
        )
        return
    rows = [
        (
            spec.name,
            f"{spec.n_parameters / 1e9:.2f} B",
            str(spec.n_layers),
            str(spec.hidden_size),
            f"{spec.n_heads}/{spec.n_kv_heads}",
            f"{spec.kv_token_bytes / 1024:g} KiB",
            f"{spec.x_token_bytes / 1024:g} KiB",
        )
        for spec in specs
    ]
    columns = (
        "model",
        "parameters",
        "layers",
        "hidden",
        "heads/kv",
        "KV / token / layer",
        "X / token / layer",
    )
    table("Shipped models (Hugging Face config.json)", columns, rows)


def hardware(*, json: bool = False) -> None:
    """List the shipped machines, and the devices and links that can be combined.

    DEVICE+LINK, such as `h100-sxm+pcie5-x16`, names a machine in every --hardware option.
    `kvoverlap profile` measures this machine and writes its profile; `kvoverlap hardware import`
    makes one from published operator timings.

    For example:
      kvoverlap hardware
      kvoverlap hardware --json
      kvoverlap plan --model opt-30b --hardware h200+pcie5-x16 --batch 32 --prompt 1K
      kvoverlap plan --model opt-30b --hardware h200+pcie5-x16 --batch 32 --prompt 1K \\
        --set link.h2d.bandwidth=128GB/s

    Parameters
    ----------
    json
        Print JSON instead of tables: one list, each entry with its kind, machine, device or link.
    """
    machines = [find_hardware(name) for name in hardware_names()]
    devices = [find_compute(name) for name in compute_names()]
    links = [find_link(name) for name in link_names()]
    if json:
        print_json(
            [
                *map(_machine_entry, machines),
                *map(_device_entry, devices),
                *map(_link_entry, links),
            ]
        )
        return
    rows = [
        (
            profile.name,
            _rate(profile.gemm.flops_per_s / 1e12, "TFLOP/s", profile.gemm.source),
            _rate(profile.links.h2d.bytes_per_s / 1e9, "GB/s", profile.links.h2d.source),
            _gib(profile.memory.device_bytes),
            profile.dtype,
        )
        for profile in machines
    ]
    columns = ("machine", "matrix products", "h2d link", "memory", "dtype")
    table("Shipped machines", columns, rows)
    _print_parts(devices, links)


def _print_parts(devices: Sequence[ComputePart], links: Sequence[LinkPart]) -> None:
    rows = [
        (
            part.name,
            _rate(part.gemm.flops_per_s / 1e12, "TFLOP/s", part.gemm.source),
            _rate(part.attention.bytes_per_s / 1e9, "GB/s", part.attention.source),
            _gib(part.memory_bytes.value),
            f"{part.name}{JOIN}{part.usual_link}",
        )
        for part in devices
    ]
    columns = ("device", "matrix products", "decode attention", "memory", "with its usual link")
    say("")
    table("Devices, from published operator timings", columns, rows)
    rows = [
        (
            part.name,
            _rate(part.links.h2d.bytes_per_s / 1e9, "GB/s", part.links.h2d.source),
            _rate(part.links.d2h.bytes_per_s / 1e9, "GB/s", part.links.d2h.source),
            _gib(part.host_memory_bytes.value),
            part.description,
        )
        for part in links
    ]
    say("")
    table("Links", ("link", "h2d", "d2h", "host memory", "what it is"), rows)
    say(
        f"\nAny device can be combined with any link: --hardware DEVICE{JOIN}LINK, such as "
        f"h100-sxm{JOIN}pcie5-x16. For other rates, add --set link.h2d.bandwidth=128GB/s."
    )


def _rate(value: float, unit: str, source: str) -> str:
    return f"{_short(value)} {unit} ({source})"


def _gib(n_bytes: float) -> str:
    return f"{_short(n_bytes / 2**30)} GiB"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _machine_entry(profile: HardwareProfile) -> dict[str, Any]:
    return {
        "kind": "machine",
        "name": profile.name,
        "description": profile.description,
        "dtype": profile.dtype,
        "source": profile.source,
        "gemm_flops_per_s": profile.gemm.flops_per_s,
        "h2d_bytes_per_s": profile.links.h2d.bytes_per_s,
        "device_memory_bytes": profile.memory.device_bytes,
        "sources": {
            "gemm": profile.gemm.source,
            "attention": profile.attention.source,
            "elementwise": profile.elementwise.source,
            "h2d": profile.links.h2d.source,
            "d2h": profile.links.d2h.source,
            "memory": profile.memory.source,
        },
    }


def _device_entry(part: ComputePart) -> dict[str, Any]:
    return {
        "kind": "device",
        "name": part.name,
        "description": part.description,
        "dtype": part.dtype,
        "usual_link": part.usual_link,
        "gemm_flops_per_s": part.gemm.flops_per_s,
        "attention_bytes_per_s": part.attention.bytes_per_s,
        "device_memory_bytes": part.memory_bytes.value,
        "measured_in": part.environment,
        "sources": {
            "gemm": part.gemm.source,
            "attention": part.attention.source,
            "elementwise": part.elementwise.source,
            "memory": part.memory_bytes.source,
        },
        "checks": [asdict(errors) for errors in part.checks],
    }


def _link_entry(part: LinkPart) -> dict[str, Any]:
    return {
        "kind": "link",
        "name": part.name,
        "description": part.description,
        "h2d_bytes_per_s": part.links.h2d.bytes_per_s,
        "d2h_bytes_per_s": part.links.d2h.bytes_per_s,
        "host_memory_bytes": part.host_memory_bytes.value,
        "sources": {"h2d": part.links.h2d.source, "d2h": part.links.d2h.source},
    }


hardware_app = App(name="hardware")
hardware_app.default(hardware)
import_app = App(
    name="import",
    help="Make a profile from operator timings that others measured and published.",
)
import_app.command(aiconfigurator)
hardware_app.command(import_app)
