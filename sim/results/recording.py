"""A timeline on disk: predicted or measured, with its graph, machine and environment."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Literal

from sim.errors import BadFile, BadInput
from sim.files import STRICT_KEYS, naming_file, parse, read_json, write_json
from sim.graph.tasks import TaskGraph
from sim.graph.timeline import Timeline
from sim.machine.profile import HardwareProfile


@dataclass(frozen=True, slots=True)
class _Times:
    """One run in the file; the graph gives the order of the tasks."""

    __pydantic_config__ = STRICT_KEYS

    start_s: tuple[float, ...]
    end_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Content:
    """The file."""

    __pydantic_config__ = STRICT_KEYS

    source: Literal["predicted", "measured"]
    graph_sha256: str
    hardware: HardwareProfile
    environment: dict[str, Any]
    checks: dict[str, Any]
    graph: TaskGraph
    runs: tuple[_Times, ...]


@dataclass(frozen=True)
class Recording:
    """One or more timelines of one graph from one source.

    Args:
        source: `predicted` by the simulator or `measured` on a device.
        hardware: the profile the prediction was made with, or the plan that ran was made for.
        runs: repeats; a prediction has one.
        environment: machine and library versions of a measurement.
        checks: numerical checks made during the measurement.
    """

    source: Literal["predicted", "measured"]
    hardware: HardwareProfile
    runs: tuple[Timeline, ...]
    environment: dict[str, Any] = field(default_factory=dict)
    checks: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.runs or any(run.makespan_s <= 0 for run in self.runs):
            raise BadInput("a recording needs at least one run, and every run must take time.")
        if len({run.graph.sha256 for run in self.runs}) != 1:
            raise BadInput("the runs of a recording must all be of one graph.")

    @property
    def graph(self) -> TaskGraph:
        return self.runs[0].graph

    @property
    def makespan_s(self) -> float:
        """Median over the runs."""
        return median(run.makespan_s for run in self.runs)

    @property
    def spread_frac(self) -> float:
        """Interquartile range / median over the runs; 0 for a single run."""
        if len(self.runs) == 1:
            return 0.0
        low, _, high = quantiles((run.makespan_s for run in self.runs), n=4, method="inclusive")
        return (high - low) / self.makespan_s

    @property
    def typical(self) -> Timeline:
        """The run whose makespan is nearest to the median."""
        middle = self.makespan_s
        return min(self.runs, key=lambda run: abs(run.makespan_s - middle))

    def save(self, path: Path | str) -> None:
        content = {
            "source": self.source,
            "graph_sha256": self.graph.sha256,
            "hardware": self.hardware.to_dict(),
            "environment": self.environment,
            "checks": self.checks,
            "graph": self.graph.to_dict(),
            "runs": [{"start_s": run.start_s, "end_s": run.end_s} for run in self.runs],
        }
        write_json(path, "timeline", content)

    @classmethod
    def load(cls, path: Path | str) -> Recording:
        """Read a timeline file.

        Raises:
            BadFile: unreadable, of another kind, or inconsistent with its own graph hash.
        """
        content = parse(_Content, read_json(path, "timeline"), str(path))
        with naming_file(str(path)):
            if content.graph.sha256 != content.graph_sha256:
                raise BadFile(f"{path}: the graph does not match its graph_sha256; it was edited.")
            return cls(
                source=content.source,
                hardware=content.hardware,
                runs=tuple(Timeline(content.graph, run.start_s, run.end_s) for run in content.runs),
                environment=content.environment,
                checks=content.checks,
            )
