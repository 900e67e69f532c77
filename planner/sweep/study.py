"""A study: the points of a sweep, read from TOML.

::

    title = "..."                 # optional
    scenario = "decode"           # or "restore", "traffic"
    [fixed]                       # the same at every point
    model = "opt-13b"
    [grid]                        # every combination of these
    "link.bandwidth" = ["25GB/s", "50GB/s"]
    [zip]                         # lists of equal length, taken together
    batch = [8, 32]
    prompt = ["4K", "1K"]
    [where]                       # filters that every point passes
    small = "batch * prompt <= 1e6"

Counts, rates and sizes are written as on the command line. Points are numbered in the order of the
file: the last axis of the grid varies faster than the first, and `zip` fastest of all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from planner.sweep.filters import Filter
from planner.sweep.inputs import AS_ASKED, GENERATED, REQUIRED, SCENARIOS, Input, Value
from sim.catalog import find_hardware, find_model
from sim.errors import BadInput, UnknownName
from sim.files import decode_toml, naming_file, set_fields
from sim.model.spec import ModelSpec

MAX_POINTS = 10_000_000
"""Limit before filters."""

TABLES = ("fixed", "grid", "zip", "where")
TOP_KEYS = ("title", "scenario", *TABLES)

Point = tuple[Value, ...]
"""Values of one point, in the order of `Study.inputs`."""


@dataclass(frozen=True)
class Study:
    """A checked study.

    Args:
        scenario: a key of `SCENARIOS`.
        fixed: inputs with one value for all points, defaults included.
        grid, zipped: values of the inputs that vary.
        filters: conditions on the inputs that every point meets.
    """

    title: str
    scenario: str
    fixed: Mapping[str, Value]
    grid: Mapping[str, tuple[Value, ...]]
    zipped: Mapping[str, tuple[Value, ...]]
    filters: tuple[Filter, ...]

    @classmethod
    def load(cls, path: Path | str, runtime: str | None = None) -> Study:
        """Read a study file.

        Args:
            runtime: the serving runtime of every point, where the study names none.

        Raises:
            BadFile: unreadable, not TOML, or an invalid key or value; the message names the key.
        """
        content = decode_toml(path)
        with naming_file(str(path)):
            if runtime is None:
                return cls.of(content)
            fixed = content.get("fixed", {})
            if any("runtime" in content.get(name, {}) for name in ("fixed", "grid", "zip")):
                raise BadInput(f"--runtime(={runtime}): the study names runtimes; leave it out.")
            return cls.of({**content, "fixed": {**fixed, "runtime": runtime}})

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Study:
        """The study with the content of a TOML file.

        Raises:
            BadInput: an invalid key or value.
        """
        for key in content:
            if key not in TOP_KEYS:
                raise UnknownName("key", key, TOP_KEYS)
        title, scenario = content.get("title", ""), content.get("scenario", "decode")
        if not isinstance(title, str):
            raise BadInput(f"title(={title!r}) must be a text.")
        if not isinstance(scenario, str) or scenario not in SCENARIOS:
            raise BadInput(f"scenario(={scenario!r}) must be one of {', '.join(SCENARIOS)}.")
        inputs = SCENARIOS[scenario]
        tables = {name: dict(_flat(name, content.get(name, {}))) for name in TABLES}
        conditions = tables.pop("where")
        _check_keys(scenario, inputs, tables)
        grid, zipped = (
            {key: _axis(f"{name}.{key}", inputs[key], one) for key, one in tables[name].items()}
            for name in ("grid", "zip")
        )
        fixed = {
            key: inputs[key].read(f"fixed.{key}", value) for key, value in tables["fixed"].items()
        }
        varied = {**grid, **zipped}
        defaults = {
            key: one.default
            for key, one in inputs.items()
            if one.default is not None and key not in {**fixed, **varied}
        }
        lengths = {key: len(values) for key, values in zipped.items()}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"zip.{key} has {count}" for key, count in lengths.items())
            raise BadInput(f"lists under [zip] must be equally long: {counts}.")
        made = {**defaults, **fixed, **varied}
        filters = tuple(_filter(f"where.{name}", text, made) for name, text in conditions.items())
        study = cls(title, scenario, {**defaults, **fixed}, grid, zipped, filters)
        if study.n_combinations > MAX_POINTS:
            raise BadInput(
                f"grid: {study.n_combinations:,} combinations are more than the {MAX_POINTS:,} a "
                "study may have; split it."
            )
        table = next(name for name in ("fixed", "grid", "zip") if "model" in tables[name])
        try:
            asks = any(one.kv_bits is not None for one in study.models)
        except BadInput as error:
            raise BadInput(f"{table}.model: {error}") from None
        if asks and "kv_bits" not in {**fixed, **varied}:
            return replace(study, fixed={**study.fixed, "kv_bits": AS_ASKED})
        return study

    @cached_property
    def models(self) -> tuple[ModelSpec, ...]:
        """The models of all points, as their configs describe them."""
        pair = ("model", "assume_like")
        names, families = (self.varied.get(key) or (self.fixed.get(key),) for key in pair)
        together = {*pair} <= {*self.zipped}
        pairs = zip(names, families, strict=True) if together else product(names, families)
        return tuple(
            find_model(str(name), assume_like=None if family is None else str(family))
            for name, family in pairs
        )

    @property
    def n_combinations(self) -> int:
        """Points before any filter."""
        return prod(map(len, self.grid.values())) * self._n_zipped

    @property
    def _n_zipped(self) -> int:
        return len(next(iter(self.zipped.values()))) if self.zipped else 1

    @property
    def varied(self) -> dict[str, tuple[Value, ...]]:
        """Values of every input that varies."""
        return {**self.grid, **self.zipped}

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Inputs that are set or have a default, in the order of the scenario."""
        known = {**self.fixed, **self.varied}
        return tuple(key for key in SCENARIOS[self.scenario] if key in known)

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the inputs that vary."""
        return tuple(self.varied)

    def points(self) -> Iterator[Point]:
        """Every point that passes the filters, in order.

        Raises:
            BadInput: a filter cannot be evaluated for a point.
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
        """Hash of the values, the filters, and the content of models, machines and traces."""

        def every(key: str) -> Sequence[Value]:
            return self.varied.get(key) or (self.fixed[key],)

        content = [
            self.scenario,
            *([*part.items()] for part in (self.fixed, self.grid, self.zipped)),
            [one.text for one in self.filters],
            [set_fields(one) for one in self.models],
            [find_hardware(str(name)).to_dict() for name in every("hardware")],
        ]
        for key in ("link_from", "trace"):
            if key in (*self.fixed, *self.varied):
                content += [_hash_of(Path(str(name)).read_bytes()) for name in every(key)]
        return _hash_of(json.dumps(content).encode())


