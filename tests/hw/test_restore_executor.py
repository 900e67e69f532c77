"""A restore on a device comes to what computing the whole prompt does, whoever does what."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from run_restores import POLICIES, RestoreCase, policy_graphs, request
from tiny import LLAMA, MODELS, OPT, decode_case
from torch.utils.flop_counter import FlopCounterMode

from hw import HostMemory, check_restore_fits, check_runnable_request, open_backend, open_tier
from hw.backends.cuda import cuda_available
from hw.model.chunk_prefill import ChunkPrefill
from hw.tiers.tiers import Lost
from planner.restore.lower import split_graph, two_ended_graph
from planner.restore.split import RestoreSplit
from sim.errors import BadInput, DoesNotFit, Mismatch, WrongNumbers
from sim.graph.claims import claimed
from sim.lanes import COMPUTE

WINDOWED = replace(LLAMA, name="tiny-windows", sliding_window=11, full_attention_layers=(1,))
ALL_WINDOWED = replace(WINDOWED, name="tiny-all-windows", full_attention_layers=())


@pytest.fixture
def cpu():
    with open_backend("cpu") as backend:
        yield backend


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("model", [*MODELS, WINDOWED, ALL_WINDOWED], ids=lambda model: model.name)
def test_every_policy_restores_what_the_prefill_computes(cpu, model, policy):
    case = RestoreCase.of(cpu, model, request())
    executor = case.executor(policy_graphs(model, case.job)[policy])
    for _ in range(2):
        executor.run()
        found = executor.check()
        assert found.pop("tokens_equal") is True
        assert all(0 <= value < 1e-4 for value in found.values())


@pytest.mark.parametrize("tier", ["ssd", "net"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("model", [OPT, WINDOWED, ALL_WINDOWED], ids=lambda model: model.name)
def test_a_tier_behind_host_memory_is_restored_from_through_staging_buffers(
    cpu, model, policy, tier, tmp_path
):
    case = RestoreCase.of(cpu, model, request(tier=tier))
    graph = policy_graphs(model, case.job)[policy]
    if tier == "ssd":
        with case.file(tmp_path / "prefix.kv") as file:
            executor = case.executor(graph, file)
            executor.run()
    else:
        executor = case.executor(graph)
        executor.run()
    assert executor.check()["tokens_equal"] is True
    assert executor.recomputed == []


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("model", [OPT, WINDOWED], ids=lambda model: model.name)
def test_other_requests_in_every_step_change_no_number(cpu, model, policy):
    case = RestoreCase.of(cpu, model, request(gpu_share=0.25))
    executor = case.executor(policy_graphs(model, case.job)[policy])
    executor.run()
    assert executor.check()["tokens_equal"] is True


def test_other_requests_take_their_part_of_every_step(cpu):
    """Of a step of 8 rows 2 are the restore's: it costs what 8 of its own would."""
    case = RestoreCase.of(cpu, OPT, request())

    def flops(n_tokens, n_others, share):
        kv = [torch.zeros_like(layer) for layer in case.executor(two_ended_graph(OPT, case.job)).kv]
        chunk = ChunkPrefill(case.weights, case.reference.prompt, kv, n_others, share)
        x = torch.zeros(n_tokens, 1, OPT.hidden_size)
        counts = []
        for work in (
            lambda: chunk.run(0, n_tokens, range(OPT.n_layers)),
            lambda: chunk.project(0, 0, x),
            chunk.logits,
        ):
            with FlopCounterMode(display=False) as counter, torch.inference_mode():
                work()
            counts.append(counter.get_total_flops())
        return counts

    prefill, project, head = flops(2, 6, 0.25)
    alone_8, project_8, head_8 = flops(8, 0, 1.0)
    assert prefill == pytest.approx(alone_8, rel=0.1)  # fewer keys: the others have none here
    assert (project, head) == (project_8, 4 * head_8)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_restored_within_its_tolerance(cpu, dtype):
    case = RestoreCase.of(cpu, replace(LLAMA, dtype=dtype), request())
    executor = case.executor(policy_graphs(case.weights.model, case.job)["joint"])
    executor.run()
    executor.check()


@pytest.mark.parametrize("prompt", [13, 45, 120])
@pytest.mark.parametrize("link", [2e6, 2e7, 2e8])
def test_the_timeline_tells_who_did_which_tokens(prompt, link):
    with open_backend("cpu", link) as backend:
        case = RestoreCase.of(backend, OPT, request(prompt, prompt - 1))
        executor = case.executor(two_ended_graph(OPT, case.job))
        timeline = executor.run()
        executor.check()
    done = [one for one in claimed(timeline.graph, timeline.start_s) if one.op != "head"]
    tokens = [token for one in done for token in range(one.token_start, one.token_stop)]
    assert sorted(tokens) == list(range(prompt))
    for one, span in zip(done, timeline.spans, strict=False):
        assert (one.n_tokens > 0) == (span.duration_s > 0)
    for queue in timeline.graph.lanes.values():
        spans = [timeline.spans[at] for at in queue]
        assert all(one.end_s <= other.start_s for one, other in pairwise(spans))


def test_a_slow_link_loads_less_than_a_fast_one():
    computed = {}
    for link in (1e6, 1e9):
        with open_backend("cpu", link) as backend:
            case = RestoreCase.of(backend, OPT, request(120, 119))
            timeline = case.executor(two_ended_graph(OPT, case.job)).run()
        done = claimed(timeline.graph, timeline.start_s)
        computed[link] = sum(one.n_tokens for one in done if one.lane == COMPUTE)
    assert computed[1e9] < computed[1e6]


