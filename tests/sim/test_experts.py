"""Fused kernels of experts: measured shapes are read back, others take the nearest utilisation."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import MOE, machine, policy_s, tiny_model

from sim import find_hardware, find_model
from sim.cost.model import CostModel
from sim.errors import BadInput
from sim.graph.jobs import Workload
from sim.machine.experts import ExpertsTable
from sim.model.kernels import ExpertsKernel, ExpertsShape
from sim.model.operations import kernels

SHAPE = ExpertsShape(hidden=8, width=6, active=2, routed=8)
TABLE = ExpertsTable(16, 1e6, 1e6, 0.0, (1, 4), ("8 6 2 8 5000 10000",))
"""At full use 1 token takes max(2 * 2 * 144 / 1e6, 2 * 144 * 2 / 1e6) = 576 us."""


def test_a_measured_shape_is_its_roofline_over_its_utilisation():
    curve, measured = TABLE.curve(SHAPE)
    assert measured
    assert curve.at(1) == (pytest.approx(2 * 576e-6), True)
    touched = 8 * (1 - (1 - 2 / 8) ** 4)
    assert curve.at(4) == (pytest.approx(max(4 * 576e-6, touched * 144 * 2e-6)), True)


def test_fewer_bits_in_memory_are_read_faster():
    narrow, measured = replace(TABLE, flops_per_s=1e12).curve(SHAPE, bits=8)
    wide, _ = replace(TABLE, flops_per_s=1e12).curve(SHAPE)
    assert not measured
    assert narrow.at(1)[0] == pytest.approx(wide.at(1)[0] / 2)


def test_another_shape_takes_the_nearest_utilisation():
    two = replace(TABLE, shapes=(*TABLE.shapes, "800 600 2 8 2500 2500"))
    curve, measured = two.curve(ExpertsShape(16, 6, 2, 8))
    assert not measured
    assert curve.at(1)[0] == pytest.approx(2 * 2 * 576e-6)


def test_more_flops_and_more_bandwidth_keep_the_utilisation():
    both = TABLE.faster(2, 2).curve(SHAPE)[0]
    assert both.at(1)[0] == pytest.approx(576e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weight_bits": 5}, "must be 4, 8, 16 or 32"),
        ({"bytes_per_s": 0.0}, "bytes_per_s"),
        ({"floor_s": 2.0}, "floor_s"),
        ({"tokens": (4, 1)}, "rising order"),
        ({"shapes": ()}, "one measured shape"),
        ({"shapes": ("8 6 2 8 5000",)}, "must hold 6 whole numbers"),
        ({"shapes": ("8 6 2 8 x 1",)}, "must hold 6 whole numbers"),
    ],
)
def test_bad_tables_are_refused(changes, words):
    with pytest.raises(BadInput, match=words):
        replace(TABLE, **changes)


def test_the_mlp_of_a_layer_is_priced_by_the_table_of_its_bits():
    model = tiny_model(gated_mlp=True, moe=MOE)
    job = Workload(batch_size=4, prompt_tokens=3, gen_tokens=1)
    plain = machine(flops_per_s=1e30, memory_bytes_per_s=1e30)
    timed = replace(plain, gemm=replace(plain.gemm, experts=(TABLE,)))
    seconds = CostModel(timed, model, job).operations.compute("mlp", 1, 1).seconds
    assert seconds == pytest.approx(TABLE.curve(SHAPE)[0].at(4)[0])
    (fused,) = (one for one in kernels("mlp", 1, 1, model, 4) if isinstance(one, ExpertsKernel))
    assert fused.flops == 2 * 4 * 2 * 3 * 8 * 6
    eight = replace(TABLE, weight_bits=8, shapes=("8 6 2 8 10000 10000",))
    both = replace(plain, gemm=replace(plain.gemm, experts=(TABLE, eight)))
    narrow = CostModel(both, replace(model, weight_bits=8), job).operations.compute("mlp", 1, 1)
    assert narrow.seconds == pytest.approx(eight.curve(SHAPE)[0].at(4)[0])


@pytest.mark.parametrize("batch", [1, 16])
def test_a_faster_device_decodes_experts_no_slower(batch):
    model, job = find_model("deepseek-v2-lite"), Workload(batch, 2048, 1)
    names = ["a100-sxm-80g+pcie4-x16", "h100-sxm+pcie5-x16", "h200+pcie5-x16", "b200+pcie5-x16"]
    steps_s = [policy_s(model, find_hardware(one), job, "resident") for one in names]
    assert steps_s == sorted(steps_s, reverse=True)
    for name, step_s in zip(names, steps_s, strict=True):
        passed = model.n_layers * batch * 2048 * model.kv_token_bytes
        shape = ExpertsShape(2048, 1408, 6, 64)
        idle = shape.routed - shape.touched(batch)
        read = model.weight_bytes - (model.n_layers - 1) * idle * 3 * 2048 * 1408 * 2
        read -= model.vocab_size * model.hidden_size * 2  # one row of the embeddings is read
        peak = next(iter(find_hardware(name).gemm.experts)).bytes_per_s
        assert step_s >= (read + passed) / peak
