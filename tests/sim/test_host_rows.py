"""What host memory has to hold while a graph runs, and that a run needs nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import decode_graph, uniform
from tiny import JOB, LLAMA, OPT, filled_cache, simulated

from hw import DecodeExecutor, HostCache, open_backend, prefill, prompt_ids, random_weights
from planner.decode.lower import lower
from planner.decode.split import Residency
from sim.errors import Mismatch
from sim.graph.memory import HostRows, all_rows, needed_rows

WINDOWED = replace(LLAMA, family="mistral", sliding_window=6, full_attention_layers=(1,))
SPLIT = [[4, 0, 5], [3, 1, 5], [4, 4, 4]]


def test_what_every_step_recomputes_has_no_k_and_v_and_what_none_does_no_x():
    # 8 tokens of the prompt and 2 new ones, of which 3 are recomputed in both steps
    first, _ = needed_rows(decode_graph(recomputed=3))
    assert first == HostRows(0, 10, (0, 3), (0, 3))
    assert (first.n_kv, first.n_x) == (7, 3)
    assert first.kv_parts(8) == [(3, 8)]
    assert first.kv_slice(3, 5) == slice(0, 2)


def test_what_stays_on_the_device_comes_from_the_host():
    graph = decode_graph(recomputed=0)
    model, job = graph.model, graph.workload
    kept = Residency((2, 8), (3, 0))
    rows = needed_rows(lower("row", model, job, [[5, 0], [5, 0]], residency=kept))
    assert rows[0] == HostRows(0, 10, (2, 7), (2, 7))
    assert rows[0].kv_parts(8) == [(0, 2), (7, 8)]
    assert [rows[0].kv_slice(*part) for part in rows[0].kv_parts(8)] == [slice(0, 2), slice(2, 3)]
    assert rows[1] == HostRows(0, 10, (0, 0), (0, 0))


def test_steps_that_recompute_less_later_need_both():
    graph = decode_graph(recomputed=0)
    rows, _ = needed_rows(lower("row", graph.model, graph.workload, [[6, 0], [2, 0]]))
    assert rows == HostRows(0, 10, (0, 2), (0, 6))


@pytest.mark.parametrize("kv_bits", [None, 8])
@pytest.mark.parametrize("model", [OPT, LLAMA, WINDOWED], ids=["opt", "llama", "windowed"])
@pytest.mark.parametrize(
    ("split", "kept"),
    [(SPLIT, None), ([[0, *row[1:]] for row in SPLIT], Residency((13, 4, 0), (0, 0, 0)))],
    ids=["moved", "kept"],
)
def test_a_cache_of_those_rows_decodes_the_same_tokens(model, kv_bits, split, kept):
    job = replace(JOB, kv_bits=kv_bits)
    graph = lower("row", model, job, split, residency=kept)
    with open_backend("cpu") as backend:
        weights = random_weights(model, 0, backend.device)
        whole, rows = filled_cache(weights, job, backend), needed_rows(graph)
        lean = HostCache.empty(model, job, backend, rows=rows)
        prefill(weights, prompt_ids(model, job, 1), lean)
        logits = []
        for cache in (whole, lean):
            executor = DecodeExecutor(simulated(graph), weights, [cache], (), backend)
            executor.run()
            logits.append((executor.tokens[0], executor.logits[0]))
    assert sum(kv.nbytes for kv in lean.kv) < sum(kv.nbytes for kv in whole.kv)
    assert sum(x.nbytes for x in lean.x) < sum(x.nbytes for x in whole.x)
    for mine, theirs in zip(*logits, strict=True):
        assert torch.equal(mine, theirs)


def test_a_cache_that_lacks_rows_is_refused():
    graph = lower("row", OPT, JOB, uniform(OPT, JOB, 4))
    with open_backend("cpu") as backend:
        weights = random_weights(OPT, 0, backend.device)
        lean = HostCache.empty(OPT, JOB, backend, rows=needed_rows(graph))
        prefill(weights, prompt_ids(OPT, JOB, 1), lean)
        other = lower("row", OPT, JOB, uniform(OPT, JOB, 3))
        DecodeExecutor(simulated(graph), weights, [lean], (), backend)
        with pytest.raises(Mismatch, match="belongs to another model or workload"):
            DecodeExecutor(simulated(other), weights, [lean], (), backend)


def test_all_rows_hold_what_any_graph_needs():
    for split in (0, 3, 8):
        graph = decode_graph(recomputed=split)
        whole = all_rows(graph.model, graph.workload)
        assert all(
            mine.holds(needed) for mine, needed in zip(whole, needed_rows(graph), strict=True)
        )
        assert not any(
            mine.holds(needed) for mine, needed in zip(needed_rows(graph), whole, strict=True)
        )
