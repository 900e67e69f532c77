"""Errors of the predictions of published figures, by source and by group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from planner.published.cells import PUBLISHED, Cell, PublishedSource, load_cells
from planner.published.copies import copy_row
from planner.restore.reproduce import Reproduced, reproduce_case
from planner.sweep.rows import ENGINE, ROW_OF, Row
from sim.errors import BadInput, KvOverlapError, UnknownName
from sim.progress import Progress, Silent


@dataclass(frozen=True, slots=True)
class Group:
    """Figures of one kind.

    Args:
        title: what they are.
        mean_frac: largest mean |error| of those that gave no constant and whose miss has no
            explanation.
        cell_frac: largest |error| of one of them; the uncertainty of the figure is added.
    """

    title: str
    mean_frac: float
    cell_frac: float


GROUPS = {
    "copy-curve": Group("copies by size, H100", 0.03, 0.05),
    "copy": Group("other copies over a link", 0.06, 0.08),
    "computed-ttft": Group("first token, prompt computed", 0.08, 0.12),
    "loaded-ttft": Group("first token, prompt loaded", 0.08, 0.12),
    "host-decode": Group("decode step, KV in host memory", 0.02, 0.05),
    "resident-decode": Group("decode step, KV in GPU memory", 0.10, 0.10),
    "two-ended": Group("speed-up of computing and loading at once", 0.04, 0.10),
    "throughput": Group("tokens a second of many requests", 0.15, 0.25),
    "elsewhere": Group("figures whose configuration is partly unknown", 0.40, 0.40),
}

ROWS: dict[str, Callable[[Mapping[str, Any]], Row]] = {**ROW_OF, "copy": copy_row}


@dataclass(frozen=True, slots=True)
class Predicted:
    """A published figure with today's prediction; the error is predicted / published - 1."""

    cell: Cell
    predicted: float | None
    refused: str = ""

    @property
    def error_frac(self) -> float | None:
        return None if self.predicted is None else self.predicted / self.cell.value - 1

    @property
    def limit_frac(self) -> float:
        """Largest |error| without an explanation."""
        return GROUPS[self.cell.group].cell_frac + self.cell.uncertainty / self.cell.value

    @property
    def verdict(self) -> str:
        """`ok`, `calibrated`, `missed` (explained), `OUT` (not explained), or `not predicted`."""
        if self.error_frac is None:
            return "OUT" if self.refused else "not predicted"
        if self.cell.calibrates:
            return "calibrated"
        if abs(self.error_frac) <= self.limit_frac:
            return "ok"
        return "missed" if self.cell.explanation else "OUT"


@dataclass(frozen=True, slots=True)
class Errors:
    """|Errors| of figures that gave no constant.

    Args:
        cells: figures that were predicted.
        explained: of these, those beyond the limit of their group whose reason is stated.
        mean_abs_frac, worst_frac: of all of them; None without any. `worst_frac` has its sign.
        unexplained_mean_frac: without the explained ones.
        order_frac: pairs of figures that are predicted in their order, None without a pair.
    """

    cells: int
    calibrated: int
    explained: int
    mean_abs_frac: float | None
    unexplained_mean_frac: float | None
    worst_frac: float | None
    order_frac: float | None

    @classmethod
    def of(cls, found: Sequence[Predicted]) -> Errors:
        counted = [one for one in found if one.error_frac is not None and not one.cell.calibrates]
        errors = [one.error_frac or 0.0 for one in counted]
        plain = [abs(one.error_frac or 0.0) for one in counted if one.verdict != "missed"]
        return cls(
            len(counted),
            sum(bool(one.cell.calibrates) for one in found),
            len(counted) - len(plain),
            fmean(map(abs, errors)) if errors else None,
            fmean(plain) if plain else None,
            max(errors, key=abs) if errors else None,
            _order_frac(found),
        )


def _order_frac(found: Sequence[Predicted]) -> float | None:
    """Of all pairs of one source and quantity that differ by more than their uncertainty, and whose
    predictions differ, how many are predicted in their order."""
    right = total = 0
    for one, other in combinations([each for each in found if each.predicted is not None], 2):
        a, b = one.cell, other.cell
        if (a.source, a.quantity) != (b.source, b.quantity):
            continue
        if one.predicted == other.predicted:
            continue
        if abs(a.value - b.value) <= max(a.uncertainty + b.uncertainty, 0.01 * a.value):
            continue
        total += 1
        right += ((one.predicted or 0.0) - (other.predicted or 0.0)) * (a.value - b.value) > 0
    return right / total if total else None


