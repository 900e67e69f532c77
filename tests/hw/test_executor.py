"""The executor runs the simulated graph, in order, and its check can fail."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_restores import request
from tiny import JOB, LLAMA, MODELS, OPT, DecodeCase, decode_case, filled_cache, simulated

from hw import DecodeExecutor, check_graph_fits, open_backend, prompt_ids, random_weights
from hw.cache.verify import relative_difference
from planner.decode.lower import lower
from planner.restore.lower import split_graph
from planner.restore.split import RestoreSplit
from sim import TaskGraph, Workload, find_model
from sim.errors import DoesNotFit, Mismatch, WrongNumbers

RECOMPUTE_ALL = 10**6


def test_the_graph_that_runs_is_the_one_that_was_simulated(backend):
    case = decode_case(backend)
    predicted = simulated(case.graph)
    executor = DecodeExecutor(predicted, case.weights, [case.cache], (), backend)
    assert executor.graph is predicted.graph
    assert executor.run().graph is predicted.graph


def test_the_graph_of_a_restore_is_refused(backend):
    case = decode_case(backend)
    with pytest.raises(Mismatch, match="no operation prefill"):
        case.executor(backend, split_graph(OPT, request(), RestoreSplit.even(OPT, 3)))


def test_weights_of_another_model_are_refused(backend):
    case = decode_case(backend)
    others = random_weights(LLAMA, 0, backend.device)
    with pytest.raises(Mismatch, match=r"tiny-opt.*tiny-llama"):
        replace(case, weights=others).executor(backend)


@pytest.mark.parametrize(
    "job", [replace(JOB, batch_size=3), replace(JOB, prompt_tokens=14), replace(JOB, gen_tokens=2)]
)
def test_a_cache_of_another_workload_is_refused(backend, job):
    case = decode_case(backend)
    with pytest.raises(Mismatch, match="the cache holds"):
        replace(case, cache=filled_cache(case.weights, job, backend)).executor(backend)


@pytest.mark.parametrize("split", [0, 5, RECOMPUTE_ALL])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_run_passes_its_check(backend, model, split):
    case = decode_case(backend, model, split=split)
    executor = case.executor(backend)
    executor.run()
    found = executor.check()
    assert found.pop("tokens_equal") is True
    assert all(0 <= value < 1e-4 for value in found.values())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_run_in_half_precision_passes_its_check(backend, dtype):
    """It is fed its own tokens, as `generate` does."""
    case = decode_case(backend, replace(LLAMA, dtype=dtype))
    executor = DecodeExecutor(simulated(case.graph), case.weights, [case.cache], (), backend)
    executor.run()
    executor.references = [case.reference]
    executor.check()


SPLITS = st.tuples(
    *(
        st.lists(
            st.integers(0, JOB.context_tokens(step)),
            min_size=LLAMA.n_layers,
            max_size=LLAMA.n_layers,
        )
        for step in range(JOB.gen_tokens)
    )
)


@settings(max_examples=25, deadline=None)
@given(split=SPLITS)
def test_any_split_of_any_layer_and_step_passes_its_check(device, split):
    with open_backend(device) as backend:
        case = decode_case(backend, LLAMA, split=split)
        executor = case.executor(backend)
        executor.run()
        executor.check()


def test_recomputing_generated_tokens_uses_every_operation(backend):
    job = Workload(batch_size=2, prompt_tokens=6, gen_tokens=6)
    case = decode_case(backend, job=job, split=RECOMPUTE_ALL)
    device_ops = {"embed", "qkv", "recompute", "attention", "mlp", "head"}
    assert {task.op for task in case.graph.tasks} == device_ops | {"load_x", "store_x", "store_kv"}
    executor = case.executor(backend)
    executor.run()
    executor.check()


def test_x_of_generated_tokens_is_stored_where_it_is_recomputed_from(backend):
    case = decode_case(backend, split=RECOMPUTE_ALL)
    new = slice(JOB.prompt_tokens, JOB.max_tokens - 1)  # the last token's X is never needed
    for x in case.cache.x:
        x[JOB.prompt_tokens :] = math.nan
    case.executor(backend).run()
    longer = replace(JOB, prompt_tokens=JOB.max_tokens - 1, gen_tokens=1)
    first = case.cache.next_tokens[:, None]
    generated = torch.cat((first, case.reference.tokens[:-2].T), 1)
    tokenizer = torch.cat((prompt_ids(OPT, JOB, 1), generated), 1)
    prefilled = filled_cache(case.weights, longer, backend, tokenizer)
    for mine, theirs in zip(case.cache.x, prefilled.x, strict=True):
        torch.testing.assert_close(mine[new], theirs[new], rtol=1e-5, atol=1e-4)


def test_running_twice_gives_the_same_tokens(backend):
    case = decode_case(backend, split=RECOMPUTE_ALL)
    executor = case.executor(backend)
    executor.run()
    (first,), (logits,) = executor.tokens, executor.logits
    executor.run()
    assert executor.tokens[0].equal(first)
    assert executor.logits[0].equal(logits)
    executor.check()


def test_the_measured_timeline_has_the_order_of_the_graph(device):
    with open_backend(device, 20e6) as backend:
        case = decode_case(backend, LLAMA)
        timeline = case.executor(backend).run()
    graph = case.graph
    assert [span.task for span in timeline.spans] == list(graph.tasks)
    resolution_s = 0.0 if device == "cpu" else 1e-6
    pairs = [(dep, at) for at, deps in enumerate(graph.dep_indices) for dep in deps]
    for queue in graph.lanes.values():
        pairs += pairwise(queue)
    assert all(timeline.end_s[a] <= timeline.start_s[b] + resolution_s for a, b in pairs)


def test_a_paced_copy_takes_its_time_in_the_timeline():
    with open_backend("cpu", 20e6) as backend:
        case = decode_case(backend, LLAMA)
        timeline = case.executor(backend).run()
    assert all(span.duration_s >= span.task.bytes / 20e6 for span in timeline.spans)


# The check must be able to fail, or passing it says nothing.


def corrupt_kv(case: DecodeCase) -> None:
    case.cache.kv[1][3] += 1.0


def corrupt_x(case: DecodeCase) -> None:
    case.cache.x[1][3] += 1.0


def corrupt_weight(case: DecodeCase) -> None:
    case.weights.layers[1].ffn.up.weight[0] += 1.0


def corrupt_next_token(case: DecodeCase) -> None:
    case.cache.next_tokens[1] += 1


def nan_in_kv(case: DecodeCase) -> None:
    case.cache.kv[0][3, 1, 1, 0, 2] = math.nan


def nan_in_x(case: DecodeCase) -> None:
    case.cache.x[2][3, 1, 7] = math.nan


@pytest.mark.parametrize(
    ("split", "corrupt"),
    [
        (0, corrupt_kv),
        (0, nan_in_kv),
        (RECOMPUTE_ALL, corrupt_x),
        (RECOMPUTE_ALL, nan_in_x),
        (5, corrupt_weight),
        (5, corrupt_next_token),
    ],
)
@pytest.mark.parametrize("model", [OPT, LLAMA], ids=lambda model: model.name)
def test_corrupted_data_fails_the_check(backend, model, split, corrupt):
    case = decode_case(backend, model, split=split)
    corrupt(case)
    executor = case.executor(backend)
    executor.run()
    with pytest.raises(WrongNumbers, match="differs from the resident decode"):
        executor.check()


def test_each_part_of_the_check_can_fail_alone(backend):
    case = decode_case(backend)
    executor = case.executor(backend)
    executor.run()
    reference = case.reference
    last = OPT.n_layers - 1
    old = {**reference.last_kv, last: reference.last_kv[last].clone()}
    old[last][3] += 1.0  # a prompt token, which only a slot can disagree about
    new = [kv.clone() for kv in reference.new_kv]
    new[0][-1] += 1.0  # a generated token of a layer that no slot holds any more
    wrong = (
        replace(reference, tokens=reference.tokens + 1),
        replace(reference, logits=reference.logits + 0.1),
        replace(reference, last_kv=old),
        replace(reference, new_kv=new),
    )
    for other in wrong:
        executor.references = [other]
        with pytest.raises(WrongNumbers):
            executor.check()
    executor.references = [reference]
    executor.check()


@pytest.mark.parametrize(("split", "unused"), [(0, "x"), (RECOMPUTE_ALL, "kv")])
def test_prompt_data_that_a_plan_does_not_load_does_not_matter(backend, split, unused):
    case = decode_case(backend, split=split)
    for tensor in getattr(case.cache, unused):
        tensor[: JOB.prompt_tokens] = math.nan
    executor = case.executor(backend)
    executor.run()
    executor.check()


def shortened(graph: TaskGraph, op: str, layer: int) -> TaskGraph:
    """The graph in which one layer's `op` leaves out its last token in the last step."""
    wrong = [(graph.workload.gen_tokens - 1, layer, op)]
    return replace(
        graph,
        tasks=tuple(
            replace(task, token_stop=task.token_stop - 1)
            if (task.step, task.layer, task.op) in wrong
            else task
            for task in graph.tasks
        ),
    )


