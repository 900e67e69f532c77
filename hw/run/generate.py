"""Greedy generation: prefill on the device, KV cache in host memory, decode steps of a graph."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
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
from sim.progress import Progress, Silent

SILENT = Silent()


@dataclass(frozen=True, slots=True)
class Generated:
    """New tokens of some prompts, with the times and memory peaks of the generation.

    Args:
        tokens: [B][N], the token of the prefill and then one of each decode step.
        prefill_s: wall time from prompts to first tokens and K, V and X in host memory.
        decode: measured timeline of the decode steps; None if there were none.
    """

    tokens: list[list[int]]
    prefill_s: float
    decode: Timeline | None
    peaks: MemoryPeaks


@dataclass(frozen=True, slots=True)
class DecodeSteps:
    """The decode steps after the prefill.

    Args:
        simulated: the predicted timeline of the graph to run.
        warm_ups: unmeasured decodes of all steps before the measured one.
    """

    simulated: Timeline
    warm_ups: int = 0


def generate(
    checkpoint: Checkpoint,
    model: ModelSpec,
    prompts: Sequence[Sequence[int]],
    steps: DecodeSteps | None,
    backend: Backend,
    progress: Progress = SILENT,
) -> Generated:
    """Load the weights, prefill the prompts and decode greedily.

    Args:
        model: the checkpoint's shape, with the dtype and name of the graph's model.
        prompts: lists of token ids, all of one length.
        steps: None stops after the token that the prefill predicts.

    Raises:
        DoesNotFit: weights, staging slots or the host cache exceed the memory.
        Mismatch: as `DecodeExecutor`.
    """
    reset_peaks(backend)
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
"""Unit of `ru_maxrss`."""


@dataclass(frozen=True, slots=True)
class MemoryPeaks:
    """Peak memory of a generation, in bytes.

    Args:
        device_bytes: weights, staging slots and temporaries.
        device_source: `allocated` if the device's allocator counted them, `planned` if device and
            host share memory, and the peak is the plan's.
        host_bytes: K, V and X of the cache, and the host weights of a column schedule.
        process_bytes: resident memory of this process, libraries and mapped files included.
    """

    device_bytes: int
    device_source: str
    host_bytes: int
    process_bytes: int


def reset_peaks(backend: Backend) -> None:
    """Restart the counter of peak memory use of the device."""
    if backend.kind == "cuda":
        torch.get_device_module(backend.device).reset_peak_memory_stats(backend.device)


def memory_peaks(
    backend: Backend,
    cache: HostCache,
    planned_device_bytes: int,
    host_weight_bytes: int = 0,
) -> MemoryPeaks:
    """Peaks since `reset_peaks`; the process's peak since it started.

    Args:
        planned_device_bytes: the device's peak if its allocator does not count.
        host_weight_bytes: host weights in addition to the cache.
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
