"""Run a decode graph and check its numbers."""

from __future__ import annotations

from dataclasses import replace

from tiny import simulated

from hw import DecodeExecutor, prefilled_caches, random_weights, resident_decode
from hw.backends import Backend
from sim import TaskGraph
from sim.lanes import HOST


def run_graph(backend: Backend, graph: TaskGraph) -> None:
    """Decode the prompts of a graph as it says, and check the numbers."""
    weights = random_weights(graph.model, 0, backend.device)
    pageable = (0, HOST) in graph.lanes
    caches = prefilled_caches(weights, graph.workload, 1, backend, pageable)
    exact = replace(graph.workload, kv_bits=None)
    originals = caches
    if graph.workload.kv_bits is not None:
        originals = prefilled_caches(weights, exact, 1, backend)
    references = [resident_decode(weights, cache, exact) for cache in originals]
    executor = DecodeExecutor(simulated(graph), weights, caches, references, backend)
    timeline = executor.run()
    assert executor.check()["tokens_equal"] is True
    assert timeline.makespan_s > 0
    assert all(tokens.device.type == "cpu" for tokens in executor.tokens)
