"""`kvoverlap models` and `kvoverlap hardware`: what is shipped."""

from __future__ import annotations

from cli.output import print_json, table
from sim.catalog import find_hardware, find_model, hardware_names, model_names


def models(*, json: bool = False) -> None:
    """List the model architectures that come with kvoverlap.

    Any other OPT, Llama, Mistral, Qwen2 or Qwen3 model works by the path of its config.json.

    Examples:
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
        "KV/token/layer",
        "X/token/layer",
    )
    table("Shipped models (Hugging Face config.json)", columns, rows)


def hardware(*, json: bool = False) -> None:
    """List the hardware profiles that come with kvoverlap, with where their numbers come from.

    `kvoverlap profile` measures this machine and writes a profile of its own.

    Examples:
      kvoverlap hardware
      kvoverlap hardware --json

    Parameters
    ----------
    json
        Print JSON instead of a table.
    """
    profiles = [find_hardware(name) for name in hardware_names()]
    if json:
        print_json(
            [
                {
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
                for profile in profiles
            ]
        )
        return
    rows = [
        (
            profile.name,
            f"{profile.gemm.flops_per_s / 1e12:.3g} TFLOP/s ({profile.gemm.source})",
            f"{profile.links.h2d.bytes_per_s / 1e9:.3g} GB/s ({profile.links.h2d.source})",
            f"{profile.memory.device_bytes / 2**30:.3g} GiB",
            profile.dtype,
        )
        for profile in profiles
    ]
    table(
        "Shipped hardware profiles",
        ("hardware", "matrix products", "h2d link", "memory", "dtype"),
        rows,
    )