def _hash_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _flat(where: str, table: Any) -> Iterator[tuple[str, Any]]:
    """Entries of a table. `link.bandwidth` without quotes is a nested table and the same key."""
    if not isinstance(table, dict):
        raise BadInput(f"{where}(={table!r}) must be a table: [{where}].")
    for key, value in table.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{rest}", one) for rest, one in _flat(f"{where}.{key}", value))
        else:
            yield key, value


def _check_keys(
    scenario: str, inputs: Mapping[str, Input], tables: Mapping[str, Mapping[str, Any]]
) -> None:
    """Refuse inputs that are unknown to the scenario, set twice, or required and absent."""
    set_by: dict[str, str] = {}
    for name, table in tables.items():
        for key in table:
            if key not in inputs:
                raise UnknownName(f"{name}: input of scenario {scenario!r},", key, inputs)
            if key in set_by:
                raise BadInput(f"{name}.{key} is set by [{set_by[key]}] too; keep one of them.")
            set_by[key] = name
    for key, one in inputs.items():
        if one.default == REQUIRED and key not in set_by:
            raise BadInput(f"{key} is missing; set it under [fixed], [grid] or [zip].")
    if scenario == "traffic":
        _check_requests(set_by)


def _check_requests(keys: Collection[str]) -> None:
    """Refuse a traffic study without requests, or with two kinds of them."""
    if "trace" not in keys and "generate" not in keys:
        raise BadInput("set trace to a file of requests, or generate to a number of them.")
    if "trace" in keys and (extra := [key for key in ("generate", *GENERATED) if key in keys]):
        raise BadInput(f"{extra[0]} goes with generated requests; leave it or trace out.")


def _axis(key: str, one: Input, values: Any) -> tuple[Value, ...]:
    if not isinstance(values, list):
        raise BadInput(f"{key}(={values!r}) must be a list; a single value goes under [fixed].")
    if not values:
        raise BadInput(f"{key} is an empty list; give it at least one value.")
    read = tuple(one.read(key, value) for value in values)
    for at, value in enumerate(read):
        if value in read[:at] and not key.startswith("zip."):
            raise BadInput(f"{key} has {values[at]!r} twice; remove one.")
    return read


def _filter(key: str, text: Any, inputs: Mapping[str, Any]) -> Filter:
    if not isinstance(text, str):
        raise BadInput(f"{key}(={text!r}) must be a text such as 'batch * prompt <= 1e6'.")
    return Filter(key, text, frozenset(inputs))
