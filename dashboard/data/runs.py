"""Run folders, their cases, and one case with its prediction.

`kvoverlap validate --out FOLDER` writes a run folder, `kvoverlap record` a recording. Both hold
`profile.json`, and the measured timelines and the policy of every case. Predictions are not stored:
the recorded graph is simulated again by this version.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from planner import DecodePlan, Job, Plan, PlanOptions, make_plan, plan_split
from planner.restore import RESTORE_POLICIES
from sim.catalog import DATA
from sim.cost.estimate import Estimate
from sim.cost.model import CostModel
from sim.engine.api import simulate
from sim.errors import BadFile, BadInput
from sim.files import read_text
from sim.graph.jobs import RestoreRequest
from sim.graph.tasks import TaskGraph
from sim.machine.availability import ALWAYS, Availability
from sim.machine.profile import HardwareProfile
from sim.results.accuracy import CASE, CASES, MEASURED, Accuracy, RecordedCase, assess
from sim.results.compare import Comparison, compare
from sim.results.recording import Recording

PLAN = "plan.json"
PROFILE = "profile.json"
REPORT = "report.json"
RECORDING = "recording.json"

OWN_RUNS = Path("runs")
"""Relative to the folder in which the dashboard was started."""

SHIPPED_RUNS = DATA / "recordings"

UNKNOWN_POLICY = "unknown"
POLICY_ORDER = (
    *("lp", "kvpr", "load-all", "recompute-all"),
    *(policy for policy in reversed(RESTORE_POLICIES) if policy not in ("lp", "auto")),
)
"""Order of the cases of one shape in a menu."""

RESTORE_MARK = '"schedule": "restore"'
"""Text that only the file of a measured restore contains."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run folder; `label` names it in a menu and in a link."""

    label: str
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether the file that is written last exists."""
        return any((self.folder / name).is_file() for name in (REPORT, RECORDING))

    def case_names(self) -> list[str]:
        """Names of its cases, sorted by shape, the lp plan of each shape first.

        Raises:
            BadFile: there are none, or the folder cannot be listed.
        """
        folder = self.folder / CASES
        try:
            names = [entry.name for entry in folder.iterdir() if entry.is_dir()]
        except OSError as error:
            raise BadFile(f"{folder} cannot be read ({error.strerror}).") from None
        if not names:
            raise BadFile(f"{folder} is empty; run kvoverlap validate --out {self.folder} again.")
        return sorted(names, key=_menu_place)

    def case_folder(self, case: str) -> Path:
        return self.folder / CASES / case


def _menu_place(name: str) -> tuple[str, int, str]:
    for rank, policy in enumerate(POLICY_ORDER):
        if name.endswith(f"-{policy}"):
            return name.removesuffix(f"-{policy}"), rank, name
    return re.sub(r"-[^-]*$", "", name), len(POLICY_ORDER), name


@dataclass(frozen=True)
class Case:
    """One measured plan with its prediction and their comparison.

    Args:
        policy: policy of the plan.
        tolerance_frac: largest allowed error of the makespan, or None.
        availability: available part of each lane over time.
    """

    policy: str
    tolerance_frac: float | None
    predicted: Recording
    measured: Recording
    availability: Availability = ALWAYS

    @cached_property
    def comparison(self) -> Comparison:
        """The errors; not needed to draw the lanes, which are drawn first."""
        return compare(self.predicted, self.measured)

    @property
    def graph(self) -> TaskGraph:
        return self.measured.graph

    @property
    def restores(self) -> bool:
        """Whether a cached prefix was restored, rather than tokens decoded."""
        return self.graph.workload.kind == RestoreRequest.kind

    @cached_property
    def estimates(self) -> list[Estimate]:
        """Of every task alone, in graph order."""
        costs = CostModel(self.measured.hardware, self.graph.model, self.graph.workload)
        return [costs.estimate(task) for task in self.graph.tasks]


def find_runs(own: Path, shipped: Path) -> list[Run]:
    """The run folders in `own`, newest first, then those in `shipped` by name."""
    mine = sorted(_run_folders(own), key=lambda folder: folder.stat().st_mtime, reverse=True)
    return [
        *(Run(folder.name, folder) for folder in mine),
        *(Run(f"{folder.name} (shipped)", folder) for folder in sorted(_run_folders(shipped))),
    ]


def _run_folders(root: Path) -> Iterable[Path]:
    return [cases.parent for cases in root.glob(f"*/{CASES}") if cases.is_dir()]


def case_stamp(folder: Path) -> tuple[int, ...]:
    """Modification times of the files of a case, 0 for an absent file."""
    files = (folder / CASE, folder / PLAN, folder / MEASURED)
    return tuple(file.stat().st_mtime_ns if file.is_file() else 0 for file in files)


def run_stamp(run: Run) -> tuple[int, ...]:
    """Modification times of the files of all cases of a run."""
    folders = sorted(run.folder.glob(f"{CASES}/*"))
    return tuple(part for folder in folders for part in case_stamp(folder))


def load_case(folder: Path) -> Case:
    """One case with its recorded graph simulated again.

    Raises:
        BadFile: the measurement or the file with its policy is unreadable or inconsistent.
    """
    measured = Recording.load(folder / MEASURED)
    policy, tolerance_frac, availability = UNKNOWN_POLICY, None, ALWAYS
    known = (folder / CASE).is_file()
    restored = measured.graph.workload.kind == RestoreRequest.kind
    if (folder / PLAN).is_file() and (restored or not known):
        plan = Plan.load(folder / PLAN)
        policy, availability = plan.policy, plan.availability
    if known:
        case = RecordedCase.load(folder)
        policy, tolerance_frac = case.policy, case.tolerance_frac
    return case_of(measured, policy, tolerance_frac, availability)


def assess_from(folder: Path, root: Path) -> Accuracy:
    """Errors of every case under `root`, a path from `folder`, where this process then works.

    Raises:
        BadFile: there is no case.
    """
    os.chdir(folder)
    return assess(root)


def is_restore(folder: Path) -> bool:
    """Whether a case measured a restore, by a search in the text of its file.

    Raises:
        BadFile: the measurement is unreadable.
    """
    return RESTORE_MARK in read_text(folder / MEASURED)


def case_of(
    measured: Recording,
    policy: str = UNKNOWN_POLICY,
    tolerance_frac: float | None = None,
    availability: Availability = ALWAYS,
) -> Case:
    """Predict what was measured.

    Raises:
        BadInput: it is a prediction.
    """
    if measured.source != "measured":
        raise BadInput(
            "this timeline was predicted, not measured; kvoverlap run -o writes a measured one."
        )
    timeline = simulate(measured.graph, measured.hardware, availability=availability)
    predicted = Recording("predicted", measured.hardware, (timeline,))
    return Case(policy, tolerance_frac, predicted, measured, availability)


def split_of(graph: TaskGraph) -> list[list[int]]:
    """Recomputed tokens `[step][layer]` of a graph."""
    split = [[0] * graph.model.n_layers for _ in range(graph.workload.gen_tokens)]
    for task in graph.tasks:
        if task.op == "recompute":
            split[task.step][task.layer] = task.n_tokens
    return split


def plan_of(graph: TaskGraph, hardware: HardwareProfile, policy: str) -> DecodePlan:
    """The plan of a recorded graph, with its bound, baselines and bottleneck computed again.

    Raises:
        KvOverlapError: this version cannot plan such a graph.
    """
    if graph.workload.kind == RestoreRequest.kind:
        raise BadInput("this is a restore: the page Restore shows it.")
    job = Job(graph.model, hardware, graph.workload)
    gpus = 1 + max(task.device for task in graph.tasks)
    options = PlanOptions(schedule=graph.schedule, gpus=gpus)
    if policy != UNKNOWN_POLICY:
        plan = make_plan(job, replace(options, policy=policy))
        if plan.graph_sha256 == graph.sha256:
            return plan
    if gpus > 1:
        raise BadInput(f"this version makes another plan for {gpus} GPUs than the recorded one.")
    made = plan_split(job, split_of(graph), options=options)
    return replace(made, policy=f"{policy}, as recorded")
