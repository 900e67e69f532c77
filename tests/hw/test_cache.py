"""The host cache after a prefill, and the resident decode that everything is checked against."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import CPU, JOB, MODELS, OPT, filled_cache

import hw.cache.host
from hw import HostCache, open_backend, prompt_ids, random_weights, resident_decode

each_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)


@pytest.fixture
def cpu():
    with open_backend("cpu") as backend:
        yield backend


def assert_prompts_equal(mine: HostCache, theirs: HostCache, tokens: int) -> None:
    for a, b in zip([*mine.kv, *mine.x], [*theirs.kv, *theirs.x], strict=True):
        torch.testing.assert_close(a[:tokens], b[:tokens])


def test_prompts_repeat_with_their_seed_and_stay_in_the_vocabulary():
    prompts = prompt_ids(OPT, JOB, 5)
    assert prompts.shape == (JOB.batch_size, JOB.prompt_tokens)
    assert prompts.equal(prompt_ids(OPT, JOB, 5))
    assert not prompts.equal(prompt_ids(OPT, JOB, 6))
    assert prompts.min() >= 0
    assert prompts.max() < OPT.vocab_size


@each_model
def test_the_prefix_of_a_longer_cache_is_the_cache_of_a_shorter_prompt(cpu, model):
    weights, long_job = random_weights(model, 0, CPU), replace(JOB, batch_size=3, prompt_tokens=20)
    prompts = prompt_ids(model, long_job, 1)
    short = prompts[: JOB.batch_size, : JOB.prompt_tokens]
    taken = HostCache.empty(model, JOB, cpu)
    taken.take_prefix(filled_cache(weights, long_job, cpu, prompts), JOB.prompt_tokens)
    assert_prompts_equal(taken, filled_cache(weights, JOB, cpu, short), JOB.prompt_tokens)


@each_model
def test_a_smaller_batch_of_the_same_prompts_predicts_the_same_tokens(cpu, model):
    weights, large = random_weights(model, 0, CPU), replace(JOB, batch_size=5)
    prompts = prompt_ids(model, large, 1)
    taken = HostCache.empty(model, JOB, cpu)
    taken.take_prefix(filled_cache(weights, large, cpu, prompts), JOB.prompt_tokens)
    filled = filled_cache(weights, JOB, cpu, prompts[: JOB.batch_size])
    assert taken.next_tokens.equal(filled.next_tokens)


def test_a_prefill_in_parts_equals_one_of_all_sequences(cpu, monkeypatch):
    weights, job = random_weights(OPT, 0, CPU), replace(JOB, batch_size=5)
    together = filled_cache(weights, job, cpu)
    monkeypatch.setitem(hw.cache.host.PREFILL_TOKENS, "cpu", 2 * JOB.prompt_tokens)
    in_parts = filled_cache(weights, job, cpu)
    assert_prompts_equal(in_parts, together, JOB.prompt_tokens)
    assert in_parts.next_tokens.equal(together.next_tokens)


@each_model
def test_the_resident_decode_equals_prefilling_everything_again_each_step(cpu, model):
    weights = random_weights(model, 0, CPU)
    prompts, cache = prompt_ids(model, JOB, 1), filled_cache(weights, JOB, cpu)
    decoded = resident_decode(weights, cache, JOB)
    current = cache.next_tokens
    for step in range(JOB.gen_tokens):
        prompts = torch.cat((prompts, current[:, None]), 1)
        job = replace(JOB, prompt_tokens=prompts.shape[1], gen_tokens=1)
        again = filled_cache(weights, job, cpu, prompts)
        current = again.next_tokens
        assert decoded.tokens[step].equal(current)
    for mine, theirs in zip(decoded.new_kv, again.kv, strict=True):
        new = theirs[JOB.prompt_tokens : JOB.max_tokens]
        torch.testing.assert_close(mine, new, rtol=1e-4, atol=1e-4)


def test_the_resident_decode_leaves_the_cache_as_it_was(cpu):
    weights = random_weights(OPT, 0, CPU)
    cache = filled_cache(weights, JOB, cpu)
    for kv in cache.kv:
        kv[JOB.prompt_tokens :] = 7.0
    before = [kv.clone() for kv in cache.kv]
    resident_decode(weights, cache, JOB)
    assert all(a.equal(b) for a, b in zip(cache.kv, before, strict=True))
