"""Experts: what a token chooses, what it gets from them, and how their time is measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from builders import machine
from run_restores import RestoreCase, request
from tiny import CPU, EXPERTS

from hw import open_backend, random_weights
from hw.calibrate import experts as calibrated
from hw.model.experts import choose, grouped, one_by_one, routed, weigh
from planner.restore.lower import compute_only_graph
from sim.cost.operations import OperationCosts
from sim.errors import WrongNumbers
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
    chosen = choose(logits, 2, Router())
    assert chosen.tolist() == [[1, 3]]
    for router, expected in (
        (Router(normalised=False), [1 / 2, 1 / 3]),
        (Router(), [3 / 5, 2 / 5]),
        (Router("chosen"), [3 / 5, 2 / 5]),
        (Router("sigmoid", normalised=False, scale=2.0), [2 * 3 / 4, 2 * 2 / 3]),
    ):
        torch.testing.assert_close(weigh(logits, chosen, router), torch.tensor([expected]))


def test_groups_and_the_correction_count_for_the_choice():
    logits = torch.tensor([[0.9, 0.0, 0.5, 0.5, 0.8, 0.1]]).logit()
    grouped_by_two = Router("sigmoid", n_groups=3, top_groups=1)
    assert choose(logits, 2, Router("sigmoid")).tolist() == [[0, 4]]
    assert sorted(choose(logits, 2, grouped_by_two)[0].tolist()) == [2, 3]
    correction = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.7])
    assert choose(logits, 2, grouped_by_two, correction)[0].tolist() == [5, 4]


def test_below_32_bit_a_run_follows_the_experts_of_its_reference():
    with open_backend("cpu") as backend:
        for dtype, follows in (("float32", False), ("bfloat16", True)):
            case = RestoreCase.of(backend, replace(EXPERTS, dtype=dtype), request())
            assert (case.reference.chosen is not None) == follows
            if follows:
                assert {one.shape for one in case.reference.chosen} == {(45, 2)}
                executor = case.executor(compute_only_graph(case.weights.model, case.job))
                case.reference.chosen[0] = case.reference.chosen[0].flip(0)
                executor.run()
                with pytest.raises(WrongNumbers):
                    executor.check()


def test_each_token_gets_the_weighted_sum_of_its_own_experts(experts):
    x = torch.randn(7, 64, generator=torch.Generator().manual_seed(1))
    chosen = choose(experts.router(x), 2, PLAIN.router)
    other = (chosen + 1) % 6
    for follow in (None, other):
        made, numbers = routed(experts, x, 2, PLAIN, follow)
        assert numbers.equal(chosen if follow is None else other)
        weights = weigh(experts.router(x), numbers, PLAIN.router)
        expected = torch.zeros_like(x)
        for token in range(7):
            for weight, number in zip(weights[token], numbers[token], strict=True):
                gate, up = (experts.gate_up[number] @ x[token]).chunk(2)
                expected[token] += weight * (experts.down[number] @ (F.silu(gate) * up))
        torch.testing.assert_close(made, expected)


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
