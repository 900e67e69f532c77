"""Restores of tiny models, with everything needed to run them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tiny import OPT, simulated

from hw import (
    CacheFile,
    FarMemory,
    HostMemory,
    PrefixKey,
    ResidentPrefill,
    RestoreExecutor,
    Tier,
    prompt_ids,
    random_weights,
    resident_prefill,
    write_cache_file,
)
from hw.backends import Backend
from hw.model.weights import Weights
from planner.restore.lower import compute_only_graph, split_graph, two_ended_graph
from planner.restore.split import RestoreSplit
from sim import ModelSpec, TaskGraph
from sim.graph.jobs import RestoreRequest

CHUNK, IO_CHUNK = 8, 4


def request(prompt: int = 45, cached: int = 41, **changes) -> RestoreRequest:
    usual = {"cached_tokens": cached, "chunk_tokens": CHUNK, "io_chunk_tokens": IO_CHUNK}
    return RestoreRequest(prompt_tokens=prompt, **{**usual, **changes})


@cache
def policy_graphs(model: ModelSpec, job: RestoreRequest) -> dict[str, TaskGraph]:
    """A graph of every form: no loads, loads only, claims, one split, layers, and all at once."""
    cached, layers = job.cached_tokens, model.n_layers
    needed = [cached - job.first_loaded(model, layer) for layer in range(layers)]
    computed = (cached // 2 + 4, cached // 2) + (5,) * (layers - 2)
    left = [min(one, cached - count) for one, count in zip(needed, computed, strict=True)]
    splits = {
        "load-only": RestoreSplit.even(model, 0),
        "lp": RestoreSplit.even(model, cached // 2 - 1),
        "layer-wise": RestoreSplit(
            (cached,) + (0,) * (layers - 1), (0, needed[1]) + (0,) * (layers - 2), True
        ),
        "joint": RestoreSplit(computed, (0, *(min(7, one) for one in left[1:])), True),
    }
    return {
        "compute-only": compute_only_graph(model, job),
        "two-ended": two_ended_graph(model, job),
        **{name: split_graph(model, job, split) for name, split in splits.items()},
    }


POLICIES = tuple(policy_graphs(OPT, request()))


@dataclass
class RestoreCase:
    """Weights and prompt of one request, computed whole."""

    weights: Weights
    job: RestoreRequest
    reference: ResidentPrefill
    backend: Backend

    @classmethod
    def of(cls, backend: Backend, model: ModelSpec, job: RestoreRequest) -> RestoreCase:
        weights = random_weights(model, 0, backend.device)
        prompt = prompt_ids(model, job, 1)[0]
        return cls(weights, job, resident_prefill(weights, prompt, backend), backend)

    @property
    def key(self) -> PrefixKey:
        job = self.job
        return PrefixKey.of(
            self.weights, self.reference.prompt, job.cached_tokens, job.io_chunk_tokens
        )

    def file(self, path: Path) -> CacheFile:
        """The prefix in a cache file, written unless it is there."""
        if not path.exists():
            write_cache_file(path, self.key, self.reference.cache)
        return CacheFile(path, self.key, self.weights.model)

    def executor(self, graph: TaskGraph, tier: Tier | None = None) -> RestoreExecutor:
        if tier is None:
            kinds = {"dram": HostMemory, "net": FarMemory}
            tier = kinds[self.job.tier](self.reference.cache)
        return RestoreExecutor(simulated(graph), self.weights, self.reference, tier, self.backend)
