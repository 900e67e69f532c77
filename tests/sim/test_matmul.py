"""Products without a table of their own, priced by the utilisation of shapes around them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import machine, tiny_model

from sim.catalog import find_hardware, find_model
from sim.cost.matmul import MatmulCosts
from sim.cost.model import CostModel
from sim.graph.jobs import Workload
from sim.machine.curves import Curve
from sim.machine.profile import GemmTable
from sim.machine.utilisation import UtilisationTable
from sim.model.kernels import MatMul
from sim.model.spec import ModuleBits

TINY = tiny_model()
SHAPE = MatMul(512, 16, 8)


def products(hardware, model=TINY):
    return MatmulCosts(hardware.gemm, model)


def with_utilisation(*bits, source="measured"):
    """Half of the peak in 16 bits, all of it in 8, at a device of 1e9 FLOP/s."""
    tables = tuple(
        UtilisationTable(
            weight_bits=one,
            flops_per_s=1e9,
            bytes_per_s=1e12,
            floor_s=0.0,
            m=(1, 1024),
            n=(4, 64),
            k=(4, 64),
            shapes=(("5000 5000",) if one == 16 else ("10000 10000",)) * 4,
        )
        for one in bits
    )
    base = machine()
    return replace(base, gemm=replace(base.gemm, source=source, utilisation=tables))


def test_a_product_goes_at_the_utilisation_of_the_shapes_around_it():
    found = products(with_utilisation(16)).estimate(SHAPE)
    assert found == (pytest.approx(2 * 2 * 512 * 16 * 8 / 1e9), "measured", True)


def test_a_product_outside_the_sampled_shapes_or_rows_says_so():
    made = products(with_utilisation(16))
    assert made.estimate(MatMul(512, 128, 8))[1:] == ("fitted", False)
    seconds, *origin = made.estimate(MatMul(2048, 16, 8))
    assert origin == ["measured", False]
    assert seconds == pytest.approx(2 * 2 * 2048 * 16 * 8 / 1e9)


def test_a_shape_with_a_table_of_its_own_keeps_it():
    hardware = with_utilisation(16)
    table = GemmTable(16, 8, Curve((1.0, 1024.0), (3.0, 3.0)))
    hardware = replace(hardware, gemm=replace(hardware.gemm, tables=(table,)))
    assert products(hardware).estimate(SHAPE)[0] == 3.0
    assert products(hardware).estimate(MatMul(512, 8, 8))[0] < 1.0


def test_weights_of_eight_bits_take_their_own_table_and_the_head_keeps_sixteen():
    small = replace(TINY, weight_bits=8)
    both, wide = with_utilisation(16, 8), with_utilisation(16)
    head = MatMul(512, TINY.vocab_size, 8, "head")
    assert products(both, small).estimate(SHAPE)[0] == products(both).estimate(SHAPE)[0] / 2
    assert products(both, small).estimate(head) == products(both).estimate(head)
    bits = [products(one, small).measured_bits for one in (both, wide)]
    assert bits == [8, 16]


def test_weights_of_eight_bits_are_read_in_half_the_time_where_only_sixteen_were_measured():
    hardware, small = with_utilisation(16), replace(TINY, weight_bits=8)
    slow = replace(hardware.gemm.utilisation[0], flops_per_s=1e30, bytes_per_s=1e6)
    hardware = replace(hardware, gemm=replace(hardware.gemm, utilisation=(slow,)))
    # half the peak; weights 16 x 8, operand 1 x 8 and result 1 x 16 of 2 bytes at 1e6 B/s
    shape = MatMul(1, 16, 8)
    assert products(hardware).estimate(shape)[0] == pytest.approx(2 * 2 * (128 + 8 + 16) / 1e6)
    seconds, *origin = products(hardware, small).estimate(shape)
    assert seconds == pytest.approx(2 * (128 + 2 * 8 + 2 * 16) / 1e6)
    assert origin == ["fitted", False]


def test_weights_of_eight_bits_are_read_in_half_the_time_without_any_table():
    hardware = machine(flops_per_s=1e30, gemm_bytes_per_s=1e6)
    small = replace(TINY, weight_bits=8)
    shape, head = MatMul(1, 16, 8), MatMul(1, TINY.vocab_size, 8, "head")
    assert products(hardware).estimate(shape)[0] == pytest.approx(2 * (128 + 8 + 16) / 1e6)
    assert products(hardware, small).estimate(shape)[0] == pytest.approx((128 + 48) / 1e6)
    assert products(hardware, small).estimate(head) == products(hardware).estimate(head)


def test_weights_of_eight_bits_scale_the_table_of_their_own_shape():
    hardware = machine(flops_per_s=1e30, gemm_bytes_per_s=1e6)
    table = GemmTable(16, 8, Curve((1.0, 1024.0), (3.0, 3.0)))
    hardware = replace(hardware, gemm=replace(hardware.gemm, tables=(table,)))
    seconds, *origin = products(hardware, replace(TINY, weight_bits=8)).estimate(MatMul(1, 16, 8))
    assert seconds == pytest.approx(3.0 * (128 + 48) / (2 * (128 + 8 + 16)))
    assert origin == ["datasheet", False]


@pytest.mark.parametrize("name", ["h100", "h200+pcie5-x16", "a100-sxm-80g+pcie4-x16"])
def test_a_decode_step_of_eight_bit_weights_takes_about_as_long_as_reading_them(name):
    hardware, model = find_hardware(name), find_model("llama-3.1-70b-fp8")
    costs = CostModel(hardware, model, Workload(1, 64, 1)).operations
    layers_s = model.n_layers * sum(costs.compute(op, 1, 64).seconds for op in ("qkv", "mlp"))
    layers_s += model.n_layers * costs.matmul(MatMul(1, model.hidden_size, model.q_size)).seconds
    read_s = model.n_layers * model.layer_weight_bytes / (hardware.gemm.bytes_per_s or 0)
    assert 1.0 <= layers_s / read_s < 1.45  # the rest is launches, norms and utilisation


def test_the_planner_gets_the_sampled_rows_as_knots():
    costs = CostModel(with_utilisation(16), TINY, Workload(2, 500, 1))
    assert 512 in costs.operations.token_knots("recompute", 600)  # 1,024 rows of a batch of 2


MIXED = ModuleBits(attention=16.0, dense=4.5, experts=4.5, shared=8.0, head=16.0, embeddings=16.0)


@pytest.mark.parametrize(
    ("weights", "bits"), [("attention", 16), ("dense", 4.5), ("shared", 8), ("head", 16)]
)
def test_each_group_of_weights_is_read_by_its_own_bits(weights, bits):
    hardware = machine(flops_per_s=1e30, gemm_bytes_per_s=1e6)
    model = replace(TINY, weight_bits=4, module_bits=MIXED)
    seconds = products(hardware, model).estimate(MatMul(1, 16, 8, weights))[0]
    assert seconds == pytest.approx((128 * bits / 8 + 2 * (8 + 16)) / 1e6)


@pytest.mark.parametrize(
    ("activation_bits", "rate"), [(None, 1e9), (8, 2e9), (4, 4e9)], ids=["W4A16", "W4A8", "W4A4"]
)
def test_weights_of_four_bits_are_multiplied_in_the_bits_of_their_activations(
    activation_bits, rate
):
    hardware = machine(flops_per_s=1e9)
    gemm = replace(hardware.gemm, flops_8bit_per_s=2e9, flops_4bit_per_s=4e9)
    model = replace(TINY, weight_bits=4, module_bits=MIXED, activation_bits=activation_bits)
    made = products(replace(hardware, gemm=gemm), model)
    shape = MatMul(512, 16, 8)
    assert made.estimate(shape)[0] == pytest.approx(shape.flops / rate)
    # With a table of 8 bits, operands of 4 go at its utilisation and twice its rate.
    table = with_utilisation(16, 8).gemm.utilisation
    timed = replace(gemm, utilisation=table)
    seconds, _, inside = products(replace(hardware, gemm=timed), model).estimate(shape)
    of_table = {None: 5e8, 8: 1e9, 4: 2e9}[activation_bits]
    assert (seconds, inside) == (pytest.approx(shape.flops / of_table), False)


def test_weights_of_four_bytes_are_read_in_twice_the_time_of_two():
    hardware = with_utilisation(16)
    slow = replace(hardware.gemm.utilisation[0], flops_per_s=1e30, bytes_per_s=1e6)
    hardware = replace(hardware, gemm=replace(hardware.gemm, utilisation=(slow,)))
    wide = products(hardware, replace(TINY, dtype="float32"))
    seconds, _, inside = wide.estimate(MatMul(1, 1600, 800))
    assert seconds == pytest.approx(2 * products(hardware).estimate(MatMul(1, 1600, 800))[0], 0.01)
    assert not inside
