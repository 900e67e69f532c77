"""The declared accesses against the bytes that the executors touch, on real tensors."""

from __future__ import annotations

import pytest
from race_graphs import ALL_WINDOWED, DECODE_GRAPHS, WINDOWED
from run_restores import POLICIES, RestoreCase, policy_graphs, request
from tiny import CPU, OPT, simulated
from touching import TouchedMemory, conflicting, declared_conflicts

from hw import DecodeExecutor, Executor, HostMemory, prefilled_caches, random_weights
from hw.backends.cpu import CpuBackend
from hw.tiers.tiers import Lost
from sim.lanes import HOST


class WatchingBackend(CpuBackend):
    """Notes which memory each piece of work touches, in the order of issue."""

    touched: tuple[TouchedMemory, ...] = ()

    def launch(self, lane, work, *rest, **more):
        memory = TouchedMemory()
        self.touched += (memory,)

        def watched():
            with memory:
                return work()

        return super().launch(lane, watched, *rest, **more)


@pytest.fixture
def watching():
    with WatchingBackend(None) as backend:
        yield backend


def conflicts_of_a_run(executor: Executor, backend: WatchingBackend) -> set:
    """Pairs of task ids that touched the same bytes, one writing; all of them are declared."""
    tasks = executor.graph.tasks
    backend.touched = ()
    executor.run()
    assert len(backend.touched) == len(tasks)
    declared, real = (
        {(tasks[one].id, tasks[other].id) for one, other in pairs}
        for pairs in (
            declared_conflicts(executor.graph),
            conflicting(memory.touches for memory in backend.touched),
        )
    )
    assert real - declared == set()
    return real


@pytest.mark.parametrize("name", DECODE_GRAPHS)
def test_a_decode_conflicts_exactly_where_it_is_declared(watching, name):
    graph = DECODE_GRAPHS[name]
    weights = random_weights(graph.model, 0, CPU)
    pageable = (0, HOST) in graph.lanes
    caches = prefilled_caches(weights, graph.workload, 1, watching, pageable)
    executor = DecodeExecutor(simulated(graph), weights, caches, (), watching)
    assert len(conflicts_of_a_run(executor, watching)) == len(declared_conflicts(graph))


class LossyMemory(HostMemory):
    """Host memory behind a staging buffer, without what it should hold of layer 1."""

    def bring(self, *what):
        pieces, _ = super().bring(*what)
        lost = [Lost(one.layer, one.start, one.stop, "test") for one in pieces if one.layer == 1]
        return [piece for piece in pieces if piece.layer != 1], lost


@pytest.mark.parametrize("tier", ["dram", "net", "lossy"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("model", [OPT, WINDOWED, ALL_WINDOWED], ids=lambda model: model.name)
def test_a_restore_conflicts_only_where_it_is_declared(watching, model, policy, tier):
    job = request(tier="dram" if tier == "dram" else "net")
    case = RestoreCase.of(watching, model, job)
    lossy = LossyMemory(case.reference.cache) if tier == "lossy" else None
    executor = case.executor(policy_graphs(model, job)[policy], lossy)
    assert conflicts_of_a_run(executor, watching)
    if lossy is not None and policy != "compute-only":
        assert executor.recomputed
    assert executor.check()["tokens_equal"] is True