@dataclass(frozen=True)
class PublishedAccuracy:
    """All published figures with their predictions."""

    sources: Mapping[str, PublishedSource]
    figures: tuple[Predicted, ...]

    def of_group(self, group: str) -> Errors:
        return Errors.of([one for one in self.figures if one.cell.group == group])

    def of_source(self, source: str) -> Errors:
        return Errors.of([one for one in self.figures if one.cell.source == source])

    @property
    def faults(self) -> list[str]:
        """One sentence for each figure out of tolerance without a reason, and for each group."""
        found = [
            f"{one.cell.id}: {one.refused}"
            if one.error_frac is None
            else f"{one.cell.id}: predicted {one.predicted:.4g}, published {one.cell.value:.4g} "
            f"({one.cell.quantity}), error {100 * one.error_frac:+.1f} %, at most "
            f"{100 * one.limit_frac:.1f} % without an explanation"
            for one in self.figures
            if one.verdict == "OUT"
        ]
        for name, group in GROUPS.items():
            mean = self.of_group(name).unexplained_mean_frac
            if mean is not None and mean > group.mean_frac:
                found.append(
                    f"group {name}: mean |error| {100 * mean:.1f} %, at most "
                    f"{100 * group.mean_frac:.0f} %"
                )
        return found

    @property
    def passed(self) -> bool:
        return bool(self.figures) and not self.faults

    def to_dict(self) -> dict[str, Any]:
        return {
            "figures": [_figure(one, self.sources) for one in self.figures],
            "by_source": {name: _errors(self.of_source(name)) for name in self.sources},
            "by_group": {
                name: {**_errors(self.of_group(name)), "target_frac": group.mean_frac}
                for name, group in GROUPS.items()
            },
            "faults": self.faults,
            "passed": self.passed,
        }


def _figure(one: Predicted, sources: Mapping[str, PublishedSource]) -> dict[str, Any]:
    cell, source = one.cell, sources[one.cell.source]
    inputs: Mapping[str, Any] = cell.inputs
    if cell.case is not None:
        inputs = {name: getattr(cell.case, name) for name in ("hardware", "model", "link_gbps")}
    return {
        "id": cell.id,
        "source": cell.source,
        "date": source.date.isoformat(),
        "confidence": source.confidence,
        "group": cell.group,
        "scenario": cell.scenario,
        "inputs": dict(inputs),
        "quantity": cell.quantity,
        "value": cell.value,
        "uncertainty": cell.uncertainty or None,
        "predicted": one.predicted,
        "error_frac": one.error_frac,
        "calibrates": cell.calibrates or None,
        "verdict": one.verdict,
        "explanation": cell.explanation or one.refused or None,
    }


def _errors(found: Errors) -> dict[str, Any]:
    return {
        "cells": found.cells,
        "calibrated": found.calibrated,
        "explained_misses": found.explained,
        "mean_abs_error_frac": found.mean_abs_frac,
        "mean_abs_error_without_explained_frac": found.unexplained_mean_frac,
        "worst_error_frac": found.worst_frac,
        "order_frac": found.order_frac,
    }


def assess_published(
    folder: Path = PUBLISHED, progress: Progress | None = None
) -> PublishedAccuracy:
    """Today's prediction of every published figure.

    Raises:
        BadFile: the figures cannot be read.
    """
    sources, cells = load_cells(folder)
    steps, predictor = progress or Silent(), _Predictor()
    found = []
    for number, cell in enumerate(cells):
        if cell.group not in GROUPS:
            raise UnknownName("group", cell.group, list(GROUPS))
        steps(cell.source, number / len(cells))
        found.append(predictor.predict(cell))
    return PublishedAccuracy(sources, tuple(found))


class _Predictor:
    """Predicts figures by the functions behind `sweep`, `plan`, `restore` and `reproduce`.

    Figures of one configuration share its simulations.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[object, ...], Row] = {}
        self._cases: dict[int, Reproduced] = {}

    def predict(self, cell: Cell) -> Predicted:
        if not cell.is_predicted:
            return Predicted(cell, None)
        try:
            return Predicted(cell, self._value(cell))
        except KvOverlapError as error:
            return Predicted(cell, None, str(error))

    def _value(self, cell: Cell) -> float:
        if cell.case is not None:
            key = id(cell.case)
            if key not in self._cases:
                self._cases[key] = reproduce_case(cell.case, ENGINE)
            return self._cases[key].speedups[cell.quantity]
        setting = (cell.scenario, *cell.inputs.items())
        if setting not in self._rows:
            self._rows[setting] = ROWS[cell.scenario](cell.inputs)
        value = self._rows[setting].get(cell.quantity)
        if not isinstance(value, int | float):
            raise BadInput(f"quantity(={cell.quantity!r}) is no output of {cell.scenario}.")
        return float(value)
