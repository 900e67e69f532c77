"""Decoding with sliding windows on real tensors; `transformers` agrees in `test_oracle`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import make_plan
from tiny import CPU, JOB, LLAMA, filled_cache, simulated

from hw import (
    DecodeExecutor,
    HostCache,
    prefilled_caches,
    prompt_ids,
    random_weights,
    resident_decode,
)
from hw.model.attention import window_mask
from planner import POLICIES
from sim import find_hardware
from sim.errors import Mismatch
from sim.lanes import HOST
from sim.machine.links import Link

MODEL = replace(LLAMA, family="mistral", sliding_window=5, full_attention_layers=(1,))


def test_a_windows_mask_by_hand():
    seen = window_mask(4, 2, CPU)
    assert seen.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert window_mask(4, 4, CPU) is None
    assert window_mask(4, None, CPU) is None


def test_the_cache_holds_the_window_of_the_whole_prefill(backend):
    weights = random_weights(MODEL, 0, backend.device)
    cache = filled_cache(weights, JOB, backend)
    assert cache.first_tokens == [13 - 4, 0, 13 - 4]
    assert [kv.shape[0] for kv in cache.kv] == [x.shape[0] for x in cache.x] == [7, 16, 7]
    # Layer 0 sees no other layer's window: the same K and V as without any.
    whole = filled_cache(replace(weights, model=replace(LLAMA, family="mistral")), JOB, backend)
    torch.testing.assert_close(cache.kv[0][:4], whole.kv[0][9:13])
    assert not torch.allclose(cache.kv[2][:4], whole.kv[2][9:13])


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_computes_what_the_resident_decode_does(policy, backend):
    hardware = find_hardware("kvpr-a100").with_faster("link", 0.25)
    links = replace(hardware.links, host=Link("datasheet", 1e10))
    hardware = replace(hardware, links=links)
    plan = make_plan(MODEL, hardware, JOB, policy)
    graph = plan.simulated_graph()
    weights = random_weights(MODEL, 0, backend.device)
    staged = (0, HOST) in graph.lanes
    caches = prefilled_caches(weights, JOB, 1, backend, pageable=staged)
    references = [resident_decode(weights, cache, JOB) for cache in caches]
    executor = DecodeExecutor(simulated(graph), weights, caches, references, backend)
    executor.run()
    assert executor.check()["tokens_equal"] is True


def test_a_cache_of_longer_prompts_has_left_the_window_behind(backend):
    weights, longer = random_weights(MODEL, 0, backend.device), replace(JOB, prompt_tokens=20)
    filled = filled_cache(weights, longer, backend, prompt_ids(MODEL, longer, 1))
    with pytest.raises(Mismatch, match="prefill the prompts of 13 tokens"):
        HostCache.empty(MODEL, JOB, backend).take_prefix(filled, JOB.prompt_tokens)
