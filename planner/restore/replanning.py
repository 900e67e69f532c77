"""Where a running restore had better meet, now that a lane is found slower or faster than planned.

Unlike `planner.restore.adapting`, which simulates what such changes would come to, this decides
while the restore runs: from what is done, what is running, and the rates measured so far.
"""

from __future__ import annotations

from planner.restore.adapting import MOST_POINTS, TOLERANCE_FRAC, Change
from planner.restore.lower import two_ended_graph
from sim.claims import Standing, part_of
from sim.graph import COMPUTE, Task
from sim.hardware import HardwareProfile
from sim.model_spec import ModelSpec
from sim.restore import RestoreRequest
from sim.restore_cost import RestoreCosts


class Replanner:
    """Watches the tasks of one restore; `changes` are the changes of plan it asked for.

    Rates are relative to the profile's, which is what is assumed at first.
    """

    def __init__(
        self, model: ModelSpec, hardware: HardwareProfile, request: RestoreRequest
    ) -> None:
        self.request = request
        self.changes: list[Change] = []
        self._costs = RestoreCosts(hardware, model, request)
        tasks = [task for task in two_ended_graph(model, request).tasks if task.claim]
        self._steps = [task for task in tasks if task.lane == COMPUTE]
        self._loads = [task for task in tasks if task.lane != COMPUTE]
        self._rates: dict[str, float] = {}

    def after(self, task: Task, seconds: float, standing: Standing) -> int | None:
        """Where to meet, if `task` took so long that the plan is stale; else None.

        Args:
            task: what was done, in the tokens that it did; of too few to tell a rate nothing
                follows.
        """
        unit = min(self.request.io_chunk_tokens, self.request.step_tokens)
        if task.n_tokens < unit:
            return None
        rate_frac = self._costs.estimate(task).seconds / seconds
        if abs(rate_frac / self._rates.get(task.lane, 1.0) - 1.0) <= TOLERANCE_FRAC:
            return None
        self._rates[task.lane] = rate_frac
        computed, loaded = standing.computed_to, standing.loaded_from
        coarse = unit * max(1, (loaded - computed) // unit // MOST_POINTS)
        points = [*range(computed, loaded, coarse), loaded]
        best: int = min(points, key=lambda meeting: self._left_s(meeting, standing))
        self.changes.append(Change(standing.now_s, task.lane, rate_frac, best))
        return best

    def _left_s(self, meeting: int, standing: Standing) -> float:
        """Seconds until both ends have come to a meeting point."""
        ready = {
            task.lane: max(0.0, since_s + self._seconds(task) - standing.now_s)
            for task, since_s in standing.running
        }
        computing_s = ready.get(COMPUTE, 0.0) + sum(
            self._seconds(part_of(step, (step.token_start, min(step.token_stop, meeting))))
            for step in self._steps
            if standing.computed_to <= step.token_start < meeting
        )
        left = [
            part_of(load, (max(load.token_start, meeting), load.token_stop))
            for load in self._loads
            if meeting < load.token_stop <= standing.loaded_from
        ]
        lanes = {load.lane for load in self._loads}
        busy_s = {
            lane: ready.get(lane, 0.0)
            + sum(self._seconds(load) for load in left if load.lane == lane)
            for lane in lanes
        }
        slowest = max(busy_s, key=busy_s.__getitem__)
        last_s = sum(self._seconds(load) for load in left[-len(lanes) :] if load.lane != slowest)
        return max(computing_s, busy_s[slowest] + last_s)

    def _seconds(self, task: Task) -> float:
        seconds: float = self._costs.estimate(task).seconds / self._rates.get(task.lane, 1.0)
        return seconds
