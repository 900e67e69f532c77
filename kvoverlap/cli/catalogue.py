"""`kvoverlap models` and `kvoverlap hardware`: the shipped models, machines, devices and links."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from cyclopts import App, Parameter

from kvoverlap.cli.import_profile import aiconfigurator
from kvoverlap.cli.model_list import list_models
from kvoverlap.cli.options import AssumeLike, Count, Json
from kvoverlap.cli.output import print_json, say, table
from sim.catalog import (
    compute_names,
    find_compute,
    find_hardware,
    find_link,
    find_model,
    hardware_names,
    link_names,
)
from sim.lanes import COPY_LANES
from sim.machine.components import JOIN, UNIFIED, ComputePart, LinkPart
from sim.machine.profile import HardwareProfile
from sim.model.sheet import LayerSheet, Sheet, sheet


def models(
    model: Annotated[
        str | None,
        Parameter(
            help="Name of a shipped model or path of a config.json. By default all shipped models "
            "are listed."
        ),
    ] = None,
    /,
    *,
    context: Annotated[Count, Parameter(help="Tokens of the sequence in the sheet.")] = 4096,
    kv_bits: Annotated[
        Count, Parameter(help="Bits of an element of K and V in the sheet: 16, 8 or 4.")
    ] = 16,
    assume_like: AssumeLike = None,
    json: Json = False,
) -> None:
    """List the shipped models by family, or show what one model takes.

    The sheet of a model has its parameters, the bytes of its weights as they are
    stored, and what one sequence takes: K and V, keys of sparse indexes (8 bits),
    and states, by kind of layer. It says from which layers' inputs X the K and V
    could be projected again.

    For example:
      kvoverlap models
      kvoverlap models llama-3.1-8b --context 128K
      kvoverlap models ./config.json --context 128K --kv-bits 8 --json
    """
    if model is None:
        list_models(json)
        return
    made = sheet(find_model(model, assume_like=assume_like), context, kv_bits)
    if json:
        print_json(asdict(made))
        return
    _print_sheet(made)


def _print_sheet(made: Sheet) -> None:
    of_sequence = made.kv_bytes + made.index_bytes + made.state_bytes
    say(
        f"{made.name} ({made.family}): {_billions(made.parameters)} parameters, "
        f"{_billions(made.active_parameters)} active; weights {_bytes(made.weight_bytes)}; a "
        f"sequence of {made.context_tokens:,} tokens {_bytes(of_sequence)}\n"
    )
    groups: dict[tuple[str, str], list[LayerSheet]] = {}
    for layer in made.layers:
        groups.setdefault(layer.kind, []).append(layer)
    rows = [
        (
            _numbers([layer.layer for layer in same]),
            attention,
            ffn,
            _bytes(sum(layer.weight_bytes for layer in same)),
            _bytes(sum(layer.kv_bytes for layer in same)),
            _bytes(sum(layer.index_bytes for layer in same)),
            _bytes(sum(layer.state_bytes for layer in same)),
            "yes" if same[0].from_x else "no",
        )
        for (attention, ffn), same in groups.items()
    ]
    columns = ("layers", "attention", "FFN", "weights", "KV", "index", "state", "from X")
    table("Layers", columns, rows)
    projected = sum(layer.from_x for layer in made.layers)
    say(
        f"\nX of all layers takes {_bytes(made.x_bytes_per_token)} a token. K and V can be "
        f"projected from X in {projected} of {len(made.layers)} layers. K and V have "
        f"{made.kv_bits} bits, keys of an index 8, X 16."
    )
    if made.asked_kv_bits is not None and made.asked_kv_bits != made.kv_bits:
        say(
            f"The checkpoint asks for K and V in {made.asked_kv_bits} bits: "
            f"--kv-bits {made.asked_kv_bits}."
        )


def _numbers(numbers: Sequence[int]) -> str:
    """Layers as a count and the first of them."""
    first = ", ".join(map(str, numbers[:3]))
    if len(numbers) > 3 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{len(numbers)}: {numbers[0]} to {numbers[-1]}"
    return f"{len(numbers)}: {first}{' ...' if len(numbers) > 3 else ''}"


def _billions(count: int) -> str:
    return f"{count / 1e9:,.2f} B"


def _bytes(n_bytes: int) -> str:
    """Bytes in the unit that fits."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n_bytes >= size:
            return f"{n_bytes / size:,.{0 if n_bytes >= 100 * size else 2}f} {unit}"
    return f"{n_bytes} B" if n_bytes else "-"