@pytest.mark.parametrize("op", ["load_kv", "recompute", "store_kv"])
@pytest.mark.parametrize("layer", range(LLAMA.n_layers))
def test_a_graph_that_leaves_out_one_token_fails_the_check(backend, op, layer):
    case = decode_case(backend, LLAMA, split=9)
    for kv in case.cache.kv:
        kv[JOB.prompt_tokens :] = 0.0
    executor = case.executor(backend, shortened(case.graph, op, layer))
    executor.run()
    with pytest.raises(WrongNumbers):
        executor.check()


@pytest.mark.parametrize("layer", range(OPT.n_layers))
def test_nan_appended_to_the_cache_of_any_layer_fails_the_check(backend, layer):
    case = decode_case(backend)
    executor = case.executor(backend)
    executor.run()
    case.cache.kv[layer][-1] = math.nan
    with pytest.raises(WrongNumbers):
        executor.check()


def test_relative_difference_is_relative_to_the_largest_magnitude():
    assert relative_difference(torch.tensor([1.0, -8.0]), torch.tensor([2.0, -8.0])) == 1 / 8


def test_a_graph_too_large_for_the_device_is_refused_before_it_is_run(backend):
    check_graph_fits(decode_case(backend).graph, backend)
    model, job = find_model("opt-30b"), Workload(10_000, 2000, 1)
    with pytest.raises(DoesNotFit, match=f"this {backend.kind} device"):
        check_graph_fits(lower("row", model, job, [[0] * model.n_layers]), backend)
