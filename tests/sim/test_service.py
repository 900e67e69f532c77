"""A service against its SimPy reference, single restores, queueing theory and properties."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import permutations
from math import inf
from statistics import fmean

import pytest
from builders import examples, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from restores import figure, step_machine
from service_reference import reference_outcome
from services import (
    BLOCK,
    BLOCK_BYTES,
    hit_ttft_s,
    request_traces,
    service_machine,
    services,
    tiny_service,
    warm,
    with_blocks,
)

from planner.restore import RestorePlanner
from planner.restore.service import plans_of
from sim.catalog import find_hardware, find_model
from sim.errors import BadInput, DoesNotFit, UnknownName
from sim.machine.what_if import with_rate
from sim.service import (
    Engine,
    RequestTrace,
    Service,
    ServiceCosts,
    answer,
    enough,
    simulate_service,
)


def times(outcome):
    journal = outcome.journal
    return [*journal.admitted_s, *journal.first_s, *journal.finish_s]


@examples(30)
@given(services(), request_traces())
def test_the_loop_gives_the_times_of_the_reference(service, trace):
    fast, slow = simulate_service(service, trace), reference_outcome(service, trace)
    assert all(fast.journal.finish_s[at] < inf for at in fast.served)
    assert times(fast) == pytest.approx(times(slow), rel=1e-9, abs=1e-12)
    assert fast.journal.hits == slow.journal.hits
    assert fast.busy_s == pytest.approx(slow.busy_s, rel=1e-9, abs=1e-12)
    assert fast.stored_blocks == slow.stored_blocks


HITS = [
    ("h100-sxm+pcie5-x16", "llama-3.1-70b-fp8", 4, "dram"),
    ("h100-sxm+pcie5-x16", "llama-3.1-8b", 1, "net"),
    ("h100", "mistral-7b-v0.1", 1, "ssd"),
    ("h100-sxm+pcie5-x16", "gpt-oss-20b", 1, "dram"),
    ("h100-sxm+pcie5-x16", "deepseek-v2-lite", 1, "net"),
    ("h200+pcie5-x16", "qwen3.5-27b", 1, "dram"),
]
"""Layers alike, windows, experts with windows, latents, and states kept with each block."""


@pytest.mark.parametrize(
    ("hit", "policy"),
    [
        *((hit, policy) for hit in HITS for policy in ("compute-only", "load-only", "two-ended")),
        *((hit, "lp") for hit in HITS[:2]),
        (HITS[4], "layer-wise"),
        (HITS[0], "joint"),
    ],
)
def test_a_single_hit_takes_as_long_as_its_restore(hit, policy):
    machine, model, tp, tier = hit
    spec = find_model(model).shard(tp)
    costs = ServiceCosts(spec, find_hardware(machine), 512, 128)
    for prompt, blocks in ((5000, 8), (4608, 9)):
        cached = min(512 * blocks, prompt - 1)
        if spec.state_bytes:
            cached = cached // 512 * 512
        request = costs.request(prompt, cached, tier)
        restored = RestorePlanner(spec, costs.hardware, request).choice(policy).ttft_s
        engine = Engine(policy=policy)
        plans = plans_of(costs, engine)
        service = Service(costs=costs, engine=engine, tier_blocks={tier: 10**6}, plans=plans)
        found = hit_ttft_s(service, prompt, blocks)
        assert found == pytest.approx(restored, rel=1e-9)


def one_at_a_time(step_s, outputs, rate, seed=1):
    """A service of steps of one length, for one request at a time, under Poisson arrivals."""
    chance, trace, now_s = random.Random(seed), RequestTrace(BLOCK), 0.0  # noqa: S311
    for number, output in enumerate(outputs):
        now_s += chance.expovariate(rate)
        trace.add(now_s, BLOCK, output, [number])
    service = tiny_service(
        policy="compute-only", hardware=step_machine(step_s, 1e9), max_batch=1, chunk=16
    )
    return simulate_service(service, trace)


def test_waiting_of_equal_jobs_is_that_of_an_m_d_1_queue():
    """Pollaczek and Khinchine: rho S / 2 (1 - rho) for a service time S."""
    found = answer(one_at_a_time(0.1, [1] * 4_000, rate=7.0))
    assert found.queue_s.mean == pytest.approx(0.7 * 0.1 / 2 / (1 - 0.7), rel=0.08)
    assert found.busy["compute"] == pytest.approx(0.7, rel=0.03)


def test_waiting_of_unequal_jobs_is_that_of_an_m_g_1_queue():
    """Rate E[S^2] / 2 (1 - rho), for answers of 1 to 9 tokens, each a step."""
    chance = random.Random(2)  # noqa: S311
    outputs = [chance.choice([1, 1, 1, 9]) for _ in range(3_000)]
    found = answer(one_at_a_time(0.1, outputs, rate=2.0))
    second = fmean((0.1 * output) ** 2 for output in (1, 1, 1, 9))
    rho = 2.0 * 0.1 * 3.0
    assert found.queue_s.mean == pytest.approx(2.0 * second / 2 / (1 - rho), rel=0.12)


def test_the_number_of_waiting_requests_obeys_littles_law():
    outcome = one_at_a_time(0.1, [1] * 2_000, rate=6.0)
    arrivals, admitted = outcome.trace.arrival_s, outcome.journal.admitted_s
    end_s = outcome.journal.finish_s[-1]
    samples = [end_s * (at + 0.5) / 2_000 for at in range(2_000)]
    waiting = fmean(
        sum(arrivals[at] <= now_s < admitted[at] for at in range(len(arrivals)))
        for now_s in samples[::10]
    )
    mean_wait_s = answer(outcome).queue_s.mean
    assert waiting == pytest.approx(len(arrivals) / end_s * mean_wait_s, rel=0.25)


@examples(15)
@given(services(), request_traces())
def test_blocks_and_tokens_are_conserved(service, trace):
    watched = warm(service, {})
    outcome = simulate_service(watched, trace)
    journal, prompts = outcome.journal, outcome.trace.prompt_tokens
    for one in watched.made:
        assert not one.memory.users
        assert one.memory.free + len(one.memory.idle) == one.memory.blocks
        assert all(len(tier.pool) <= tier.pool.blocks for tier in one.tiers)
    hits = [sum(by[at] for by in journal.hits.values()) for at in range(len(trace))]
    for at in outcome.served:
        assert journal.first_s[at] <= journal.finish_s[at] < inf
        assert hits[at] + journal.computed[at] >= prompts[at]
    for name, blocks in outcome.stored_blocks.items():
        assert outcome.unread_blocks[name] <= blocks
    if service.engine.policy in ("compute-only", "load-only") and not journal.preemptions:
        computed = sum(prompts[at] - hits[at] for at in outcome.served)
        assert sum(journal.computed) == computed
        loaded = sum(sum(hit) for name, hit in journal.hits.items() if name != "gpu")
        model = service.costs.model
        row_bytes = model.kv_token_size * model.element_bytes
        assert outcome.loaded_bytes == loaded * model.n_layers * row_bytes


def test_host_memory_works_for_every_byte_that_is_loaded_or_stored():
    """Two blocks are stored, evicted by two others, and loaded; memory moves 100 bytes a second."""
    trace = RequestTrace(BLOCK)
    for arrival_s, blocks in ((0.0, [0, 1]), (100.0, [2, 3]), (200.0, [0, 1])):
        trace.add(arrival_s, 17, 1, blocks)
    hardware = replace(service_machine(), host_dram=figure(100.0))
    service = tiny_service("load-only", 3, hardware=hardware, tiers={"dram": 8})
    outcome = simulate_service(service, trace)
    moved = outcome.loaded_bytes + outcome.stored_blocks["dram"] * BLOCK_BYTES
    assert moved == (2 + 4) * BLOCK_BYTES
    assert outcome.busy_s["host DRAM"] == pytest.approx(moved / 100.0)
    unknown = tiny_service("load-only", 3, hardware=service_machine(), tiers={"dram": 8})
    assert "host DRAM" not in simulate_service(unknown, trace).busy_s


@examples(15)
@given(request_traces(), st.sampled_from(["load-only", "two-ended"]))
def test_a_tier_of_infinite_rate_is_never_slower(trace, policy):
    """With room for everything and one request at a time, the order of work cannot change."""
    service = tiny_service(policy, 1000, tiers={"dram": 1000}, max_batch=1)
    costs = service.costs
    free = ServiceCosts(costs.model, costs.hardware, 16, 4, free_copies=True)
    fast, slow = (simulate_service(one, trace) for one in (replace(service, costs=free), service))
    for quick, late in zip(fast.journal.first_s, slow.journal.first_s, strict=True):
        assert quick <= late + 1e-12


def test_a_second_request_waits_for_the_memory_of_the_first_and_hits_its_blocks():
    """Steps take 1 s. GPU memory has 4 blocks: the first request of 2 blocks and 2 of answers.

    It gets its tokens at 1 to 10 s, and its prompt of 16 tokens in 1 step. The second, of 3 blocks
    with the same first two, finds no room until 10 s; then it computes 8 tokens in one step.
    """
    trace = RequestTrace(BLOCK)
    trace.add(0.0, 16, 10, [0, 1])
    trace.add(0.5, 24, 1, [0, 1, 2])
    trace.add(0.6, 24, 30, [7, 8, 9])
    hardware = step_machine(1.0, 1e9)
    service = tiny_service("compute-only", 4, hardware=hardware)
    outcome = simulate_service(service, trace)
    journal = outcome.journal
    assert journal.rejected == [2]
    assert [*journal.first_s][:2] == pytest.approx([1.0, 2.0])
    assert [*journal.finish_s][:2] == pytest.approx([10.0, 2.0])
    assert journal.hits["gpu"][1] == 16


def test_requests_that_outgrow_the_memory_are_computed_again():
    trace = RequestTrace(BLOCK)
    trace.add(0.0, 16, 16, [0, 1])
    trace.add(0.0, 15, 16, [2, 3])
    service = tiny_service("compute-only", 5, hardware=step_machine(1.0, 1e9), chunk=64)
    outcome = simulate_service(service, trace)
    assert outcome.journal.preemptions == 1
    assert outcome.journal.finish_s[0] == pytest.approx(16.0)
    assert outcome.journal.finish_s[1] > 16.0
    assert reference_outcome(service, trace).journal.finish_s == outcome.journal.finish_s


def test_two_ends_beat_loading_among_other_requests():
    """Cake's example (arXiv 2410.03065): 16K restored among 22 requests of 32 to 448 tokens.

    Its adaptive restore takes 1.19 s where loading alone takes 1.50 s; here loading takes 1.50 s.
    """
    spec = find_model("longalpaca-7b")
    hardware = with_rate(find_hardware("a100-80g"), "link.h2d.bandwidth", 6.2e9)
    trace = RequestTrace(512)
    trace.add(0.0, 16_384, 1, [*range(32)])
    for number in range(22):
        trace.add(0.0, 32 + 20 * number % 417, 8, [100 + number])
    ttft_s = {}
    for policy in ("load-only", "two-ended"):
        costs = ServiceCosts(spec, hardware, 512, 128)
        service = Service(costs=costs, engine=Engine(policy=policy), tier_blocks={"dram": 64})
        held = warm(service, {0: 32})
        ttft_s[policy] = simulate_service(held, trace).journal.first_s[0]
    assert ttft_s["load-only"] == pytest.approx(1.5, rel=0.02)
    assert ttft_s["two-ended"] / ttft_s["load-only"] <= 1.19 / 1.50


def burst(order, blocks, policy="load-only"):
    """Mean time to first token of hits of so many blocks that come together."""
    trace = RequestTrace(BLOCK)
    for number, count in enumerate(blocks):
        ids = [100 * number + at for at in range(count)]
        trace.add(0.0, BLOCK * count, 1, ids)
    hardware = service_machine(1e-4, 1e6, h2d=2e4)
    options = {"max_batch": 20, "chunk": 64, "load_order": order}
    service = tiny_service(policy, 4000, hardware=hardware, tiers={"dram": 4000}, **options)
    held = warm(service, dict(enumerate(blocks)))
    first_s = simulate_service(held, trace).journal.first_s
    assert [*reference_outcome(held, trace).journal.first_s] == pytest.approx([*first_s], rel=1e-9)
    return fmean(first_s)


@pytest.mark.parametrize("count", [2, 3, 5, 16])
def test_loads_by_gain_are_never_slower_on_average_in_a_burst(count):
    chance = random.Random(count)  # noqa: S311
    blocks = [chance.randint(2, 30) for _ in range(count)]
    assert burst("gain", blocks) <= 1.01 * burst("fcfs", blocks)
    assert burst("gain", blocks[::-1]) <= 1.01 * burst("fcfs", blocks[::-1])


def test_loads_by_gain_are_within_five_per_cent_of_the_best_order():
    """Every order of four restores, tried as an order of arrival."""
    blocks = (25, 3, 14, 8)
    best = min(burst("fcfs", order) for order in permutations(blocks))
    assert burst("gain", blocks) <= 1.05 * best


def test_a_service_that_cannot_be_is_refused():
    with pytest.raises(UnknownName, match="policy 'joined' is unknown"):
        tiny_service("joined")
    with pytest.raises(BadInput, match=r"max_batch\(=16\) must be at least 1 and below"):
        tiny_service(max_batch=16)
    model = tiny_model(max_positions=64)
    small = with_blocks(service_machine(), lambda of: ServiceCosts(model, of, 16, 4), 0)
    with pytest.raises(DoesNotFit, match="leaves no block for K and V"):
        ServiceCosts(model, small, 16, 4).gpu_blocks(BLOCK, 4)


def test_more_cache_pays_until_the_tail_is_within_five_per_cent_of_the_best():
    assert enough([0.0, 1.0, 2.0, 4.0], [9.0, 4.1, 4.0, 4.0]) == 1.0
    assert enough([0.0, 1.0], [1.0, 2.0]) == 0.0
