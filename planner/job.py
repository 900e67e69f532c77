"""What a plan is made from: a job, and the options of its plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from sim.engine.api import AUTO
from sim.errors import BadInput
from sim.files import set_fields
from sim.graph.jobs import KV, Workload
from sim.machine.availability import ALWAYS, Availability
from sim.machine.profile import HardwareProfile
from sim.machine.runtime import Runtime
from sim.model.spec import ModelSpec

W = TypeVar("W", bound=Workload)


@dataclass(frozen=True, slots=True)
class Job(Generic[W]):
    """A workload of one model on one machine."""

    model: ModelSpec
    hardware: HardwareProfile
    workload: W


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """How a job is planned.

    Args:
        policy: None for `lp` of a decode and `auto` of a restore.
        schedule: of a decode, `row`, `column`, or `auto` for the one with more tokens a second.
        gpus: of a decode, identical jobs that share the machine's uplinks, each on one GPU or on as
            many as share the model (`ModelSpec.tensor_parallel`).
        keep: of a decode, whether policy `lp` may keep K, V, X and weights in free device memory.
        engine: which one simulates, as in `sim.simulate`.
        availability: of a restore, available fraction of each lane over time.
        foresight: of a restore, whether the policies know the availability in advance; otherwise
            they plan for the whole machine.
        cached_data: of a restore, `kv`, or `kv+x` where X is stored too and can be projected.
        runtime: the serving runtime that does the job; None for kvoverlap's own executor.
        resident_layers: of a decode, layers whose K and V a runtime keeps in GPU memory.
    """

    policy: str | None = None
    schedule: str = "row"
    gpus: int = 1
    keep: bool = False
    engine: str = AUTO
    availability: Availability = ALWAYS
    foresight: bool = False
    cached_data: str = KV
    runtime: Runtime | None = None
    resident_layers: int | None = None

    def refuse(self, *names: str) -> None:
        """Raise BadInput if one of these options is set, which do not apply to the job."""
        for name in names:
            if name in set_fields(self):
                raise BadInput(f"{name}(={getattr(self, name)}) does not apply here; leave it out.")


DEFAULTS = PlanOptions()
