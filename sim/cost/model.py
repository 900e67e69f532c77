"""Predicted time of each task of a job on a machine, with its source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from sim.cost.estimate import Estimate
from sim.cost.operations import OperationCosts
from sim.cost.restore import RestoreCosts
from sim.graph.jobs import RestoreRequest, Workload
from sim.graph.tasks import Task, attended_tokens
from sim.lanes import COMPUTE, HOST
from sim.machine.links import Dispatch
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec

CostKey = tuple[str, int, int, int, int, int]
"""(op, tokens, context, layers, first layer or window, kind of layer) of a compute task, or (lane,
bytes, tokens where it copies several layers, layers, 0, 0) of a copy."""


def cost_key(task: Task, model: ModelSpec) -> CostKey:
    """Tasks of one graph with the same key take the same time on any machine, to launch too."""
    layers = task.layers
    if task.lane != COMPUTE:
        return task.lane, task.bytes, task.n_tokens if layers > 1 else 0, layers, 0, 0
    kind = model.kind_of[task.layer]  # of work outside the layers, that of the last
    if task.op == "prefill":
        which = task.layer if layers > 1 else model.window(task.layer) or 0
        return task.op, task.n_tokens, task.token_start, layers, which, kind
    context = attended_tokens(task, model) if task.op == "attention" else 0
    return task.op, task.n_tokens, context, layers, 0, kind


class TaskCosts(Protocol):
    """Times of the tasks of one kind of job; `CostModel` documents the members."""

    operations: OperationCosts
    dispatch: Dispatch

    def estimate(self, task: Task) -> Estimate: ...
    def launch_s(self, task: Task) -> float: ...
    def earliest_s(self, task: Task) -> float: ...


class DecodeCosts:
    """Times of the tasks of one decode job."""

    def __init__(self, hardware: HardwareProfile, model: ModelSpec, workload: Workload) -> None:
        self.operations = OperationCosts(hardware, model, workload)
        self.dispatch = hardware.dispatch

    def estimate(self, task: Task) -> Estimate:
        what, amount, context, *_, kind = cost_key(task, self.operations.model)
        if task.lane == COMPUTE:
            return self.operations.compute(what, amount, context, kind)
        return self.operations.copy(what, amount)

    def launch_s(self, task: Task) -> float:
        cost = self.dispatch
        if task.lane == HOST:
            return cost.task_s
        if task.lane != COMPUTE:
            return cost.task_s + cost.copy_s
        kind = self.operations.model.kind_of[task.layer]
        return cost.task_s + cost.kernel_s * self.operations.launches(task.op, kind)

    def earliest_s(self, task: Task) -> float:  # noqa: ARG002
        return self.dispatch.start_s


TASK_COSTS: dict[str, Callable[[HardwareProfile, ModelSpec, Any], TaskCosts]] = {
    Workload.kind: DecodeCosts,
    RestoreRequest.kind: RestoreCosts,
}
"""The task times of each kind of job."""


class CostModel:
    """Times of the tasks of one job, decode or restore, on one machine."""

    def __init__(
        self, hardware: HardwareProfile, model: ModelSpec, workload: Workload | RestoreRequest
    ) -> None:
        self.hardware = hardware
        self.model = model
        self.workload = workload
        self._tasks = TASK_COSTS[workload.kind](hardware, model, workload)
        self._computed: dict[CostKey, Estimate] = {}

    @property
    def operations(self) -> OperationCosts:
        """Times of operations and copies of any size."""
        return self._tasks.operations

    @property
    def dispatch(self) -> Dispatch:
        """Cost of handing the job's work to the device."""
        return self._tasks.dispatch

    def estimate(self, task: Task) -> Estimate:
        """Time of `task` on its lane while all other lanes are idle."""
        if task.lane != COMPUTE:
            return self._tasks.estimate(task)
        key = cost_key(task, self.model)
        if key not in self._computed:
            self._computed[key] = self._tasks.estimate(task)
        return self._computed[key]

    def launch_s(self, task: Task) -> float:
        """Host time to hand `task` to the device."""
        return self._tasks.launch_s(task)

    def earliest_s(self, task: Task) -> float:
        """Earliest start of `task` in seconds, even if its lane is idle."""
        return self._tasks.earliest_s(task)
