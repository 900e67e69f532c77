"""A study: which questions to ask, as a person writes them in TOML.

::

    title = "..."                 # optional
    scenario = "decode"           # or "restore"
    [fixed]                       # the same at every point
    model = "opt-13b"
    [grid]                        # every combination of these
    "link.bandwidth" = ["25GB/s", "50GB/s"]
    [zip]                         # one after another, together
    batch = [8, 32]
    prompt = ["4K", "1K"]
    [where]                       # points that hold under every filter
    small = "batch * prompt <= 1e6"

Counts, rates and sizes are written as on the command line. Points are numbered in the order of the
file: the last axis of the grid moves faster than the first, and `zip` fastest of all.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from planner.sweep.filters import Filter
from planner.sweep.inputs import REQUIRED, SCENARIOS, Input, Value
from sim.catalog import find_hardware, find_model
from sim.errors import BadFile, BadInput, UnknownName
from sim.files import naming_file, read_text, set_fields

MAX_POINTS = 10_000_000
"""Before filters; a larger study is a slip of the hand."""

TABLES = ("fixed", "grid", "zip", "where")
TOP_KEYS = ("title", "scenario", *TABLES)

Point = tuple[Value, ...]
"""Values of one point, in the order of `Study.inputs`."""


@dataclass(frozen=True)
class Study:
    """The questions of one study file, checked.

    Args:
        scenario: a key of `SCENARIOS`.
        fixed: knobs that are the same at every point, defaults included.
        grid, zipped: values of the knobs that vary.
        filters: of the points that are wanted.
    """

    title: str
    scenario: str
    fixed: Mapping[str, Value]
    grid: Mapping[str, tuple[Value, ...]]
    zipped: Mapping[str, tuple[Value, ...]]
    filters: tuple[Filter, ...]

    @classmethod
    def load(cls, path: Path | str) -> Study:
        """Read a study file.

        Raises:
            BadFile: unreadable, not TOML, or a key or value that no study can have; the message
                names the key.
        """
        try:
            content = tomllib.loads(read_text(path))
        except tomllib.TOMLDecodeError as error:
            raise BadFile(f"{path} is not valid TOML: {error}.") from None
        except (RecursionError, ValueError) as error:  # an integer of thousands of digits
            raise BadFile(f"{path} is not valid TOML: {str(error) or 'nested too deep'}.") from None
        with naming_file(str(path)):
            return cls.of(content)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Study:
        """The study of a TOML file's content.

        Raises:
            BadInput: a key or value that no study can have.
        """
        for key in content:
            if key not in TOP_KEYS:
                raise UnknownName("key", key, TOP_KEYS)
        title, scenario = content.get("title", ""), content.get("scenario", "decode")
        if not isinstance(title, str):
            raise BadInput(f"title(={title!r}) must be a text.")
        if not isinstance(scenario, str) or scenario not in SCENARIOS:
            raise BadInput(f"scenario(={scenario!r}) must be one of {', '.join(SCENARIOS)}.")
        knobs = SCENARIOS[scenario]
        tables = {name: dict(_flat(name, content.get(name, {}))) for name in TABLES}
        wanted = tables.pop("where")
        _check_keys(scenario, knobs, tables)
        axes = {
            name: {key: _axis(f"{name}.{key}", knobs[key], values) for key, values in table.items()}
            for name, table in tables.items()
            if name != "fixed"
        }
        fixed = {
            key: knobs[key].read(f"fixed.{key}", value) for key, value in tables["fixed"].items()
        }
        varied = {**axes["grid"], **axes["zip"]}
        defaults = {
            key: knob.default
            for key, knob in knobs.items()
            if knob.default is not None and key not in {**fixed, **varied}
        }
        lengths = {key: len(values) for key, values in axes["zip"].items()}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"zip.{key} has {count}" for key, count in lengths.items())
            raise BadInput(f"lists under [zip] must be equally long: {counts}.")
        made = {**defaults, **fixed, **varied}
        filters = tuple(_filter(f"where.{name}", text, made) for name, text in wanted.items())
        study = cls(title, scenario, {**defaults, **fixed}, axes["grid"], axes["zip"], filters)
        if study.n_combinations > MAX_POINTS:
            raise BadInput(
                f"grid: {study.n_combinations:,} combinations are more than the {MAX_POINTS:,} a "
                "study may have; split it."
            )
        return study

    @property
    def n_combinations(self) -> int:
        """Points before any filter."""
        return prod(map(len, self.grid.values())) * self._n_zipped

    @property
    def _n_zipped(self) -> int:
        return len(next(iter(self.zipped.values()))) if self.zipped else 1

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Knobs of a point: those that are set or have a default, in the order of the tables."""
        known = {**self.fixed, **self.grid, **self.zipped}
        return tuple(key for key in SCENARIOS[self.scenario] if key in known)

    @property
    def axes(self) -> tuple[str, ...]:
        """Knobs that differ between points."""
        return (*self.grid, *self.zipped)

    def points(self) -> Iterator[Point]:
        """Every point that passes the filters, in order.

        Raises:
            BadInput: a filter cannot be worked out for a point.
        """
        place = {key: at for at, key in enumerate((*self.fixed, *self.axes))}
        order = [place[key] for key in self.inputs]
        together = list(zip(*self.zipped.values(), strict=True)) if self.zipped else [()]
        start = tuple(self.fixed.values())
        for combination in product(*self.grid.values()):
            for each in together:
                values = (*start, *combination, *each)
                point = tuple(values[at] for at in order)
                named = dict(zip(self.inputs, point, strict=True)) if self.filters else {}
                if all(one.holds(named) for one in self.filters):
                    yield point

    @cached_property
    def sha256(self) -> str:
        """Identity of the questions: values, filters, and what models and machines are made of."""

        def every(key: str) -> Sequence[Value]:
            varied = {**self.grid, **self.zipped}
            return varied[key] if key in varied else (self.fixed[key],)

        content = [
            self.scenario,
            *([*part.items()] for part in (self.fixed, self.grid, self.zipped)),
            [one.text for one in self.filters],
            [set_fields(find_model(str(name))) for name in every("model")],
            [find_hardware(str(name)).to_dict() for name in every("hardware")],
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _flat(where: str, table: Any) -> Iterator[tuple[str, Any]]:
    """Entries of a table; `link.bandwidth` without quotes is a table inside, and the same key."""
    if not isinstance(table, dict):
        raise BadInput(f"{where}(={table!r}) must be a table: [{where}].")
    for key, value in table.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{rest}", one) for rest, one in _flat(f"{where}.{key}", value))
        else:
            yield key, value


def _check_keys(
    scenario: str, knobs: Mapping[str, Input], tables: Mapping[str, Mapping[str, Any]]
) -> None:
    """Refuse knobs that the scenario lacks, that are set twice, or that are needed and absent."""
    set_by: dict[str, str] = {}
    for name, table in tables.items():
        for key in table:
            if key not in knobs:
                raise UnknownName(f"{name}: knob of scenario {scenario!r},", key, knobs)
            if key in set_by:
                raise BadInput(f"{name}.{key} is set by [{set_by[key]}] too; keep one of them.")
            set_by[key] = name
    for key, knob in knobs.items():
        if knob.default == REQUIRED and key not in set_by:
            raise BadInput(f"{key} is missing; set it under [fixed], [grid] or [zip].")


def _axis(key: str, knob: Input, values: Any) -> tuple[Value, ...]:
    if not isinstance(values, list):
        raise BadInput(f"{key}(={values!r}) must be a list; a single value goes under [fixed].")
    if not values:
        raise BadInput(f"{key} is an empty list; give it at least one value.")
    read = tuple(knob.read(key, value) for value in values)
    for at, value in enumerate(read):
        if value in read[:at] and not key.startswith("zip."):
            raise BadInput(f"{key} holds {values[at]!r} twice; every point would be made twice.")
    return read


def _filter(key: str, text: Any, knobs: Mapping[str, Any]) -> Filter:
    if not isinstance(text, str):
        raise BadInput(f"{key}(={text!r}) must be a text such as 'batch * prompt <= 1e6'.")
    return Filter(key, text, frozenset(knobs))
