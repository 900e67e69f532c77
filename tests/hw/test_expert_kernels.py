"""Experts: what a token chooses, what it gets from them, and how their time is measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from builders import machine
from tiny import CPU, EXPERTS

from hw import random_weights
from hw.calibrate import experts as calibrated
from hw.model.experts import choose, grouped, one_by_one, routed
from sim.cost.operations import OperationCosts
from sim.graph.jobs import Workload
from sim.model.arithmetic import PLAIN, Router
from sim.model.kernels import ExpertsKernel, ExpertsShape
from sim.model.operations import kernels

SHAPE = ExpertsShape(64, 24, 2, 6)


@pytest.fixture(scope="module")
def experts():
    return random_weights(EXPERTS, 0, CPU).layers[0].ffn


def test_weights_of_the_chosen_by_hand():
    logits = torch.tensor([[1.0, 3.0, 0.0, 2.0]]).log()  # probabilities 1/6, 1/2, 0, 1/3
    weights, chosen = choose(logits, 2, Router(normalised=False))
    assert chosen.tolist() == [[1, 3]]
    torch.testing.assert_close(weights, torch.tensor([[1 / 2, 1 / 3]]))
    weights, _ = choose(logits, 2, Router())
    torch.testing.assert_close(weights, torch.tensor([[3 / 5, 2 / 5]]))


def test_each_token_gets_the_weighted_sum_of_its_own_experts(experts):
    x = torch.randn(7, 64, generator=torch.Generator().manual_seed(1))
    weights, chosen = choose(experts.router(x), 2, PLAIN.router)
    expected = torch.zeros_like(x)
    for token in range(7):
        for weight, number in zip(weights[token], chosen[token], strict=True):
            gate, up = (experts.gate_up[number] @ x[token]).chunk(2)
            expected[token] += weight * (experts.down[number] @ (F.silu(gate) * up))
    torch.testing.assert_close(routed(experts, x, 2, PLAIN), expected)


def test_one_kernel_of_all_experts_equals_one_of_each(experts):
    rows = torch.randn(9, 64, generator=torch.Generator().manual_seed(1))
    chosen = torch.tensor([0, 0, 1, 1, 1, 4, 4, 5, 5])
    torch.testing.assert_close(
        grouped(experts, rows, chosen, PLAIN), one_by_one(experts, rows, chosen, PLAIN)
    )


def test_the_measured_time_of_experts_is_their_predicted_time():
    seconds = {1: 2e-4, 2: 2.7e-4, 4: 3.1e-4, 8: 9e-4}
    medians = {("experts", 64, 24, 2, 6, tokens): took_s for tokens, took_s in seconds.items()}
    hardware = machine()
    gemm = replace(hardware.gemm, bytes_per_s=1e10)
    gemm = replace(gemm, experts=calibrated.block(medians, gemm, 4))
    costs = OperationCosts(replace(hardware, gemm=gemm), EXPERTS, Workload(1, 8, 2))
    for tokens, took_s in seconds.items():
        (kernel,) = (
            one for one in kernels("mlp", tokens, 1, EXPERTS, 1) if isinstance(one, ExpertsKernel)
        )
        assert kernel.shape == SHAPE == calibrated.shape_of(EXPERTS)
        found = costs.kernel(kernel)
        assert found.seconds == pytest.approx(took_s, rel=1e-3)
        assert found.in_range
    assert calibrated.block({}, gemm, 4) == ()
