"""Predictions of published restore measurements, row by row.

Columns: source, hardware, model, prompt_tokens, chunk_tokens, gpu_share, link_gbps, kv_bits and,
where they were measured, speedup_vs_load and speedup_vs_compute. As in Cake (arXiv 2410.03065) a
Gbps is 2**30 bits a second, and all of the prompt but its last token is cached behind the link.
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace as with_changes
from pathlib import Path
from statistics import fmean

from planner.restore.lower import compute_only_graph, split_graph, two_ended_graph
from planner.restore.split import RestoreSplit
from sim.catalog import find_hardware, find_model
from sim.engine.api import simulate
from sim.errors import BadFile, BadInput
from sim.files import decode_csv, naming_file
from sim.graph.jobs import RestoreRequest
from sim.lanes import NET
from sim.machine.prefill import Restore, Tier
from sim.machine.profile import HardwareProfile
from sim.machine.provenance import SourcedValue
from sim.units import parse_rate

GBPS = 2**30 / 8
"""Bytes a second of one of Cake's Gbps: 32 of them are 4 GiB/s."""

SPEEDUPS = ("speedup_vs_load", "speedup_vs_compute")
COLUMNS = (
    "source",
    "hardware",
    "model",
    "prompt_tokens",
    "chunk_tokens",
    "gpu_share",
    "link_gbps",
    "kv_bits",
)


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table; `reported` holds the speed-ups that it gives."""

    source: str
    hardware: str
    model: str
    prompt_tokens: int
    chunk_tokens: int
    gpu_share: float
    link_gbps: float
    kv_bits: int
    reported: dict[str, float]

    @property
    def request(self) -> RestoreRequest:
        return RestoreRequest(
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.prompt_tokens - 1,
            tier="net",
            chunk_tokens=self.chunk_tokens,
            gpu_share=self.gpu_share,
            tier_kv_bits=self.kv_bits,
        )


@dataclass(frozen=True, slots=True)
class Reproduced:
    """What the two-ended restore of a case gains, predicted; `errors` are predicted / reported - 1.

    A speed-up below 1 is a loss.
    """

    case: Case
    two_ended_s: float
    load_only_s: float
    compute_only_s: float

    @property
    def speedups(self) -> dict[str, float]:
        return {
            "speedup_vs_load": self.load_only_s / self.two_ended_s,
            "speedup_vs_compute": self.compute_only_s / self.two_ended_s,
        }

    @property
    def errors(self) -> dict[str, float]:
        return {
            name: self.speedups[name] / value - 1.0 for name, value in self.case.reported.items()
        }


def link_rate(name: str, value: str | float) -> float:
    """Bytes a second of a text such as `4GiB/s`, or of a bare number of Gbps.

    Raises:
        BadInput: neither; the message names `name`.
    """
    try:
        gbps = float(value)
    except (ValueError, OverflowError):
        return parse_rate(name, str(value))
    if not 0 < gbps < float("inf"):
        raise BadInput(f"{name}(={value}) must be above 0 Gbps.")
    return gbps * GBPS


def behind_link(hardware: HardwareProfile, bytes_per_s: float) -> HardwareProfile:
    """The machine with a network tier of this rate."""
    tier = Tier(NET, SourcedValue("datasheet", bytes_per_s, "as given"))
    return with_changes(hardware, restore=(hardware.restore or Restore()).with_tier(tier))


def reproduce_case(case: Case, engine: str = "simpy") -> Reproduced:
    """Simulate the two ends and both baselines of one case.

    Args:
        engine: which one simulates, as in `sim.simulate`.

    Raises:
        BadInput: the row asks for something that is not a restore; UnknownName for its names.
    """
    machine = behind_link(find_hardware(case.hardware), case.link_gbps * GBPS)
    model, request = find_model(case.model), case.request
    graphs = (
        two_ended_graph(model, request),
        split_graph(model, request, RestoreSplit.even(model, 0)),
        compute_only_graph(model, request),
    )
    return Reproduced(case, *(simulate(graph, machine, engine).makespan_s for graph in graphs))


def read_cases(path: Path | str) -> list[Case]:
    """The rows of a table.

    Raises:
        BadFile: a column is missing or unknown, or a value is not a number above 0.
    """
    with naming_file(str(path)):
        rows = decode_csv(path)
        missing = [name for name in COLUMNS if name not in rows[0]]
        unknown = [name for name in rows[0] if name not in (*COLUMNS, *SPEEDUPS)]
        if missing or unknown:
            word, names = ("lacks", missing) if missing else ("has the unknown", unknown)
            raise BadFile(f"{path} {word} column {names[0]!r}; it needs {', '.join(COLUMNS)}.")
        return [_case(row, number) for number, row in enumerate(rows, start=2)]


def _case(row: dict[str, str], line: int) -> Case:
    def number(name: str, whole: bool = False) -> float:
        try:
            value = float(row[name])
        except (TypeError, ValueError):
            value = 0.0
        if not 0 < value < float("inf") or (whole and value != int(value)):
            kind = "a whole number" if whole else "a number"
            raise BadInput(f"line {line}: {name}(={row[name]!r}) must be {kind} above 0.")
        return value

    made = Case(
        row["source"],
        row["hardware"],
        row["model"],
        int(number("prompt_tokens", whole=True)),
        int(number("chunk_tokens", whole=True)),
        number("gpu_share"),
        number("link_gbps"),
        int(number("kv_bits", whole=True)),
        {name: number(name) for name in SPEEDUPS if row.get(name)},
    )
    with naming_file(f"line {line}"):
        _ = made.request
    return made


def error_summary(results: list[Reproduced]) -> dict[str, dict[str, float]]:
    """Mean and largest |error| of each speed-up over the rows that report it."""
    summary = {}
    for name in SPEEDUPS:
        errors = [abs(one.errors[name]) for one in results if name in one.errors]
        if errors:
            summary[name] = {
                "mean_abs_error_frac": fmean(errors),
                "max_abs_error_frac": max(errors),
            }
    return summary
