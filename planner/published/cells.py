"""Published measurements in one schema: `data/published/measurements.csv` and `sources.toml`.

One row is one measured figure. Its configuration is written as inputs of a study, which have the
names of the command line's options, so that a prediction needs nothing else:

============= ====================================================================================
id            unique name
source        key of `sources.toml`, which has title, date, address and confidence
group         figures of one kind, which share a tolerance (`planner.published.accuracy.GROUPS`)
scenario      `decode`, `restore` or `copy`
inputs        `key=value` words; empty where the figure cannot be predicted. A model that is not
              shipped has a config in `models`
quantity      output of the scenario, in SI units: `makespan_s`, `ttft_s`, `bytes_per_s`, ...
value         as published, in SI units
uncertainty   of reading a chart or of rounding, in the unit of `value`; empty if unknown
calibrates    the constant that this figure gave; it then does not count in its source's error
explanation   why the prediction misses the tolerance, or why there is none
============= ====================================================================================

Table 3 of Cake keeps the format of `kvoverlap reproduce`, and its two columns of speed-ups are
read as figures of this schema.
"""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from planner.published.copies import COPY
from planner.restore.reproduce import SPEEDUPS, Case, read_cases
from planner.sweep.inputs import REQUIRED, SCENARIOS, Input, Value
from sim.catalog import DATA
from sim.errors import BadFile, BadInput, UnknownName
from sim.files import STRICT_KEYS, decode_csv, decode_toml, naming_file, parse

PUBLISHED = DATA / "published"
SOURCES = "sources.toml"
MEASUREMENTS = "measurements.csv"
MODELS = "models"
CAKE = "cake_table3_a100.csv"

COLUMNS = (
    "id",
    "source",
    "group",
    "scenario",
    "inputs",
    "quantity",
    "value",
    "uncertainty",
    "calibrates",
    "explanation",
)
INPUTS: dict[str, dict[str, Input]] = {**SCENARIOS, "copy": COPY}


@dataclass(frozen=True, slots=True)
class PublishedSource:
    """Where figures were published.

    Args:
        date: of the publication; the day on which it was read where it has none.
        confidence: that the configuration is known and the figure read correctly.
    """

    __pydantic_config__ = STRICT_KEYS

    title: str
    date: datetime.date
    address: str
    confidence: Literal["high", "medium", "low"]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """One published figure with its configuration.

    Args:
        inputs: of the scenario, defaults included; empty where the figure cannot be predicted.
        value, uncertainty: in SI units.
        calibrates: the constant that this figure gave.
        explanation: of a miss, or of the absence of a prediction.
        case: the row of a table of `kvoverlap reproduce`, for its figures.
    """

    id: str
    source: str
    group: str
    scenario: str
    quantity: str
    value: float
    inputs: Mapping[str, Value] = field(default_factory=dict)
    uncertainty: float = 0.0
    calibrates: str = ""
    explanation: str = ""
    case: Case | None = None

    @property
    def is_predicted(self) -> bool:
        return bool(self.inputs) or self.case is not None


def load_cells(folder: Path = PUBLISHED) -> tuple[dict[str, PublishedSource], list[Cell]]:
    """The sources by key, and all their figures.

    Raises:
        BadFile: a file is unreadable, or a row breaks the schema; names the row.
    """
    path = folder / SOURCES
    with naming_file(str(path)):
        content = decode_toml(path)
        sources = {key: parse(PublishedSource, one, key) for key, one in content.items()}
    cells = [*_rows(folder / MEASUREMENTS), *_speedups(folder / CAKE)]
    names: set[str] = set()
    for cell in cells:
        if cell.id in names:
            raise BadFile(f"{folder}: id {cell.id!r} appears twice; ids must be unique.")
        if cell.source not in sources:
            raise BadFile(f"{folder}: {cell.id}: source {cell.source!r} is not in {SOURCES}.")
        names.add(cell.id)
    return sources, cells


def _rows(path: Path) -> list[Cell]:
    with naming_file(str(path)):
        rows = decode_csv(path)
        if tuple(rows[0]) != COLUMNS:
            raise BadFile(f"must have the columns {', '.join(COLUMNS)}.")
        models = path.parent / MODELS
        return [_cell(row, number, models) for number, row in enumerate(rows, start=2)]


def _cell(row: Mapping[str, str], line: int, models: Path) -> Cell:
    with naming_file(f"line {line}"):
        if not row["inputs"] and not row["explanation"]:
            raise BadInput("a figure without inputs needs an explanation.")
        return Cell(
            row["id"],
            row["source"],
            row["group"],
            row["scenario"],
            row["quantity"],
            _number("value", row["value"]),
            _inputs(row["scenario"], row["inputs"], models),
            _number("uncertainty", row["uncertainty"]) if row["uncertainty"] else 0.0,
            row["calibrates"],
            row["explanation"],
        )


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise BadInput(f"{name}(={text!r}) must be a number above 0.")
    return value


def _inputs(scenario: str, text: str, models: Path) -> dict[str, Value]:
    """The inputs of a row, checked and converted as those of a study are.

    A model that is not shipped has its config.json in the folder of the figures.
    """
    if scenario not in INPUTS:
        raise UnknownName("scenario", scenario, list(INPUTS))
    if not text:
        return {}
    known = INPUTS[scenario]
    found = {key: one.default for key, one in known.items() if one.default not in (None, REQUIRED)}
    for word in shlex.split(text):
        key, equals, value = word.partition("=")
        if not equals or key not in known:
            raise UnknownName("input", key, list(known))
        own = models / f"{value}.json"
        if key == "model" and own.exists():
            value = str(own)
        found[key] = known[key].read(key, _typed(value))
    for key, one in known.items():
        if one.default == REQUIRED and key not in found:
            raise BadInput(f"the inputs lack {key!r}.")
    return {key: value for key, value in found.items() if value is not None}


def _typed(text: str) -> str | int | float | bool:
    """A word of a row as TOML would read it; texts need no quotes."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _speedups(path: Path) -> list[Cell]:
    """The figures of Cake's table: two in a row."""
    return [
        Cell(
            f"{case.source}/{case.hardware}/{case.gpu_share:g}/{case.link_gbps:g}Gbps/{name}",
            case.source,
            "two-ended",
            "restore",
            name,
            case.reported[name],
            uncertainty=0.005,
            case=case,
        )
        for case in (read_cases(path) if path.exists() else [])
        for name in SPEEDUPS
        if name in case.reported
    ]