def hardware(name: str | None = None, /, *, json: bool = False) -> None:
    """List shipped machines, devices and links, or show every figure of one.

    A device alone, such as `rtx-4090`, is behind the link that it is mostly sold
    with; DEVICE+LINK, such as `h100-sxm+pcie5-x16`, names another link or its rate.
    Each is a value of --hardware. `kvoverlap profile` measures this machine and
    writes its profile; `kvoverlap hardware import` makes one from published
    operator timings. A machine of your own is ten lines of TOML.

    For example:
      kvoverlap hardware
      kvoverlap hardware rtx-4090
      kvoverlap hardware mine.toml --json
      kvoverlap plan --model opt-30b --hardware h200+pcie5-x16 --batch 32 \\
          --prompt 1K
      kvoverlap plan --model opt-30b --hardware h200+pcie5-x16 --batch 32 \\
          --prompt 1K --set link.h2d.bandwidth=128GB/s

    Parameters
    ----------
    name
        A machine as in --hardware: its figures with their sources.
    json
        Print JSON instead of tables: one list, each entry with its kind, machine, device or link;
        or the one machine.
    """
    if name is not None:
        one = find_hardware(name)
        if json:
            print_json({**_machine_entry(one), "figures": [asdict(row) for row in _figures(one)]})
        else:
            _print_machine(one)
        return
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
            one.name,
            _tflops(one.gemm.flops_per_s),
            _gbs(one.links.h2d.bytes_per_s),
            _gib(one.memory.device_bytes),
            ", link ".join(dict.fromkeys((one.gemm.source, one.links.h2d.source))),
            re.split("[:;]", one.description)[0],
        )
        for one in machines
    ]
    columns = ("machine", "matmuls", "h2d link", "memory", "source", "what it is")
    table("Shipped machines", columns, rows)
    _print_parts(devices, links)


def _print_parts(devices: Sequence[ComputePart], links: Sequence[LinkPart]) -> None:
    for title, from_sheet in (
        ("Devices with measured tables, from published operator timings", False),
        ("Devices from data sheets: peak rates times a stated efficiency", True),
    ):
        rows = [
            (
                part.name,
                _tflops(part.gemm.flops_per_s),
                _gbs(part.attention.bytes_per_s),
                _gib(part.memory_bytes.value),
                part.usual_link,
                "data sheet" if from_sheet else f"{part.gemm.source} table",
            )
            for part in devices
            if (part.efficiency is not None) == from_sheet
        ]
        columns = ("device", "matmuls", "attention", "memory", "usual link", "source")
        say("")
        table(title, columns, rows)
    offers = [
        (
            part.name,
            _gbs(part.links.h2d.bytes_per_s),
            _gib(part.host_memory_bytes.value),
            part.links.h2d.source,
            part.description,
        )
        for part in links
        if part.links and part.host_memory_bytes
    ]
    say("")
    table("Links", ("link", "each way", "host memory", "source", "what it is"), offers)
    say(
        f"\nAny device can be combined with any link or rate: --hardware h100-sxm{JOIN}pcie5-x16 "
        f"or rtx-4090{JOIN}12GB/s. CPU and GPU share one memory where the usual link is "
        f"{UNIFIED}.\nFigures of one machine: kvoverlap hardware NAME."
    )