@pytest.mark.parametrize(
    ("model", "rows"), [(WINDOWED, (13, 41, 13)), (ALL_WINDOWED, (13, 13, 13))]
)
def test_a_load_brings_the_window_and_the_rest_stays_unwritten(cpu, model, rows):
    """A window of 11 begins at 41 + 1 - 11 = 31; the chunk of 4 tokens around it begins at 28."""
    case = RestoreCase.of(cpu, model, request())
    executor = case.executor(policy_graphs(model, case.job)["load-only"])
    executor.run()
    executor.check()
    unwritten = [int(kv.isnan().any(-1).flatten(1).all(1).sum()) for kv in executor.kv]
    assert unwritten == [41 - count for count in rows]
    assert not any(
        kv[41 - count :].isnan().any() for kv, count in zip(executor.kv, rows, strict=True)
    )


@pytest.mark.parametrize("window", [41, 42, 45, 60])
def test_a_window_as_long_as_the_prompt_restores_everything(cpu, window):
    model = replace(ALL_WINDOWED, sliding_window=window)
    case = RestoreCase.of(cpu, model, request())
    executor = case.executor(policy_graphs(model, case.job)["load-only"])
    executor.run()
    assert executor.check()["tokens_equal"] is True
    assert not any(kv.isnan().any() for kv in executor.kv)


class LossyMemory(HostMemory):
    """Host memory behind staging buffers that has lost every third piece from the given one on."""

    def __init__(self, cache, number: int) -> None:
        super().__init__(cache)
        self.number = number

    def bring(self, *what):
        kept, lost = [], []
        for piece in super().bring(*what)[0]:
            if self.number % 3:
                kept.append(piece)
            else:
                lost.append(Lost(piece.layer, piece.start, piece.stop, "test"))
            self.number += 1
        return kept, lost


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("policy", [one for one in POLICIES if one != "compute-only"])
@pytest.mark.parametrize("model", [LLAMA, WINDOWED, ALL_WINDOWED], ids=lambda model: model.name)
def test_what_a_tier_has_lost_is_computed_from_what_the_windows_reach(cpu, model, policy, number):
    """Six layers, so that the windows of five reach back over most of the prompt."""
    deep = replace(model, n_layers=6, full_attention_layers=model.full_attention_layers and (1, 4))
    case = RestoreCase.of(cpu, deep, request(90, 85, tier="net"))
    graph = policy_graphs(deep, case.job)[policy]
    executor = case.executor(graph, LossyMemory(case.reference.cache, number))
    executor.run()
    assert executor.check()["tokens_equal"] is True
    assert executor.recomputed


def test_a_load_that_does_not_happen_is_noticed(cpu, monkeypatch):
    case = RestoreCase.of(cpu, OPT, request())
    executor = case.executor(policy_graphs(OPT, case.job)["load-only"])
    executor.run()
    monkeypatch.setattr(cpu, "copy_all", lambda _: None)
    executor.run()
    with pytest.raises(WrongNumbers, match="differs from the resident prefill"):
        executor.check()


def test_what_fails_on_a_lane_is_raised(cpu, monkeypatch):
    case = RestoreCase.of(cpu, OPT, request())
    executor = case.executor(policy_graphs(OPT, case.job)["lp"])
    monkeypatch.setattr(cpu, "copy_all", lambda parts: parts[10**6])
    with pytest.raises(IndexError):
        executor.run()


def test_weights_and_prompts_of_another_plan_are_refused(cpu):
    case = RestoreCase.of(cpu, OPT, request())
    graph = policy_graphs(LLAMA, case.job)["lp"]
    with pytest.raises(Mismatch, match=r"tiny-llama.*tiny-opt"):
        case.executor(graph)
    with pytest.raises(Mismatch, match="the prompt has 45 tokens"):
        case.executor(two_ended_graph(OPT, request(46)))
    with pytest.raises(Mismatch, match=r"no operation .*embed"):
        case.executor(decode_case(cpu).graph)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"tier_kv_bits": 8}, "compressed K and V"), ({"tier_kv_bits": 3}, "compressed K and V")],
)
def test_what_can_only_be_simulated_says_so(changes, message):
    with pytest.raises(BadInput, match=message):
        check_runnable_request(OPT, request(**changes))


def test_a_restore_without_room_is_refused(cpu):
    large = replace(OPT, n_layers=1_000, intermediate_size=2**24)
    graph = split_graph(large, request(), RestoreSplit.even(large, 0))
    with pytest.raises(DoesNotFit, match="lower --prompt"):
        check_restore_fits(graph, cpu)
    check_restore_fits(two_ended_graph(OPT, request()), cpu)


def test_running_again_gives_the_same_numbers(cpu):
    case = RestoreCase.of(cpu, OPT, request())
    executor = case.executor(policy_graphs(OPT, case.job)["lp"])
    executor.run()
    first = [kv.clone() for kv in executor.kv]
    executor.run()
    assert all(torch.equal(one, other) for one, other in zip(first, executor.kv, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not cuda_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("tier", ["dram", "ssd", "net"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("model", [LLAMA, WINDOWED], ids=lambda model: model.name)
def test_a_gpu_restores_what_the_prefill_computes(model, policy, tier, tmp_path):
    with open_backend("cuda") as backend:
        case = RestoreCase.of(backend, model, request(tier=tier))
        graph = policy_graphs(model, case.job)[policy]
        with open_tier(case.job, case.weights, case.reference, tmp_path / "prefix.kv") as source:
            executor = case.executor(graph, source)
            for _ in range(3):
                timeline = executor.run()
                executor.check()
        done = claimed(timeline.graph, timeline.start_s)
        tokens = [
            token
            for one in done
            if one.claim and one.op in ("prefill", "load_kv")
            for token in range(one.token_start, one.token_stop)
        ]
        assert sorted(tokens) in ([], list(range(case.job.cached_tokens)))
