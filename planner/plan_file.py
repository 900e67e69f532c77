"""What every plan has: its job, prediction and graph hash; saved as a file of its own kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from sim.engine.api import AUTO, simulate
from sim.errors import Mismatch
from sim.files import STRICT_KEYS, document_kind, naming_file, parse, read_json, write_json
from sim.graph.jobs import Workload
from sim.graph.tasks import TaskGraph
from sim.graph.timeline import Timeline
from sim.machine.availability import Availability
from sim.machine.profile import HardwareProfile
from sim.machine.provenance import Source
from sim.machine.runtime import Runtime
from sim.model.spec import ModelSpec


@dataclass(frozen=True)
class Plan(ABC):
    """A policy's choice for one job, its prediction, and all inputs of the simulation.

    Subclasses name the kind of their files: `class DecodePlan(Plan, kind="plan")`.

    Args:
        baselines: simulated makespan of each policy.
        source: weakest source of any task's time.
        out_of_range_tasks: tasks whose time was extrapolated beyond what the profile holds.
        graph_sha256: hash of the graph that was simulated; a device runs no other.
        runtime: the serving runtime that does the job; None for kvoverlap's own executor. The
            machine is then as the runtime drives it.
    """

    __pydantic_config__ = STRICT_KEYS
    kind: ClassVar[str]
    kinds: ClassVar[dict[str, type[Any]]] = {}
    """Subclasses by kind."""

    remedy: ClassVar[str]
    """What to do with an edited plan."""

    policy: str
    model: ModelSpec
    hardware: HardwareProfile
    workload: Workload
    baselines: dict[str, float]
    source: Source
    out_of_range_tasks: int
    graph_sha256: str

    if TYPE_CHECKING:  # A subclass has each as a field or as a property.

        @property
        @abstractmethod
        def makespan_s(self) -> float: ...

        @property
        @abstractmethod
        def runtime(self) -> Runtime | None: ...

        @property
        @abstractmethod
        def availability(self) -> Availability: ...

    def __init_subclass__(cls, kind: str) -> None:
        cls.kind = kind
        Plan.kinds[kind] = cls

    @property
    def tier(self) -> str | None:
        """The tier of a restore's cached prefix; None for a decode."""
        return None

    @abstractmethod
    def lower(self) -> TaskGraph:
        """The graph that realises this plan."""

    def simulated_graph(self) -> TaskGraph:
        """The graph, provided it is the one whose simulation this plan carries.

        Raises:
            Mismatch: the plan was edited after it was simulated.
        """
        graph = self.lower()
        if graph.sha256 != self.graph_sha256:
            raise Mismatch(
                f"the plan gives graph {graph.sha256[:12]} but its simulation was of "
                f"{self.graph_sha256[:12]}: it was edited; {self.remedy}"
            )
        return graph

    def simulate(self, engine: str = AUTO, hardware: HardwareProfile | None = None) -> Timeline:
        """The predicted timeline under the plan's availability.

        Args:
            engine: as in `sim.simulate`.
            hardware: by default the plan's.

        Raises:
            Mismatch: the plan was edited after it was simulated.
        """
        graph = self.simulated_graph()
        return simulate(graph, hardware or self.hardware, engine, self.availability)

    def token_counts(self, timeline: Timeline) -> dict[str, int]:  # noqa: ARG002
        """Tokens of a restore computed, projected and loaded in a run; empty for a decode."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        content = {**asdict(self), "hardware": self.hardware.to_dict()}
        if content["runtime"] is None:
            del content["runtime"]
        return content

    def answer(self) -> dict[str, Any]:
        """The plan as `--json` prints it: model and machine by name."""
        answer = {**self.to_dict(), "model": self.model.name, "hardware": self.hardware.name}
        if self.runtime is not None:
            answer["runtime"] = self.runtime.name
        return answer

    def save(self, path: Path | str) -> None:
        write_json(path, self.kind, self.to_dict())

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a plan file: of any kind by `Plan.load`, of its own kind by that of a subclass.

        Raises:
            BadFile: unreadable, of another kind, or with an unknown, absent or invalid key.
        """
        kind: type[Self] = cls
        if cls is Plan:
            kind = cls.kinds.get(document_kind(path) or "", cls.kinds["plan"])
        with naming_file(str(path)):
            plan = parse(kind, read_json(path, kind.kind), str(path))
            plan.check()
        return plan

    def check(self) -> None:  # noqa: B027
        """Refuse content of a file that contradicts itself."""