@dataclass(frozen=True, slots=True)
class _Figure:
    """One figure of a machine, in SI units for JSON and as text."""

    figure: str
    value: float
    text: str
    source: str
    note: str


def _figures(one: HardwareProfile) -> list[_Figure]:
    """The main figures of a machine."""
    gemm, links, memory = one.gemm, one.links, one.memory

    def rate(figure: str, value: float | None, unit: str, source: str, note: str) -> None:
        if value is not None:
            text = (_tflops if unit == "FLOP/s" else _gbs)(value)
            found.append(_Figure(figure, value, text, source, note))

    def size(figure: str, n_bytes: float) -> None:
        found.append(_Figure(figure, n_bytes, _gib(n_bytes), memory.source, ""))

    found: list[_Figure] = []
    rate("matmuls", gemm.flops_per_s, "FLOP/s", gemm.source, gemm.note)
    rate("matmuls, 8 bits", gemm.flops_8bit_per_s, "FLOP/s", gemm.source, "")
    rate("matmuls, 4 bits", gemm.flops_4bit_per_s, "FLOP/s", gemm.source, "")
    rate("weights, read", gemm.bytes_per_s, "B/s", gemm.source, "")
    reads = one.attention
    rate("attention, K and V read", reads.bytes_per_s, "B/s", reads.source, reads.note)
    restore = one.restore
    if restore is not None and restore.prefill is not None:
        prefill = restore.prefill.attention_flops_per_s
        rate("attention of prefill", prefill.value, "FLOP/s", prefill.source, prefill.note)
    size("GPU memory", memory.device_bytes)
    if not memory.unified:
        size("host memory", memory.host_bytes)
        for name, link in (("h2d", links.h2d), ("d2h", links.d2h)):
            rate(f"{name} link", link.bytes_per_s, "B/s", link.source, link.note)
    for tier in restore.tiers if restore is not None else ():
        figure = tier.bytes_per_s
        rate(tier.lane, figure.value, "B/s", figure.source, figure.note)
    return found


def _print_machine(one: HardwareProfile) -> None:
    say(f"{one.name}: {one.description}; rates for {one.dtype}")
    if one.efficiency is not None:
        say(f"rates are {one.efficiency}")
    if first := one.no_link_note:
        say(first)
    say("")
    found = _figures(one)
    rows = [(row.figure, row.text, row.source) for row in found]
    table("Figures", ("figure", "value", "source"), rows)
    notes: dict[str, list[str]] = {}
    for row in found:
        notes.setdefault(row.note, []).append(row.figure)
    say("")
    for note, figures in notes.items():
        if note:
            say(f"{', '.join(figures)}: {note}")


def _tflops(value: float) -> str:
    return f"{_short(value / 1e12)} TFLOP/s"


def _gbs(value: float) -> str:
    return f"{_short(value / 1e9)} GB/s"


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
        "unified_memory": profile.memory.unified,
        "efficiency": None if profile.efficiency is None else asdict(profile.efficiency),
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
        "efficiency": None if part.efficiency is None else asdict(part.efficiency),
        "sources": {
            "gemm": part.gemm.source,
            "attention": part.attention.source,
            "elementwise": part.elementwise.source,
            "memory": part.memory_bytes.source,
        },
        "checks": [asdict(errors) for errors in part.checks],
    }


def _link_entry(part: LinkPart) -> dict[str, Any]:
    links, host = part.links, part.host_memory_bytes
    return {
        "kind": "link",
        "name": part.name,
        "description": part.description,
        "h2d_bytes_per_s": links and links.h2d.bytes_per_s,
        "d2h_bytes_per_s": links and links.d2h.bytes_per_s,
        "host_memory_bytes": host and host.value,
        "sources": {lane: links.of(lane).source for lane in COPY_LANES if links},
    }


hardware_app = App(name="hardware")
hardware_app.default(hardware)
import_app = App(
    name="import",
    help="Make a profile from operator timings that others measured and published.",
)
import_app.command(aiconfigurator)
hardware_app.command(import_app)
