"""Products without a table of their own, priced by the utilisation of shapes around them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import machine, tiny_model

from sim.cost.matmul import MatmulCosts
from sim.cost.model import CostModel
from sim.graph.jobs import Workload
from sim.machine.curves import Curve
from sim.machine.profile import GemmTable
from sim.machine.utilisation import UtilisationTable
from sim.model.kernels import MatMul

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
    head = MatMul(512, TINY.vocab_size, 8)
    assert products(both, small).estimate(SHAPE)[0] == products(both).estimate(SHAPE)[0] / 2
    assert products(wide, small).estimate(SHAPE) == products(wide).estimate(SHAPE)
    assert products(both, small).estimate(head) == products(both).estimate(head)
    bits = [products(one, small).weight_bits for one in (both, wide)]
    assert bits == [8, 16]


def test_the_planner_gets_the_sampled_rows_as_knots():
    costs = CostModel(with_utilisation(16), TINY, Workload(2, 500, 1))
    assert 512 in costs.operations.token_knots("recompute", 600)  # 1,024 rows of a batch of 2
