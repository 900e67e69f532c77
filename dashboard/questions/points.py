"""Tables of predicted points: one row for each plan or simulation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import log2
from typing import TYPE_CHECKING, Any

import pandas as pd

from dashboard.questions.decode import ENGINE, Question
from planner import DecodePlan, StepSplit, baseline_split
from sim.cost.model import CostModel
from sim.engine.api import simulate
from sim.errors import KvOverlapError
from sim.graph.tasks import TaskGraph
from sim.machine.what_if import RATES, rate_unit
from sim.progress import Progress
from sim.units import parse_rate

if TYPE_CHECKING:
    from planner.sweep import DecodeTimes

MAX_POINTS = 33
FEWEST_POINTS = 9
TASK_BUDGET = 12_000
"""Tasks over all points of a split curve; their simulation takes half a second."""

MULTIPLES = (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
PROMPTS = (128, 256, 512, 1024, 1536, 2046, 4096, 8192, 16384, 32768)
"""2046 is the longest prompt that leaves a model of 2048 positions room for two new tokens."""


def split_points(plan: DecodePlan, also: Sequence[int] = ()) -> pd.DataFrame:
    """Simulated makespan over the tokens that every layer recomputes in every step.

    Args:
        also: token counts to add to evenly spaced ones.

    Returns:
        Columns `tokens`, `makespan_s` and `in_range` (no task left the calibrated range).
    """
    job = plan.workload
    costs = CostModel(plan.hardware, plan.model, job)
    tasks_a_point = len(plan.lower().tasks)
    n_points = min(MAX_POINTS, max(FEWEST_POINTS, TASK_BUDGET // tasks_a_point))
    spaced = {round(job.prompt_tokens * at / (n_points - 1)) for at in range(n_points)}
    rows = []
    for tokens in sorted(spaced | {count for count in also if 0 <= count <= job.prompt_tokens}):
        graph = even_split(plan, tokens)
        inside = all(costs.estimate(task).in_range for task in graph.tasks)
        rows.append((tokens, simulate(graph, plan.hardware, ENGINE).makespan_s, inside))
    return pd.DataFrame(rows, columns=["tokens", "makespan_s", "in_range"])


def kvpr_count(plan: DecodePlan) -> int:
    """The tokens that KVPR's formula recomputes in the first step of a plan's job."""
    return baseline_split("kvpr", plan.model, plan.workload, plan.hardware)[0][0]


def even_split(plan: DecodePlan, tokens: int) -> TaskGraph:
    """The graph of a plan's job in which every layer recomputes `tokens` in every step.

    Resident K and V stay resident, and X of the recomputed tokens. A layer whose K and V are no
    projection of X recomputes none.
    """
    splits = [plan.model.splits(layer) for layer in range(plan.model.n_layers)]
    steps = []
    for step in plan.steps:
        moved = [sum(pair) for pair in zip(step.recomputed_tokens, step.loaded_tokens, strict=True)]
        recomputed = tuple(
            min(tokens, count) if may else 0 for count, may in zip(moved, splits, strict=True)
        )
        loaded = tuple(a - b for a, b in zip(moved, recomputed, strict=True))
        steps.append(replace(step, recomputed_tokens=recomputed, loaded_tokens=loaded))
    kept_x = tuple(min(tokens, count) for count in plan.resident_x_tokens)
    edited = replace(plan, policy="edited", steps=tuple(steps), resident_x_tokens=kept_x)
    return edited.lower()


@dataclass(frozen=True)
class Axis:
    """One input that a sweep varies.

    Args:
        name: in menus and in links.
        title: with its unit.
        settings: the values to try, as they are set.
        ask: returns the question with the input set to a value.
        shown: the input of a question in the unit of the title.
    """

    name: str
    title: str
    settings: tuple[float, ...]
    ask: Callable[[Question, float], Question]
    shown: Callable[[Question], float]

    @property
    def coarse(self) -> Axis:
        """The same input at powers of two, for a map over two of them."""
        return replace(
            self, settings=tuple(value for value in self.settings if log2(value).is_integer())
        )


def _rate_axis(name: str, title: str, change: str, key: str, unit: float) -> Axis:
    """A rate over multiples of the profile's, shown as rounded in `--set`."""

    def ask(question: Question, multiple: float) -> Question:
        values: dict[str, Any] = {change: multiple}
        return replace(question, changes=replace(question.changes, **values))

    def shown(question: Question) -> float:
        settings = question.changes.settings(question.hardware)
        texts = dict(setting.split("=") for setting in settings)
        if key in texts:
            return parse_rate(key, texts[key], rate_unit(key)) / unit
        return RATES[key][1](question.hardware) / unit

    return Axis(name, title, MULTIPLES, ask, shown)


