"""Advice: crossovers, gain, evidence and runtime settings."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import inf
from pathlib import Path
from unittest.mock import patch

import pytest
from builders import GQA, examples, machine, make_plan, tiny_model
from hypothesis import given
from hypothesis import strategies as st

from planner.advice import Evidence, Interval, advise, describe
from planner.advice.decoding import DecodeJob, Ways, best_step, by_context
from planner.advice.reuse import reuse
from planner.advice.runtime_settings import CacheBudget, runtime_settings
from planner.crossovers import BOUNDARY_FRAC, intervals, largest
from planner.decode.problem import DecodeProblem
from planner.restore import RestorePlanner
from sim.catalog import DATA, find_hardware, find_model
from sim.errors import BadInput, DoesNotFit
from sim.graph.jobs import RestoreRequest, Workload
from sim.graph.memory import footprint
from sim.machine.curves import Curve
from sim.machine.links import Link
from sim.machine.prefill import Prefill, Restore
from sim.machine.profile import Memory
from sim.machine.provenance import SourcedValue
from sim.results.accuracy import assess_kind

RECORDINGS = DATA / "recordings"
NOWHERE = Path("/nonexistent")
JOB = Workload(batch_size=4, prompt_tokens=200, gen_tokens=1)
PREFILL = Restore(Prefill(SourcedValue("datasheet", 1e9), SourcedValue("datasheet", 0.0)))


def steep(*edges: int):
    """A verdict that changes at each of these lengths."""
    return lambda tokens: f"v{sum(tokens >= edge for edge in edges)}"


def test_intervals_end_where_the_verdict_changes():
    asked: list[int] = []

    def verdict(tokens: int) -> str:
        asked.append(tokens)
        return steep(100, 5000)(tokens)

    first, second, third = intervals(verdict, 16, 20_000)
    assert (first.first_tokens, third.last_tokens) == (16, 20_000)
    assert [one.verdict for one in (first, second, third)] == ["v0", "v1", "v2"]
    assert second.first_tokens == 100
    assert third.first_tokens == pytest.approx(5000, rel=BOUNDARY_FRAC)
    assert len(asked) == len(set(asked)) < 30


@given(st.integers(1, 50), st.integers(0, 5000), st.sets(st.integers(1, 6000), max_size=3))
@examples(200)
def test_intervals_cover_every_length_once(least, more, edges):
    found = intervals(steep(*edges), least, least + more)
    lengths = [t for one in found for t in range(one.first_tokens, one.last_tokens + 1)]
    assert lengths == list(range(least, least + more + 1))
    assert all(one.verdict == steep(*edges)(one.first_tokens) for one in found)


@given(st.integers(2, 6000))
@examples(100)
def test_a_single_boundary_is_never_missed(edge):
    below, above = intervals(steep(edge), 1, 6000)
    assert (below.verdict, above.verdict) == ("v0", "v1")
    assert 0 <= above.first_tokens - edge <= max(1, edge * BOUNDARY_FRAC)


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=60),
    st.integers(0, 700),
    st.integers(1, 80),
)
@examples(200)
def test_the_largest_count_is_found_from_any_start(rises, limit, start):
    values = [sum(rises[:count]) for count in range(len(rises) + 1)]

    def value(count: int) -> float:
        return values[count] if count < len(values) else float("inf")

    expected = max((n for n in range(1, len(values)) if values[n] <= limit), default=0)
    assert largest(value, limit, start) == expected


@pytest.mark.parametrize(
    ("load", "recompute", "best", "name"),
    [
        (10, 20, 10, "load"),
        (20, 10, 9.95, "recompute"),
        (20, 10, 9, "split"),
        (10, 10, 9, "split"),
        (inf, inf, 9, "split"),
        (inf, inf, inf, "no room"),
    ],
)
def test_a_split_wins_where_it_saves_enough(load, recompute, best, name):
    assert Ways(load, recompute, best).verdict == name


def test_crossovers_equal_those_of_plans_at_each_length():
    model = tiny_model(max_positions=400)
    hardware = machine(flops_per_s=4e7, gemm_bytes_per_s=1e6, h2d=3e6, d2h=3e6)
    found = by_context(DecodeJob(model, hardware, 4, 200))

    def verdict(tokens: int) -> str:
        times = make_plan(model, hardware, Workload(4, tokens, 1)).baselines
        return Ways(times["load-all"], times["recompute-all"], times["lp"]).verdict

    for one in found:
        assert verdict(one.first_tokens) == one.verdict
    assert len(found) > 1
    for before, after in pairwise(found):
        assert verdict(before.last_tokens) == before.verdict != after.verdict


def test_grouped_queries_are_loaded_at_every_length():
    model = tiny_model(max_positions=400, **GQA)
    found = by_context(DecodeJob(model, machine(h2d=1e6), 4, 200))
    assert found == (Interval(16, 399, "load"),)


def test_a_cache_that_fits_gpu_memory_is_resident():
    found = advise(tiny_model(), machine(), JOB, NOWHERE)
    assert found.verdict == "resident"
    resident = make_plan(tiny_model(), machine(), JOB, "resident").makespan_s
    assert found.resident.makespan_s == pytest.approx(resident)
    assert found.headline.startswith("Keep the cache in GPU memory: ")
    assert "--gpu-memory-utilization" not in describe(found)


def test_a_resident_cache_beyond_the_part_that_vllm_uses_names_the_setting():
    taken = footprint(make_plan(tiny_model(), machine(), JOB, "resident").lower()).device_bytes
    memory = Memory("datasheet", taken / 0.951, 1e12)
    found = advise(tiny_model(), machine(memory=memory), JOB, NOWHERE)
    assert found.verdict == "resident"
    assert "95.1 % of GPU memory and vLLM uses 92.0 % by default" in describe(found)
    assert "set --gpu-memory-utilization 0.96." in describe(found)


def test_a_cache_beyond_host_memory_is_split_or_recomputed():
    """K and V of a token take 32 bytes in a layer and X 16; there is room for 24."""
    model = tiny_model()
    host_bytes = 24 * model.n_layers * JOB.batch_size * JOB.prompt_tokens
    memory = Memory("datasheet", model.weight_bytes + 1e5, host_bytes)
    found = advise(model, machine(memory=memory, h2d=1e8), JOB, NOWHERE)
    assert found.ways.load_s == inf
    assert found.verdict in ("split", "recompute")
    assert "which does not fit the memory" in describe(found)
    assert [one.verdict for one in found.by_context] == ["split", "no room"]


def tight(model, batch: int = 4) -> Memory:
    """Room for the weights, staging slots and a part of the cache."""
    part = batch * JOB.prompt_tokens * model.kv_token_bytes
    return Memory("datasheet", model.weight_bytes + 3 * part, 1e12)


def test_the_largest_batch_meets_the_time_and_the_next_does_not():
    model = tiny_model(n_layers=6)
    hardware = machine(memory=tight(model), h2d=3e6)
    for slo_s in (0.004, 0.02):
        found = advise(model, hardware, JOB, NOWHERE, slo_s).slo
        steps = [
            best_step(DecodeJob(model, hardware, batch, 200).planner(keep=True))
            for batch in (found.largest_batch, found.largest_batch + 1)
            if batch
        ]
        assert steps[-1] > slo_s
        assert steps[:-1] == [one for one in steps[:-1] if one <= slo_s]
        assert found.met is (found.largest_batch >= JOB.batch_size)


def test_an_impossible_limit_has_no_batch():
    found = advise(tiny_model(), machine(), JOB, NOWHERE, 1e-9)
    assert (found.slo.met, found.slo.largest_batch) == (False, 0)
    assert "not even one sequence" in describe(found)
    with pytest.raises(BadInput, match="slo_s"):
        advise(tiny_model(), machine(), JOB, NOWHERE, 0.0)


def test_weights_that_do_not_fit_come_layer_by_layer_and_others_are_refused():
    model = tiny_model(n_layers=12, vocab_size=8)
    less = machine(memory=Memory("datasheet", 80_000, 1e12))  # 87,168 bytes by row, 71,808 else
    found = advise(model, less, replace(JOB, prompt_tokens=8), NOWHERE)
    assert found.plan.schedule == "column"
    assert found.reuse is None
    assert found.settings == ()
    with pytest.raises(DoesNotFit):
        advise(model, machine(memory=Memory("datasheet", 1.0, 1e12)), JOB, NOWHERE)


def test_recordings_bound_the_gain():
    everything = assess_kind(RECORDINGS, "cpu")
    hardware = find_hardware("cpu-xeon-opt-125m")
    model = replace(find_model("opt-125m"), dtype=hardware.dtype)
    found = advise(model, hardware, Workload(4, 300, 1), RECORDINGS)
    assert found.evidence.device_kind == "cpu"
    assert found.evidence.cases == len(everything.cases) > 0
    assert found.evidence.makespan_error_frac == everything.p90_abs_error_frac
    low, high = found.gain_range
    assert low < found.gain < high
    assert f"between {low:.2f} and {high:.2f} times" in describe(found)
    assert found.settings == ()  # its link is emulated


def test_without_a_recording_the_gain_has_no_range():
    assert Evidence.of(RECORDINGS, "cuda-of-nobody") == Evidence("cuda-of-nobody", 0)
    found = advise(tiny_model(), machine(h2d=3e6), JOB, RECORDINGS)
    assert found.gain_range is None
    assert "There is no recording of such a machine" in describe(found)


def test_the_best_upgrade_is_the_largest_sensitivity_of_the_plan():
    found = advise(tiny_model(), machine(h2d=1e6, flops_per_s=1e12), JOB, NOWHERE)
    assert found.best_upgrade.part == "h2d"
    assert found.best_upgrade == max(found.plan.sensitivities, key=lambda one: one.saved_frac)
    assert "the best upgrade is the h2d link" in describe(found)


def test_loading_a_prefix_wins_from_the_length_on_that_restores_say():
    model = tiny_model(max_positions=2000)
    hardware = machine(
        h2d=3e5, restore=replace(PREFILL, lookup_s=SourcedValue("datasheet", 0.05)), flops_per_s=1e7
    )
    found = reuse(model, hardware, 500, "simpy")

    def times(tokens: int) -> tuple[float, float]:
        job = RestoreRequest(prompt_tokens=tokens + 1, cached_tokens=tokens)
        planner = RestorePlanner(model, hardware, job)
        return planner.choice("load-only").ttft_s, planner.choice("compute-only").ttft_s

    assert (found.load_s, found.compute_s) == times(500)
    assert found.split_s <= min(times(500))
    load_s, compute_s = times(found.least_tokens)
    assert load_s < compute_s
    load_s, compute_s = times(found.least_tokens - max(2, found.least_tokens // 64))
    assert load_s >= compute_s
    assert not found.guessed


def settings(*arguments) -> dict[str, str]:
    return {one.setting: one.value for one in runtime_settings(*arguments)}


def test_settings_hold_the_batch_in_the_units_of_each_runtime():
    model = tiny_model()
    small = replace(machine(), memory=Memory("datasheet", model.weight_bytes + 5e9, 1e12))
    found = settings(model, small, CacheBudget(6 * 10**9, 6 * 10**9, 300))
    assert found["--kv-offloading-size"] == "6"  # 5.6 GiB
    assert found["LMCACHE_MAX_LOCAL_CPU_SIZE"] == "6"
    assert found["LMCACHE_MIN_RETRIEVE_TOKENS"] == "300"
    assert found["--hicache-size"] == "6"
    assert "--hicache-ratio" not in found
    roomy = settings(model, machine(), CacheBudget(6 * 10**9, 6 * 10**9, 1))
    assert roomy["--hicache-ratio"] == "2"
    assert "LMCACHE_MIN_RETRIEVE_TOKENS" not in roomy
    assert runtime_settings(model, machine(), CacheBudget(6 * 10**9, 6 * 10**9, None)) == ()


def test_lmcache_holds_all_tokens_of_layers_with_windows_too():
    made = runtime_settings(tiny_model(), machine(), CacheBudget(10**9, 5 * 10**9, 1))
    found = {one.setting: one for one in made}
    assert found["--kv-offloading-size"].value == "1"
    assert found["LMCACHE_MAX_LOCAL_CPU_SIZE"].value == "5"
    assert "all tokens of layers with windows" in found["LMCACHE_MAX_LOCAL_CPU_SIZE"].why


@pytest.mark.parametrize(
    ("link", "chunk", "backend"),
    [
        (Link("datasheet", 1e9), "256", "kernel"),  # no figures by size: the defaults
        (Link("datasheet", 1e9, latency_s=1e-9), "256", "direct"),
        # a chunk of 256 tokens takes 16 us and a latency of 2: 0.89 of the rate; 512 reach 0.94
        (Link("datasheet", 1e9, latency_s=2e-6), "1024", "kernel"),
        (Link("datasheet", 1e9, curve=Curve((1.0, 1e9), (1e-9, 1.0))), "256", "direct"),
    ],
)
def test_chunks_are_as_large_as_the_links_latency_asks(link, chunk, backend):
    found = settings(tiny_model(), machine(h2d=link), CacheBudget(1, 1, 1))  # 64 bytes a token
    assert found["LMCACHE_CHUNK_SIZE"] == chunk
    assert found["--hicache-io-backend"] == backend


def test_every_setting_names_the_page_that_documents_it():
    for one in runtime_settings(tiny_model(), machine(), CacheBudget(10**9, 10**9, 300)):
        assert one.page.startswith("https://docs.")
        assert one.why


def test_contexts_in_which_no_split_can_pay_need_no_lp():
    model, hardware = find_model("llama-3.1-8b"), find_hardware("h100")  # X is larger than K and V
    with patch.object(DecodeProblem, "program", side_effect=AssertionError("an LP")):
        (found,) = by_context(DecodeJob(model, hardware, 8, 8192))
    assert (found.verdict, found.last_tokens) == ("load", model.max_positions - 1)
