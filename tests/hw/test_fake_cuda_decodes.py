"""A decode on a GPU asks nothing of it that CUDA refuses, and never waits in a timed region."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fake_cuda import DEVICE
from race_graphs import DECODE_GRAPHS, JOB
from run_decodes import run_graph
from tiny import EXPERTS, GEMMA, LLAMA, MODELS, decode_case, simulated

import hw.run.generate
from hw import DecodeExecutor, HostCache, prefill, prompt_ids, random_weights, resident_decode
from hw.run.generate import DecodeSteps, MemoryPeaks, generate
from planner.decode.lower import lower
from sim.errors import BadInput, WrongNumbers
from sim.graph.jobs import Workload
from sim.lanes import HOST


@pytest.mark.parametrize("name", DECODE_GRAPHS)
def test_a_decode_of_every_kind_of_graph(cuda, name):
    graph = DECODE_GRAPHS[name]
    run_graph(cuda, graph)
    staged = sum(task.op == "store_kv" for task in graph.tasks) * ((0, HOST) in graph.lanes)
    assert cuda.waits == staged


@pytest.mark.parametrize(
    ("schedule", "dtype", "kv_bits"),
    [
        ("row", "float16", 8),
        ("row", "float16", 4),
        ("row", "bfloat16", None),
        ("column", "float16", None),
        ("column", "bfloat16", 8),
        ("column", "bfloat16", 4),
    ],
)
def test_a_decode_in_half_precision(cuda, schedule, dtype, kv_bits):
    job = replace(JOB, kv_bits=kv_bits, gen_tokens=2)
    run_graph(cuda, lower(schedule, replace(LLAMA, dtype=dtype), job, [[3, 0, 8], [9, 4, 0]]))


@pytest.mark.parametrize("model", [*MODELS, GEMMA], ids=lambda model: model.name)
def test_a_decode_of_every_family(cuda, model):
    run_graph(cuda, lower("row", model, replace(JOB, batch_size=2), [[5] * 3] * 3))


def test_experts_in_other_dtypes_are_refused_before_anything_is_made():
    with pytest.raises(BadInput, match=r"in bfloat16 only.*--dtype bfloat16"):
        random_weights(EXPERTS, 0, DEVICE)


def test_a_failed_run_is_drained_so_that_the_next_one_passes_its_check(cuda, monkeypatch):
    def fail(_executor, _task):
        raise LookupError("lost")

    executor = decode_case(cuda).executor(cuda)
    with monkeypatch.context() as patch:
        patch.setitem(DecodeExecutor.operations, "attention", fail)
        with pytest.raises(LookupError, match="lost"):
            executor.run()
    executor.run()
    assert executor.check()["tokens_equal"] is True


def test_a_store_that_does_not_happen_is_noticed(cuda, monkeypatch):
    case = decode_case(cuda)
    executor = case.executor(cuda)
    monkeypatch.setattr(cuda, "copy", lambda *_: None)
    executor.run()
    with pytest.raises(WrongNumbers):
        executor.check()


class Seeded:
    """Stands for a checkpoint: seeded random weights."""

    def load(self, model, backend, _progress):
        return random_weights(model, 0, backend.device)


@pytest.mark.parametrize("n_new", [0, 3])
def test_prompts_are_continued(cuda, monkeypatch, n_new):
    peaks = MemoryPeaks(0, "planned", 0, 0)
    monkeypatch.setattr(hw.run.generate, "reset_peaks", lambda _: None)
    monkeypatch.setattr(hw.run.generate, "memory_peaks", lambda *_: peaks)
    job = Workload(2, 13, max(1, n_new))
    graph = lower("row", LLAMA, job, [[4] * 3] * job.gen_tokens)
    steps = DecodeSteps(simulated(graph), warm_ups=1) if n_new else None
    prompts = prompt_ids(LLAMA, job, 1)
    found = generate(Seeded(), LLAMA, prompts.tolist(), steps, cuda)
    weights = random_weights(LLAMA, 0, DEVICE)
    cache = HostCache.empty(LLAMA, job, cuda)
    prefill(weights, prompts, cache)
    expected = cache.next_tokens[None]
    if n_new:
        expected = torch.cat((expected, resident_decode(weights, cache, job).tokens))
    assert found.tokens == expected.T.tolist()