def _count_axis(name: str, title: str, field: str, counts: tuple[float, ...]) -> Axis:
    def ask(question: Question, count: float) -> Question:
        return replace(question, workload=replace(question.workload, **{field: int(count)}))

    return Axis(name, title, counts, ask, lambda question: float(getattr(question.workload, field)))


AXES = (
    _rate_axis("link", "link to the device (GB/s)", "link", "link.bandwidth", 1e9),
    _rate_axis("compute", "matrix products (TFLOP/s)", "flops", "compute.flops", 1e12),
    _rate_axis("device memory", "device memory rate (GB/s)", "hbm", "hbm.bandwidth", 1e9),
    _count_axis("batch", "batch (sequences)", "batch_size", BATCHES),
    _count_axis("prompt", "prompt (tokens)", "prompt_tokens", PROMPTS),
)


def axes_of(names: Sequence[str]) -> list[Axis]:
    """The axes of a sweep; two make a map, which has fewer values of each."""
    found = [next(axis for axis in AXES if axis.name == name) for name in names]
    return found if len(found) == 1 else [axis.coarse for axis in found]


def grid_points(question: Question, names: Sequence[str], progress: Progress) -> pd.DataFrame:
    """The plans of all values of the named axes.

    Jobs that do not fit are left out. A row has `x`, with two axes `y`, the inputs, the makespan of
    every policy and the fraction that the LP recomputes.
    """
    rows: list[dict[str, object]] = []
    axes = axes_of(names)
    values = list(product(*(axis.settings for axis in axes)))
    for number, settings in enumerate(values, start=1):
        asked = question
        for axis, setting in zip(axes, settings, strict=True):
            asked = axis.ask(asked, setting)
        try:
            times = asked.times()
        except KvOverlapError:
            pass
        else:
            place = dict(zip("xy", (axis.shown(asked) for axis in axes), strict=False))
            rows.append({**place, **_row(asked, times)})
        progress(f"Planned {number} of {len(values)} points", number / len(values))
    return pd.DataFrame(rows)


def even_split_s(plan: DecodePlan, tokens: int) -> float:
    """Makespan of a plan's job in which every layer recomputes `tokens` in every step."""
    return simulate(even_split(plan, tokens), plan.hardware, ENGINE).makespan_s


def _row(question: Question, times: DecodeTimes) -> dict[str, object]:
    shown = {axis.title: axis.shown(question) for axis in AXES}
    makespans = {f"{name}_s": seconds for name, seconds in times.makespans_s.items()}
    lp_s, load_s = times.makespans_s["lp"], times.makespans_s["load-all"]
    extreme_s = min(load_s, times.makespans_s["recompute-all"])
    return {
        "model": question.whole.name,
        "machine": question.reference,
        "changes": str(question.changes),
        **shown,
        "decode steps": question.workload.gen_tokens,
        **makespans,
        "lp_of_load_all": lp_s / load_s,
        "lp_of_best_extreme": lp_s / extreme_s,
        "recomputed_frac": recomputed_frac(times.steps),
        "in_range": times.out_of_range_tasks == 0,
        "bottleneck": times.bottleneck,
    }


def recomputed_frac(steps: Sequence[StepSplit]) -> float:
    """Fraction of all past tokens of all layers that a plan recomputes."""
    recomputed = sum(sum(step.recomputed_tokens) for step in steps)
    past = sum(sum(step.layer_tokens) for step in steps)
    return recomputed / past


def without_axes(points: pd.DataFrame) -> pd.DataFrame:
    """The points without the columns `x` and `y`."""
    return points.drop(columns=["x", "y"], errors="ignore")
