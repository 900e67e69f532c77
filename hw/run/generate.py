"""Greedy generation: prefill on the device, KV cache to host memory, decode steps of a graph."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch

from hw.backends import Backend
from hw.cache.host import HostCache, prefill
from hw.model.checkpoint import Checkpoint
from hw.run.decode import DecodeExecutor
from hw.run.preflight import check_graph_fits
from sim.graph.jobs import Workload
from sim.graph.memory import footprint, needed_rows
from sim.graph.timeline import Timeline
from sim.model.spec import ModelSpec

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Generated:
    """New tokens of some prompts, and what making them took.

    Args:
        tokens: [B][N], the prefill's and then one of each decode step.
        prefill_s: wall time from prompts to first tokens, K, V and X in host memory.
        decode: when each task of the decode steps ran; None where there were none.
    """

    tokens: list[list[int]]
    prefill_s: float
    decode: Timeline | None
    peaks: MemoryPeaks


@dataclass(frozen=True, slots=True)
class DecodeSteps:
    """The steps behind the prefill.

    Args:
        simulated: the predicted timeline of the graph to run.
        warm_ups: times that all steps are decoded before the measured time.
    """

    simulated: Timeline
    warm_ups: int = 0


def generate(
    checkpoint: Checkpoint,
    model: ModelSpec,
    prompts: Sequence[Sequence[int]],
    steps: DecodeSteps | None,
    backend: Backend,
    progress: Progress = lambda _text, _done: None,
) -> Generated:
    """Load the weights, prefill the prompts and decode greedily.

    Args:
        model: the checkpoint's shape, in the dtype and under the name that the graph has.
        prompts: equally long lists of token ids.
        steps: None stops at the token that the prefill predicts.

    Raises:
        DoesNotFit: weights, staging slots or the host cache exceed the memory there is.
        Mismatch: as the executor.
    """
    forget_peaks(backend)
    job, rows = Workload(len(prompts), len(prompts[0]), 1), None
    if steps is not None:
        graph = steps.simulated.graph
        job, rows = graph.workload, needed_rows(graph)
        check_graph_fits(graph, backend, cache=rows)
    weights = checkpoint.load(model, backend, progress)
    cache = HostCache.empty(model, job, backend, rows=rows)
    progress("prefilling the prompts", 0.0)
    begun_s = perf_counter()
    prefill(weights, torch.tensor(prompts), cache)
    prefill_s = perf_counter() - begun_s
    tokens = cache.next_tokens[None]  # [1, B]
    if steps is None:
        peaks = memory_peaks(backend, cache, model.weight_bytes)
        return Generated(tokens.T.tolist(), prefill_s, None, peaks)
    executor = DecodeExecutor(steps.simulated, weights, [cache], (), backend)
    for _ in range(steps.warm_ups):
        progress("warming up", 0.0)
        executor.run()
    progress(f"decoding {job.gen_tokens} steps", 0.0)
    timeline = executor.run()
    planned = footprint(executor.graph)
    return Generated(
        tokens=torch.cat((tokens, executor.tokens[0])).T.tolist(),
        prefill_s=prefill_s,
        decode=timeline,
        peaks=memory_peaks(backend, cache, planned.device_bytes, planned.host_weight_bytes),
    )


RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024
"""What `ru_maxrss` counts in."""


@dataclass(frozen=True, slots=True)
class MemoryPeaks:
    """Bytes at their highest.

    Args:
        device_bytes: weights, staging slots and temporaries.
        device_source: `allocated` where the device's allocator counted them, `planned` where
            device and host share memory and only the plan tells them apart.
        host_bytes: what the cache holds of K, V and X, and the weights that a column schedule keeps
            there.
        process_bytes: this process's resident memory, libraries and mapped files included.
    """

    device_bytes: int
    device_source: str
    host_bytes: int
    process_bytes: int


def forget_peaks(backend: Backend) -> None:
    """Count the device's peak from here on."""
    if backend.kind == "cuda":
        torch.get_device_module(backend.device).reset_peak_memory_stats(backend.device)


def memory_peaks(
    backend: Backend,
    cache: HostCache,
    planned_device_bytes: int,
    host_weight_bytes: int = 0,
) -> MemoryPeaks:
    """Peaks since `forget_peaks`; of the process, since it started.

    Args:
        planned_device_bytes: stands for the device's peak where its allocator does not count.
        host_weight_bytes: weights kept in addition to the cache.
    """
    device_bytes, source = planned_device_bytes, "planned"
    if backend.kind == "cuda":
        module = torch.get_device_module(backend.device)
        device_bytes, source = module.max_memory_allocated(backend.device), "allocated"
    return MemoryPeaks(
        device_bytes=device_bytes,
        device_source=source,
        host_bytes=sum(tensor.nbytes for tensor in (*cache.kv, *cache.x)) + host_weight_bytes,
        process_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT_BYTES,
    )
