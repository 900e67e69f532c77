"""Latent attention and experts: bytes and FLOPs by hand, and what the planner makes of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import LATENT, MLA, MOE, machine, make_plan, tiny_model

from hw import random_weights
from planner.decode.policies import kvpr_tokens
from sim import find_hardware, find_model
from sim.cost.estimate import Estimate
from sim.cost.model import CostModel
from sim.errors import BadInput
from sim.graph.jobs import Workload
from sim.machine.curves import Curve, RaggedGrid
from sim.machine.profile import LatentHeads
from sim.model.kernels import DecodeAttention, ExpertsKernel, ExpertsShape, GroupedMatMul, MatMul
from sim.model.operations import compute_flops, kernels

LITE = find_model("deepseek-v2-lite")
A100 = find_hardware("kvpr-a100")


def attention_elements(model) -> int:
    """Elements of the attention matrices of the first layer."""
    return sum(model.layers[0].attention.matrices(model.hidden_size).values())


def products(op: str, model, batch: int = 1) -> list[tuple[int, int]]:
    """Width and depth of each matrix product of an operation."""
    return [(one.n, one.k) for one in kernels(op, 1, 9, model, batch) if isinstance(one, MatMul)]


def test_a_token_caches_its_latent_and_one_rotary_key():
    assert LITE.kv_token_bytes == (512 + 64) * 2
    assert LITE.x_token_bytes == 2048 * 2
    assert LITE.kv_weight_bytes == 2048 * (512 + 64) * 2


def test_attention_weights_by_hand():
    # queries 8*10, latent 8*6, keys and values of 2 heads 4*(3+5), output 2*5*8.
    assert attention_elements(LATENT) == 80 + 48 + 64 + 80
    through = replace(LATENT, mla=replace(MLA, q_lora_rank=7))
    assert attention_elements(through) == 8 * 7 + 7 * 10 + 48 + 64 + 80


def test_products_of_an_operation_are_its_weights():
    assert products("qkv", LATENT) == [(10, 8), (6, 4), (6, 8)]
    assert products("attention", LATENT) == [(10, 4), (8, 10)]
    assert products("recompute", LATENT) == [(6, 8)]
    read = sum(n * k for op in ("qkv", "attention") for n, k in products(op, LATENT))
    assert read == attention_elements(LATENT)
    through = replace(LATENT, mla=replace(MLA, q_lora_rank=7))
    assert products("qkv", through)[:2] == [(7, 8), (10, 7)]


def attended(batch, rows, model=LATENT):
    return DecodeAttention(batch, rows, model.layers[0].attention)


def test_absorbed_attention_by_hand():
    # 3 sequences, 9 keys, 2 heads: 4+2 elements of a key and 4 of a latent, 2 FLOP each.
    assert attended(3, 9).flops == 3 * 9 * 2 * 2 * (6 + 4)
    linear = 2 * 3 * (10 * 4 + 8 * 10)
    assert compute_flops("attention", 1, 9, LATENT, 3) == 3 * 9 * 2 * 2 * 10 + linear


@pytest.mark.parametrize(("flops_per_s", "seconds"), [(1e12, 3 * 9 * 12 / 9.0), (1.0, 1080.0)])
def test_absorbed_attention_takes_the_longer_of_bytes_and_arithmetic(flops_per_s, seconds):
    hardware = machine(flops_per_s=flops_per_s, memory_bytes_per_s=9.0)
    costs = CostModel(hardware, LATENT, Workload(3, 8, 1))
    assert costs.operations.kernel(attended(3, 9)).seconds == pytest.approx(seconds)


def test_memory_holds_all_experts_and_the_dense_layers():
    model = replace(LATENT, n_layers=3, moe=MOE)
    attention, dense, expert, router = 272, 3 * 8 * 32, 3 * 8 * 6, 8 * 8
    layers = 3 * attention + dense + 2 * (9 * expert + router)
    tables = (64 + 4096) * 8
    assert model.weight_bytes == 2 * (layers + tables)


@pytest.mark.parametrize(("tokens", "touched"), [(1, 2.0), (2, 3.5), (1000, 8.0)])
def test_a_batch_touches_the_experts_it_chooses(tokens, touched):
    shape = ExpertsShape(8, 6, MOE.n_active_experts, MOE.n_routed_experts)
    assert shape.touched(tokens) == pytest.approx(touched)


def test_a_token_computes_with_its_active_experts():
    model = replace(LATENT, moe=MOE)
    # 2 routed and 1 shared expert of three matrices 8 x 6, and the router 8 x 8; 5 sequences.
    assert compute_flops("mlp", 1, 9, model, 5) == 2 * 5 * (3 * 3 * 8 * 6 + 8 * 8)
    (experts,) = (one for one in kernels("mlp", 1, 9, model, 5) if isinstance(one, ExpertsKernel))
    grouped = [one for one in experts.parts if isinstance(one, GroupedMatMul)]
    assert [one.rows for one in grouped] == [10] * 3


def test_time_of_a_grouped_product_is_that_of_reading_each_expert_once():
    model = replace(LATENT, moe=MOE)
    costs = CostModel(machine(flops_per_s=1e30, gemm_bytes_per_s=2.0), model, Workload(1, 8, 1))
    product = GroupedMatMul(rows=2, n=6, k=8, groups=2.0)
    # weights of both 96, input 8 and output 12 elements of 2 bytes at 2 bytes a second
    assert costs.operations.kernel(product).seconds == pytest.approx(96 + 8 + 12)


def test_a_faster_gpu_decodes_experts_faster():
    seconds = [
        CostModel(find_hardware(name), LITE, Workload(16, 4096, 1))
        .operations.compute("mlp", 1, 1)
        .seconds
        for name in ("l40s+pcie4-x16", "a100-sxm-80g+pcie4-x16", "h100-sxm+pcie5-x16")
    ]
    assert seconds == sorted(seconds, reverse=True)
    # 16 tokens touch 1 - (1 - 6/64)^16 of 64 experts: 50.8 of 3 matrices of 2048 x 1408
    read_s = 50.8 * 3 * 2048 * 1408 * 2 / 3.35e12
    assert 1.0 < seconds[-1] / read_s < 1.6


@pytest.mark.parametrize("policy", ["lp", "kvpr"])
def test_nothing_is_recomputed_from_an_x_larger_than_the_latent(policy):
    job = Workload(8, 512, 2)
    plan = make_plan(LITE, A100, job, policy)
    if policy == "lp":
        assert not any(any(step.recomputed_tokens) for step in plan.steps)
        assert plan.makespan_s == plan.baselines["load-all"]
    else:
        assert plan.steps[0].recomputed_tokens == (0,) * LITE.n_layers
        assert kvpr_tokens(LITE, job, A100, 512) == 0


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_nothing_is_recomputed_with_few_key_heads(kv_heads):
    model = tiny_model(n_heads=8, n_kv_heads=kv_heads, head_dim=4, hidden_size=32)
    assert model.x_token_bytes >= model.kv_token_bytes * 2
    plan = make_plan(model, machine(h2d=1e6), Workload(2, 32, 2))
    assert not any(any(step.recomputed_tokens) for step in plan.steps)


def test_the_column_schedule_refuses_experts_with_one_sentence():
    with pytest.raises(BadInput, match=r"deepseek-v2-lite has experts.*use --schedule row"):
        make_plan(LITE, A100, Workload(1, 8, 1), schedule="column")


@pytest.mark.parametrize("name", ["deepseek-v2-lite", "qwen3-vl-8b"])
def test_a_model_without_kernels_is_planned_but_not_run(name):
    model = find_model(name)
    assert make_plan(model, A100, Workload(1, 64, 1), "load-all").makespan_s > 0
    with pytest.raises(BadInput, match=r"can be planned and simulated but not run; families that"):
        random_weights(model, 0, torch.device("cpu"))


def test_latents_are_read_at_the_rate_of_the_nearest_number_of_heads():
    fans = [
        LatentHeads(
            n, 6, RaggedGrid((1.0, 4.0), tuple(Curve((8.0,), (n * b,)) for b in (1.0, 4.0)))
        )
        for n in (1, 8)
    ]
    hardware = machine()
    hardware = replace(hardware, attention=replace(hardware.attention, latent=tuple(fans)))
    for n_heads, seconds, in_range in ((1, 4.0, True), (2, 4.0, False), (8, 32.0, True)):
        model = replace(LATENT, n_heads=n_heads)
        costs = CostModel(hardware, model, Workload(4, 7, 1)).operations
        assert costs.kernel(attended(4, 8, model)) == Estimate(seconds, "datasheet", in_range)
    wide = replace(LATENT, n_heads=1, mla=replace(MLA, kv_lora_rank=10))
    costs = CostModel(hardware, wide, Workload(4, 7, 1)).operations
    assert costs.kernel(attended(4, 8, wide)).seconds == pytest.approx(4.0 * 12 / 6)
