"""Hit rates: by hand, against plain simulations, and against kvcache-simulator."""

from __future__ import annotations

import pytest
from builders import examples
from hypothesis import given
from hypothesis import strategies as st
from kvcache_sim.plan import build_execution_plan
from kvcache_sim.policies import simulate_ceiling, simulate_policy
from kvcache_sim.trace import parse_trace_lines

from sim.errors import UnknownName
from sim.service import EVICTIONS, RequestTrace, Traffic, hit_rates
from sim.service.generate import generated_lines

BLOCK = 4

PROMPTS = st.lists(
    st.lists(st.integers(0, 3), min_size=0, max_size=5).map(tuple), min_size=1, max_size=24
)
"""Block ids of requests, from few, so that many prefixes are shared."""


def trace_of(prompts):
    """Requests of whole blocks but for the last, which has one token less."""
    trace = RequestTrace(BLOCK)
    for at, ids in enumerate(prompts):
        trace.add(float(at), max(1, BLOCK * len(ids) - 1), 1, [*ids])
    return trace


def lru_by_lists(prompts, size):
    """Hit and total tokens of the last half, from a list of prefixes in order of use."""
    prompts = [one for one in prompts if one]
    recent: list[tuple[int, ...]] = []
    hits = total = 0
    for at, ids in enumerate(prompts):
        path = [ids[:end] for end in range(1, len(ids) + 1)]
        tokens = [BLOCK] * (len(ids) - 1) + [BLOCK - 1]
        if at >= len(prompts) // 2:
            total += sum(tokens)
            for one, count in zip(path, tokens, strict=True):
                if one not in recent[:size]:
                    break
                hits += count
        recent = [*path, *(one for one in recent if one not in path)]
    return hits / total if total else 0.0


def test_rates_by_hand():
    """The second half asks for (0, 1, 2) and (0, 3) again: 11 and 7 tokens.

    An LRU pool of 2 holds the first two blocks of the last prompt, of which only block 0 is asked
    for again: 4 tokens of each. A pool of 4 holds everything.
    """
    trace = trace_of([(0, 1, 2), (0, 3), (0, 1, 2), (0, 3)])
    rates = {one.blocks: one for one in hit_rates(trace, [1, 2, 4, 9], ["lru"]).rates}
    assert rates[2].hit_rate == pytest.approx(8 / 18)
    assert rates[4].hit_rate == rates[9].hit_rate == pytest.approx(1.0)
    assert (rates[4].filled, rates[9].filled) == (True, False)


@examples(100)
@given(PROMPTS, st.integers(0, 12))
def test_stack_distances_are_a_list_of_recent_blocks(prompts, size):
    (found,) = hit_rates(trace_of(prompts), [size], ["lru"]).rates
    assert found.hit_rate == pytest.approx(lru_by_lists(prompts, size))


@examples(100)
@given(PROMPTS)
def test_larger_pools_hit_more_and_none_exceeds_the_ceiling(prompts):
    sizes = range(1, 30, 3)
    found = hit_rates(trace_of(prompts), sizes, ["lru", "optimal"])
    lru, optimal = found.rates[: len(sizes)], found.rates[len(sizes) :]
    for rates in (lru, optimal):
        values = [one.hit_rate for one in rates]
        assert values == sorted(values)
        assert values[-1] == pytest.approx(found.ceiling)


@pytest.mark.parametrize("seed", range(2))
def test_every_pool_equals_kvcache_simulator(seed):
    asked = Traffic(requests=300, turns=3.0, new_tokens=2048, agents=0.4 * seed, seed=seed)
    lines = [*generated_lines(asked)]
    trace = RequestTrace(512)
    plan = build_execution_plan(parse_trace_lines(lines, block_size=512))
    for start, stop in zip(plan.request_starts, plan.request_starts[1:], strict=False):
        ids, tokens = plan.ids[start:stop], sum(plan.tokens[start:stop])
        trace.add(0.0, tokens, 1, ids)
    longest = max(len(trace.path(at)) for at in range(len(trace)))
    sizes = [longest, 2 * longest, 300, 600]
    found = hit_rates(trace, sizes)
    assert found.ceiling == simulate_ceiling(plan).hitRate
    for one in found.rates:
        other = simulate_policy(plan, one.eviction, one.blocks)
        assert one.filled == (other.measurementMode == "fixed_window")
        if one.filled:
            assert one.hit_rate == other.hitRate, (one.eviction, one.blocks)


@examples(60)
@given(PROMPTS.map(lambda all_of: [one for one in all_of if one]).filter(bool), st.integers(5, 12))
def test_small_traces_equal_kvcache_simulator(prompts, size):
    lines = [f'{{"input_length": {BLOCK * len(ids) - 1}, "hash_ids": {[*ids]}}}' for ids in prompts]
    plan = build_execution_plan(parse_trace_lines(lines, block_size=BLOCK))
    for one in hit_rates(trace_of(prompts), [size], EVICTIONS).rates:
        other = simulate_policy(plan, one.eviction, size)
        if other.measurementMode == "fixed_window":
            assert one.hit_rate == pytest.approx(other.hitRate), one.eviction


def test_an_unknown_eviction_is_refused():
    with pytest.raises(UnknownName, match="did you mean 'optimal'"):
        hit_rates(trace_of([(0,)]), [1], ["optimum"])
