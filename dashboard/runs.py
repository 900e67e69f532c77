"""Run folders: where they are, which cases they hold, and one case ready to be shown.

A run folder is what `kvoverlap validate --out FOLDER` writes: `profile.json`, `report.json`, and
for every case a plan and the timelines measured of it. Predictions are not stored: the plan is
simulated again, so what is shown is what this version of the simulator says.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from planner import Plan
from sim.catalog import DATA
from sim.compare import Comparison, compare
from sim.engine import simulate
from sim.errors import BadFile
from sim.recording import Recording
from sim.timeline import Timeline
from sim.trace import trace_document

CASES = "cases"
PLAN = "plan.json"
MEASURED = "measured.json.gz"
REPORT = "report.json"

OWN_RUNS = Path("runs")
"""Of the folder in which the dashboard was started."""

SHIPPED_RUNS = DATA / "recordings"


@dataclass(frozen=True, slots=True)
class Run:
    """One run folder; `label` names it in a menu and in a link."""

    label: str
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether its report, which is written last, is there."""
        return (self.folder / REPORT).is_file()

    def case_names(self) -> list[str]:
        """The cases it holds, by name.

        Raises:
            BadFile: there are none, or the folder cannot be listed.
        """
        folder = self.folder / CASES
        try:
            names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        except OSError as error:
            raise BadFile(f"{folder} cannot be read ({error.strerror}).") from None
        if not names:
            raise BadFile(f"{folder} is empty; run kvoverlap validate --out {self.folder} again.")
        return names

    def case_folder(self, case: str) -> Path:
        return self.folder / CASES / case


@dataclass(frozen=True)
class Case:
    """One plan with its prediction, its measurement and how far they are apart."""

    plan: Plan
    predicted: Recording
    measured: Recording
    comparison: Comparison


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
    """Changes whenever the files of a case do; 0 stands for an absent file."""
    files = (folder / PLAN, folder / MEASURED)
    return tuple(file.stat().st_mtime_ns if file.is_file() else 0 for file in files)


def load_case(folder: Path) -> Case:
    """Read one case and predict it anew.

    Raises:
        BadFile: the plan or the measurement is absent, unreadable or inconsistent.
        Mismatch: the plan was edited, or what was measured is not this plan.
    """
    plan = Plan.load(folder / PLAN)
    measured = Recording.load(folder / MEASURED)
    timeline = simulate(plan.simulated_graph(), plan.hardware)
    predicted = Recording("predicted", plan.hardware, (timeline,))
    return Case(plan, predicted, measured, compare(predicted, measured))


def trace_bytes(timeline: Timeline, title: str) -> bytes:
    """The timeline as a gzipped Chrome trace, as `kvoverlap simulate --trace` writes it."""
    return gzip.compress(json.dumps(trace_document(timeline, title)).encode(), mtime=0)
