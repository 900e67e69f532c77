"""`kvoverlap hardware import`: a profile from operator timings that others published."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kvoverlap.cli.options import Json, NewFile
from kvoverlap.cli.output import print_json, progress, say, table
from kvoverlap.cli.table_errors import print_table_errors
from sim.catalog import find_link, link_names
from sim.machine.aiconfigurator import SystemTables, derive_part
from sim.machine.components import JOIN, ComputePart, compose
from sim.machine.cross_validation import leave_one_out


def aiconfigurator(
    *,
    system: str,
    output: NewFile,
    engine: str = "vllm",
    engine_version: str | None = None,
    link: str | None = None,
    json: Json = False,
) -> None:
    """Make a profile from the timings that the package aiconfigurator-core ships.

    It reads the package's data files and runs none of its code: matmuls, decode
    attention and prefill attention of one system and engine. The profile holds
    compact tables: utilisation over m, n and k, attention over heads and tokens.
    Each inner point is then predicted from its neighbours, and the errors are
    printed. Element-wise kernels, memory and peak rates are values of the datasheet
    and marked as such.

    Only the import needs the package (80 MB): pip install 'kvoverlap[silicon]'.

    For example:
      kvoverlap hardware import aiconfigurator --system h100_sxm --link pcie5-x16 \\
          -o h100.json
      kvoverlap hardware import aiconfigurator --system l40s --engine sglang \\
          -o l40s.json
      kvoverlap plan --model opt-30b --hardware h100.json --batch 16 --prompt 1K
      kvoverlap plan --model opt-30b --hardware l40s.json+pcie4-x16 --batch 16 \\
          --prompt 1K

    Parameters
    ----------
    system
        A system of the package, such as h100_sxm; a wrong name lists them.
    engine
        Engine whose kernels were timed: vllm, sglang or trtllm.
    engine_version
        A version of the engine; by default the newest that has all tables.
    link
        Name of a link (`kvoverlap hardware`) or path of one. With it the file is a whole machine;
        without it, a device that any link can be added to: FILE+LINK.
    """
    host = None if link is None else find_link(link)
    with progress("import") as steps:
        steps("finding the tables", 0.0)
        tables = SystemTables.find(system, engine, engine_version)
        steps("reading the tables", 0.1)
        part = derive_part(tables, output.name.partition(".")[0])
        steps("predicting every point from its neighbours", 0.5)
        part = checked(part)
    if host is None:
        part.save(output)
    else:
        replace(compose(part, host), name=part.name).save(output)
    if json:
        print_json(_answer(part, output))
        return
    _print(part)
    print_table_errors(part.checks)
    reference = f"{output}" if host is not None else f"{output}{JOIN}{part.usual_link}"
    say(f"\nwritten to {output}; next: kvoverlap plan --hardware {reference} ...")


def checked(part: ComputePart) -> ComputePart:
    """The part with the leave-one-out errors of its tables."""
    anywhere = find_link(link_names()[0])
    return replace(part, checks=leave_one_out(compose(part, anywhere)))


def _figures(part: ComputePart) -> list[tuple[str, float, str, str]]:
    """Main figures: name, value, unit, source."""
    gemm, attention = part.gemm, part.attention
    read_gb_per_s = (gemm.bytes_per_s or 0.0) / 1e9
    found: list[tuple[str, float, str, str]] = [
        ("matrix products, large", gemm.flops_per_s / 1e12, "TFLOP/s", gemm.source),
        ("weights, read", read_gb_per_s, "GB/s", gemm.source),
        ("decode attention, K and V read", attention.bytes_per_s / 1e9, "GB/s", attention.source),
    ]
    if part.prefill is not None:
        rate = part.prefill.attention_flops_per_s
        found.append(("prefill attention, large", rate.value / 1e12, "TFLOP/s", rate.source))
    passes, memory = part.elementwise, part.memory_bytes
    return [
        *found,
        ("element-wise passes", passes.bytes_per_s / 1e9, "GB/s", passes.source),
        ("device memory", memory.value / 2**30, "GiB", memory.source),
    ]


def _print(part: ComputePart) -> None:
    say(f"{part.name}: {part.description}")
    for matmul in part.gemm.utilisation:
        say(
            f"matmuls with {matmul.weight_bits}-bit weights: {len(matmul.m)} rows x "
            f"{len(matmul.n)} n x {len(matmul.k)} k"
        )
    rows = [(name, f"{value:,.4g} {unit}", source) for name, value, unit, source in _figures(part)]
    table("Figures", ("figure", "value", "source"), rows)
    say("")


def _answer(part: ComputePart, output: Path) -> dict[str, Any]:
    figures = [
        {"figure": name, "value": value, "unit": unit, "source": source}
        for name, value, unit, source in _figures(part)
    ]
    return {
        "name": part.name,
        "output": str(output),
        "measured_in": part.environment,
        "figures": figures,
        "checks": [asdict(errors) for errors in part.checks],
    }
