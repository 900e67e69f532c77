"""Greedy generation: prefill on the device, KV cache to host memory, decode steps of a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch

from hw.backends import Backend
from hw.cache import HostCache, prefill
from hw.checkpoint import Checkpoint
from hw.executor import Executor, check_graph_fits
from hw.peaks import MemoryPeaks, forget_peaks, memory_peaks
from sim.graph import TaskGraph
from sim.host_rows import needed_rows
from sim.memory import footprint
from sim.model_spec import ModelSpec
from sim.timeline import Timeline
from sim.workload import Workload

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
        predicted_sha256: hash of the graph whose simulation passed; no other is run.
        warm_ups: times that all steps are decoded before the measured time.
    """

    graph: TaskGraph
    predicted_sha256: str
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
        NotSimulated, Mismatch: as the executor.
    """
    forget_peaks(backend)
    job = Workload(len(prompts), len(prompts[0]), 1) if steps is None else steps.graph.workload
    rows = None
    if steps is not None:
        rows = needed_rows(steps.graph)
        check_graph_fits(steps.graph, backend, cache=rows)
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
    executor = Executor(steps.graph, steps.predicted_sha256, weights, [cache], backend)
    for _ in range(steps.warm_ups):
        progress("warming up", 0.0)
        executor.run()
    progress(f"decoding {job.gen_tokens} steps", 0.0)
    timeline = executor.run()
    planned = footprint(steps.graph)
    return Generated(
        tokens=torch.cat((tokens, executor.tokens[0])).T.tolist(),
        prefill_s=prefill_s,
        decode=timeline,
        peaks=memory_peaks(backend, cache, planned.device_bytes, planned.host_weight_bytes),
    )
