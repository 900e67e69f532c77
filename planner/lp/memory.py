"""Memory rows of the LP: device and host bytes of everything that the plan may choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, TypeAlias

from sim.graph.jobs import Workload
from sim.graph.memory import check_fits, footprint, layer_rows
from sim.graph.tasks import TaskGraph
from sim.machine.profile import HardwareProfile, Memory
from sim.model.kv_format import host_row_bytes
from sim.model.spec import ModelSpec

if TYPE_CHECKING:
    import pulp

Cell = tuple[int, int]
"""(step, layer)."""

Terms: TypeAlias = "list[tuple[pulp.LpVariable, float]]"

DEVICE_ROW, HOST_ROW = "device_memory", "host_memory"


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """Memory available to the choices of a plan, and the bytes that each choice needs.

    Args:
        free_bytes: device bytes left after weights, KV slots and workspace.
        host_free_bytes: host bytes left after staging buffers, for caches and weights.
        kv_row_bytes, host_kv_row_bytes: of one row of each layer, over all sequences of all
            batches.
        x_token_bytes: of one token position of one layer, over all sequences of all batches.
        staged_x_token_bytes: of one token position of X over all staging slots, each as long as
            the longest load of X.
        layer_weight_bytes: of a layer whose weights the schedule moves.
    """

    free_bytes: float
    host_free_bytes: float
    kv_row_bytes: tuple[int, ...]
    x_token_bytes: int
    host_kv_row_bytes: tuple[int, ...]
    staged_x_token_bytes: int
    layer_weight_bytes: int

    @classmethod
    def left_by(cls, graph: TaskGraph, memory: Memory) -> MemoryBudget:
        """Memory left by a graph that stages no X, without its cache on the host."""
        model, job = graph.model, graph.workload
        need, sequences = footprint(graph), job.batch_size * job.n_batches
        staging_slots = len({task.slot for task in graph.tasks if task.op == "store_kv"})
        return cls(
            memory.job_device_bytes - need.device_bytes,
            memory.host_bytes - need.host_staging_bytes,
            tuple(sequences * model.row_bytes(layer) for layer in range(model.n_layers)),
            sequences * model.x_token_bytes,
            tuple(
                sequences * host_row_bytes(model, job.kv_bits, layer)
                for layer in range(model.n_layers)
            ),
            staging_slots * job.batch_size * model.x_token_bytes,
            model.layer_weight_bytes,
        )

    @property
    def unit_bytes(self) -> int:
        """Bytes in which the rows of the LP count device memory."""
        return max(1, *self.kv_row_bytes)

    @property
    def max_staged_tokens(self) -> float:
        """Whole tokens of the longest load of X that device memory can hold."""
        if self.staged_x_token_bytes == 0:
            return inf
        return max(0.0, self.free_bytes) // self.staged_x_token_bytes

    def limits_host(self, model: ModelSpec, job: Workload, moved_layers: int) -> bool:
        """Whether host memory cannot hold K, V and X of all tokens and the moved weights."""
        cache_bytes = 0
        for layer, row_bytes in enumerate(self.host_kv_row_bytes):
            rows = layer_rows(model, job, layer)
            cache_bytes += rows * (row_bytes + self.x_token_bytes * model.splits(layer))
        return cache_bytes + moved_layers * self.layer_weight_bytes > self.host_free_bytes


def check_any_fits(loaded: TaskGraph, recomputed: TaskGraph, hardware: HardwareProfile) -> None:
    """Refuse a job, before the search, that has no split within memory.

    The device stages least if everything is loaded. The host holds least if everything is
    loaded or everything is recomputed.

    Raises:
        DoesNotFit: as `sim.graph.memory.check_fits`.
    """
    memory, where = hardware.memory, hardware.name
    check_fits(loaded, memory.device_bytes, inf, where, reserve_bytes=memory.device_reserve_bytes)
    least = min((loaded, recomputed), key=lambda graph: footprint(graph).host_bytes)
    check_fits(least, inf, memory.host_bytes, where)


@dataclass(frozen=True)
class ResidentVariables:
    """Variables for resident data; empty if none may stay on the device.

    Args:
        kv, x: tokens of each layer with resident K and V, or X.
        weights: resident part of each layer's weights, at most 1.
    """

    kv: dict[int, pulp.LpVariable] = field(default_factory=dict)
    x: dict[int, pulp.LpVariable] = field(default_factory=dict)
    weights: dict[int, pulp.LpVariable] = field(default_factory=dict)


class MemoryRows:
    """Adds the rows that keep resident data, staged data and host data within memory.

    Rows that hold for every choice are left out.

    Args:
        graph: the program's.
        pasts: past tokens of each of its steps.
        tokens: how many of them each cell recomputes.
    """

    def __init__(
        self,
        problem: pulp.LpProblem,
        graph: TaskGraph,
        pasts: Sequence[int],
        tokens: Mapping[Cell, pulp.LpVariable],
        resident: ResidentVariables,
        budget: MemoryBudget,
    ) -> None:
        self._problem = problem
        self._model, self._job = graph.model, graph.workload
        self._moved_layers = len({one.layer for one in graph.tasks if one.op == "load_weights"})
        self._pasts = pasts
        self._tokens = tokens
        self._resident = resident
        self._budget = budget
        self._ranges()
        if resident.kv or budget.max_staged_tokens < max(pasts):
            self._device()
        if budget.limits_host(self._model, self._job, self._moved_layers):
            self._host()

    def _ranges(self) -> None:
        """Resident X is used in every step, and the token ranges of a layer do not overlap."""
        for (step, layer), recomputed in self._tokens.items():
            if layer in self._resident.kv:
                cell = f"s{step}_L{layer}"
                kv, x = self._resident.kv[layer], self._resident.x[layer]
                self._row(f"used_{cell}", [(recomputed, 1.0), (x, -1.0)], 0.0)
                past = self._model.layer_context(layer, self._pasts[step])
                self._row(f"range_{cell}", [(recomputed, -1.0), (kv, -1.0)], -float(past))

    def _device(self) -> None:
        budget, unit = self._budget, float(self._budget.unit_bytes)
        longest = self._problem.add_variable("staged_x_tokens", 0)
        for (step, layer), recomputed in self._tokens.items():
            own_x = [(self._resident.x[layer], 1.0)] if layer in self._resident.x else []
            terms = [(longest, 1.0), (recomputed, -1.0), *own_x]
            self._row(f"staged_s{step}_L{layer}", terms, 0.0)
        taken = [(longest, budget.staged_x_token_bytes / unit)]
        taken += [
            (kv, budget.kv_row_bytes[layer] / unit) for layer, kv in self._resident.kv.items()
        ]
        taken += [(x, budget.x_token_bytes / unit) for x in self._resident.x.values()]
        taken += [
            (part, budget.layer_weight_bytes / unit) for part in self._resident.weights.values()
        ]
        self._fits(DEVICE_ROW, taken, max(0.0, budget.free_bytes) / unit)

    def _host(self) -> None:
        """Host bytes: K and V that some step loads, X that some step recomputes, and weights.

        A quantised cache also needs X of its resident tokens, from which K and V are projected.
        """
        model, job, budget = self._model, self._job, self._budget
        row_bytes, unit = budget.host_kv_row_bytes, float(max(1, *budget.host_kv_row_bytes))
        add = self._problem.add_variable
        layers = [layer for layer in range(model.n_layers) if model.splits(layer)]
        without_kv = {layer: add(f"host_without_kv_L{layer}", 0) for layer in layers}
        with_x = {layer: add(f"host_with_x_L{layer}", 0) for layer in layers}
        for (step, layer), recomputed in self._tokens.items():
            if layer not in without_kv:
                continue
            cell = f"s{step}_L{layer}"
            self._row(f"host_kv_{cell}", [(recomputed, 1.0), (without_kv[layer], -1.0)], 0.0)
            pasts = (job.prompt_tokens, self._pasts[step])
            firsts = [model.first_token(layer, at) for at in pasts]
            terms = [(with_x[layer], 1.0), (recomputed, -1.0)]
            if job.kv_bits is not None and layer in self._resident.kv:
                terms.append((self._resident.kv[layer], -1.0))
            self._row(f"host_x_{cell}", terms, float(firsts[1] - firsts[0]))
        held = self._moved_layers * budget.layer_weight_bytes / unit
        held += sum(
            layer_rows(model, job, layer) * one / unit for layer, one in enumerate(row_bytes)
        )
        taken = [(variable, -row_bytes[layer] / unit) for layer, variable in without_kv.items()]
        taken += [(variable, budget.x_token_bytes / unit) for variable in with_x.values()]
        taken += [
            (part, -budget.layer_weight_bytes / unit) for part in self._resident.weights.values()
        ]
        self._fits(HOST_ROW, taken, budget.host_free_bytes / unit - held)

    def _fits(self, name: str, taken: Terms, free: float) -> None:
        self._row(name, [(variable, -factor) for variable, factor in taken], -free)

    def _row(self, name: str, terms: Terms, least: float) -> None:
        from pulp import LpAffineExpression

        self._problem.addConstraint(LpAffineExpression(terms) >= least, name)
