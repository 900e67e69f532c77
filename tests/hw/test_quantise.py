"""K and V through quantised rows and back, alone and in whole decodes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import make_plan
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import JOB, LLAMA, OPT, DecodeCase, decode_case, filled_cache

from hw import HostCache, prompt_ids, random_weights, resident_decode
from hw.model.quantise import dequantise_into, nearest_original, quantise_into
from planner.decode.policies import baseline_split
from sim import find_hardware
from sim.errors import Mismatch, WrongNumbers
from sim.model.kv_format import QuantisedRow

RECOMPUTE_ALL = 10**6
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
each_width = pytest.mark.parametrize("bits", [8, 4])
each_model = pytest.mark.parametrize("model", [OPT, LLAMA], ids=lambda model: model.name)


def round_trip(kv: torch.Tensor, bits: int, group: int) -> tuple[torch.Tensor, ...]:
    """What a row makes of `kv` [S, B, 2, H_kv, D], the rows, and the scale of each element."""
    row = QuantisedRow(bits, kv[0, 0].numel(), group)
    rows = torch.full((*kv.shape[:2], row.bytes), 0xAB, dtype=torch.uint8, device=kv.device)
    quantise_into(kv, rows, row)
    restored = torch.full_like(kv, torch.nan)
    dequantise_into(rows, restored, row)
    scales = rows[..., row.code_bytes :].view(torch.float16)[..., : row.n_groups].float()
    return restored, rows, scales[..., None].expand(*scales.shape, group).reshape(kv.shape)


@each_width
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(*[st.integers(1, 4)] * 3),
    groups=st.sampled_from([(4, 4), (6, 3), (128, 64), (5, 5)]),
    magnitude=st.floats(1e-3, 1e3),
    offset=st.floats(-1e3, 1e3),
)
def test_no_element_moves_by_more_than_half_a_scale(
    device, bits, dtype, seed, shape, groups, magnitude, offset
):
    tokens, batch, heads = shape
    head_dim, group = groups
    noise = torch.randn(
        (tokens, batch, 2, heads, head_dim), generator=torch.Generator().manual_seed(seed)
    )
    kv = (magnitude * noise + offset).to(device, dtype)
    restored, _, scales = round_trip(kv, bits, group)
    # Rounding to the dtype of the slot, once after the product and once after the sum.
    largest = scales * 2**bits + kv.float().abs()
    rounding = 2 * torch.finfo(dtype).eps * largest + 2**-22
    assert ((restored.float() - kv.float()).abs() <= scales / 2 + rounding).all()


@each_width
def test_a_group_of_equal_elements_comes_back_as_it_was(device, bits):
    values = torch.tensor([0.0, 1.0, -3.5, 1e-3, 60000.0])
    kv = values[:, None, None, None, None].expand(5, 1, 2, 1, 4).contiguous().to(device)
    restored, _, _ = round_trip(kv, bits, 4)
    torch.testing.assert_close(restored, kv, rtol=2e-3, atol=1e-6)


@each_width
def test_a_range_of_tokens_comes_back_by_itself(device, bits):
    kv = torch.randn(6, 2, 2, 2, 8).to(device)
    restored, rows, _ = round_trip(kv, bits, 8)
    part = torch.full_like(kv, torch.nan)
    row = QuantisedRow(bits, 32, 8)
    dequantise_into(rows[2:5], part[2:5], row)
    assert part[2:5].equal(restored[2:5])
    assert part[:2].isnan().all()
    assert part[5:].isnan().all()


@each_width
def test_what_may_have_been_quantised_lies_within_half_a_scale(device, bits):
    kv = torch.randn(3, 2, 2, 2, 8).to(device)
    _, rows, scales = round_trip(kv, bits, 8)
    row = QuantisedRow(bits, 32, 8)
    torch.testing.assert_close(nearest_original(kv, rows, row), kv, rtol=0, atol=1e-6)
    moved = nearest_original(kv + 2 * scales, rows, row)
    assert ((kv + 2 * scales - moved) >= 0.99 * scales).all()
    rows[1] = 0xFF
    assert nearest_original(kv, rows, row)[1].isnan().all()


def quantised_case(backend, model, bits, split=5, **changes) -> DecodeCase:
    job = replace(JOB, kv_bits=bits, **changes)
    if isinstance(split, str):
        hardware = replace(find_hardware("kvpr-a100"), dtype="float32").with_faster("link", 0.01)
        if split == "lp":
            steps = make_plan(model, hardware, job).steps
            split = [step.recomputed_tokens for step in steps]
        else:
            split = baseline_split(split, model, job, hardware)
    return decode_case(backend, model, job, split)


@each_width
@each_model
@pytest.mark.parametrize("split", ["load-all", "lp", "fixed:5", "recompute-all"])
def test_a_run_equals_the_decode_that_sees_the_same_rows(backend, model, bits, split):
    case = quantised_case(backend, model, bits, split)
    executor = case.executor(backend)
    for _ in range(2):
        executor.run()
        found = executor.check()
        assert found["tokens_equal"] is True
        differences = [name for name in found if name.endswith("_difference")]
        assert max(found[name] for name in differences) < 1e-4
        if split == "recompute-all":
            assert found["kv_quantisation_error"] < 1e-4
        else:
            assert 1e-4 < found["kv_quantisation_error"] < 0.2


@each_model
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@each_width
def test_a_run_in_half_precision_passes_its_check(backend, model, bits, dtype):
    case = quantised_case(backend, replace(model, dtype=dtype), bits)
    executor = case.executor(backend)
    executor.run()
    assert executor.check()["tokens_equal"] is True


def test_fewer_bits_cost_more_and_recomputed_tokens_nothing(backend):
    def errors(bits, split):
        case = quantised_case(backend, OPT, bits, split)
        executor = case.executor(backend)
        executor.run()
        found = executor.check()
        return found["kv_quantisation_error"], found["logits_quantisation_error"]

    coarse, fine, none = errors(4, 0), errors(8, 0), errors(4, RECOMPUTE_ALL)
    for large, small, least in zip(coarse, fine, none, strict=True):
        assert large > 4 * small > 4 * least
        assert least < 1e-4


def test_the_reference_of_a_quantised_cache_is_the_decode_of_an_exact_one(backend):
    weights = random_weights(LLAMA, 0, backend.device)
    exact = decode_case(backend, LLAMA).reference
    case = quantised_case(backend, LLAMA, 4)
    assert case.reference.tokens.equal(exact.tokens)
    torch.testing.assert_close(case.reference.logits, exact.logits, rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(case.reference.new_kv, exact.new_kv, strict=True):
        torch.testing.assert_close(mine, theirs)
    rows = decode_as_loaded(weights, case)
    assert not torch.allclose(rows.logits, exact.logits, rtol=1e-3, atol=1e-3)


def decode_as_loaded(weights, case):
    """One step that reads all past tokens from the rows."""
    job = replace(case.graph.workload, gen_tokens=1)
    none = [[0] * weights.model.n_layers]
    return resident_decode(weights, case.cache, job, none)


# The check must be able to fail, or passing it says nothing.


@each_width
@pytest.mark.parametrize("op", ["load_kv", "dequantise", "store_kv"])
def test_a_graph_that_leaves_out_one_token_fails_the_check(backend, bits, op):
    case = quantised_case(backend, LLAMA, bits, 9)
    last = case.graph.workload.gen_tokens - 1
    tasks = tuple(
        replace(task, token_stop=task.token_stop - 1)
        if (task.step, task.layer, task.op) == (last, 2, op)
        else task
        for task in case.graph.tasks
    )
    case.graph = replace(case.graph, tasks=tasks)
    executor = case.executor(backend)
    executor.run()
    with pytest.raises(WrongNumbers):
        executor.check()


@pytest.mark.parametrize("token", [2, -1], ids=["prompt", "generated"])
def test_rows_of_another_token_fail_the_check(backend, token):
    case = quantised_case(backend, OPT, 4)
    executor = case.executor(backend)
    executor.run()
    case.cache.kv[-1][token] = case.cache.kv[-1][3]
    with pytest.raises(WrongNumbers):
        executor.check()


def test_the_prefix_of_a_quantised_cache_is_that_of_its_prompts(backend):
    job = replace(JOB, kv_bits=8)
    weights = random_weights(OPT, 0, backend.device)
    longer = replace(job, batch_size=3, prompt_tokens=20)
    taken = HostCache.empty(OPT, job, backend)
    tokenizer = prompt_ids(OPT, longer, 1)
    taken.take_prefix(filled_cache(weights, longer, backend, tokenizer), job.prompt_tokens)
    filled = filled_cache(weights, job, backend, tokenizer[: job.batch_size, : job.prompt_tokens])
    for mine, theirs in zip(taken.kv, filled.kv, strict=True):
        restored = [torch.empty(job.prompt_tokens, 2, 2, 4, 16) for _ in range(2)]
        for rows, kv in zip((mine, theirs), restored, strict=True):
            dequantise_into(rows[: job.prompt_tokens], kv, taken.row)
        step = 1.01 * restored[1].abs().max() / 127
        assert (restored[0] - restored[1]).abs().max() <= step


def test_a_cache_of_other_bits_is_refused(backend):
    case, other = quantised_case(backend, OPT, 8), quantised_case(backend, OPT, 4)
    with pytest.raises(Mismatch, match="the cache holds"):
        replace(case, cache=other.cache).executor(backend)
