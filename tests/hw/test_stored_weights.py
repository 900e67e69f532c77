"""Weights in FP8 and MXFP4 are loaded as the numbers that they stand for."""

from __future__ import annotations

import json

import hf
import pytest
import torch
from checkpoints import CONFIGS, GQA, save, seeded
from safetensors.torch import load_file, save_file
from test_weights import tensors_of
from tiny import CPU

from hw import open_backend, weights_from_tensors
from hw.model.checkpoint import Checkpoint
from hw.model.stored import from_fp8, from_mxfp4
from sim.errors import Mismatch


@pytest.fixture(scope="module")
def cpu():
    with open_backend("cpu") as backend:
        yield backend


def to_fp8(directory, quantised, scale_name="weight_scale_inv", **config):
    """Store the layers' projections of a checkpoint in FP8; returns codes and scales by name."""
    path, stored = directory / "model.safetensors", {}
    tensors = load_file(path)
    for name in [name for name in tensors if "_proj.weight" in name]:
        codes, scale = quantised(tensors[name])
        stored[name] = codes.to(torch.float8_e4m3fn), scale
        tensors[name], tensors[name.removesuffix("weight") + scale_name] = stored[name]
    save_file(tensors, path, metadata={"format": "pt"})
    text = json.loads((directory / "config.json").read_text())
    text["quantization_config"] = {"quant_method": "fp8", **config}
    (directory / "config.json").write_text(json.dumps(text))
    return stored


def blocks_of(shape, block):
    """Place in the grid and slices of each block."""
    for row, top in enumerate(range(0, shape[0], block[0])):
        for column, left in enumerate(range(0, shape[1], block[1])):
            yield (row, column), (slice(top, top + block[0]), slice(left, left + block[1]))


@pytest.mark.parametrize("block", [(16, 32), (24, 40)], ids=["even", "uneven"])
@pytest.mark.parametrize("case", ["llama", "qwen2-moe"])
def test_fp8_in_blocks(case, block, tmp_path, cpu):
    def quantised(weight):
        grid = [-(-size // one) for size, one in zip(weight.shape, block, strict=True)]
        scale, codes = torch.empty(grid), torch.empty_like(weight)
        for at, part in blocks_of(weight.shape, block):
            scale[at] = weight[part].abs().max() / 448
            codes[part] = weight[part] / scale[at]
        return codes, scale

    save(seeded(CONFIGS[case]()), tmp_path)
    stored = to_fp8(tmp_path, quantised, weight_block_size=block)
    plain = load_file(tmp_path / "model.safetensors")
    for name, (codes, scale) in stored.items():
        plain[name] = codes.float()
        for at, part in blocks_of(codes.shape, block):
            plain[name][part] *= scale[at]
        if not any(size % one for size, one in zip(codes.shape, block, strict=True)):
            assert plain[name].equal(
                hf.integrations.finegrained_fp8.Fp8Dequantize(None)._dequantize_one(codes, scale)
            )
    checkpoint = Checkpoint.open(tmp_path)
    assert (checkpoint.stored_bits, checkpoint.model.weight_bits) == (8, None)
    mine = checkpoint.load(checkpoint.model, cpu)
    expected = weights_from_tensors(checkpoint.model, plain, CPU)
    assert all(a.equal(b) for a, b in zip(tensors_of(mine), tensors_of(expected), strict=True))


@pytest.mark.parametrize("by_row", [False, True], ids=["tensor", "row"])
def test_fp8_with_a_scale_for_a_tensor_or_a_row(by_row, tmp_path, cpu):
    model = seeded(CONFIGS["llama"]())

    def quantised(weight):
        scale = (weight.abs().amax(1, keepdim=True) if by_row else weight.abs().max()) / 448
        return weight / scale, scale

    to_fp8(save(model, tmp_path), quantised, "weight_scale")
    checkpoint = Checkpoint.open(tmp_path)
    mine = checkpoint.load(checkpoint.model, cpu)
    expected = weights_from_tensors(checkpoint.model, model.state_dict(), CPU)
    for a, b in zip(tensors_of(mine), tensors_of(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=2**-4, atol=1e-3)


def test_four_bits_by_hand():
    packed = torch.tensor([[[0x21, 0xF9] + [0] * 14]], dtype=torch.uint8)
    made = from_mxfp4(packed, torch.tensor([[128]], dtype=torch.uint8))  # times 2
    assert made[0, :5].tolist() == [1.0, 2.0, -1.0, -12.0, 0.0]


def test_mxfp4_experts_of_gpt_oss(tmp_path, cpu):
    config = hf.GptOssConfig(
        **{**GQA, "head_dim": 16, "intermediate_size": 64, "num_local_experts": 3},
        num_experts_per_tok=2,
    )
    path = save(seeded(config), tmp_path) / "model.safetensors"
    tensors, plain = load_file(path), {}
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, into, out = tensors.pop(name).shape
        shape = (experts, out, into // 32)
        tensors[f"{name}_blocks"] = torch.randint(
            256, (*shape, 16), dtype=torch.uint8, generator=generator
        )
        tensors[f"{name}_scales"] = torch.randint(
            118, 124, shape, dtype=torch.uint8, generator=generator
        )
        plain[name] = hf.integrations.mxfp4.convert_moe_packed_tensors(
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"], dtype=torch.float32
        )
    save_file(tensors, path)
    text = json.loads((tmp_path / "config.json").read_text())
    text["quantization_config"] = {"quant_method": "mxfp4"}
    (tmp_path / "config.json").write_text(json.dumps(text))
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.stored_bits == 4
    mine = checkpoint.load(checkpoint.model, cpu)
    expected = weights_from_tensors(checkpoint.model, {**tensors, **plain}, CPU)
    assert all(a.equal(b) for a, b in zip(tensors_of(mine), tensors_of(expected), strict=True))


def test_scales_that_are_absent_or_do_not_fit_are_named(tmp_path):
    codes = torch.ones(6, 4)
    with pytest.raises(Mismatch, match=r"'w' has shape \(2, 2\).*\(6, 4\) in blocks of \(2, 2\)"):
        from_fp8("w", codes, torch.ones(2, 2), (2, 2))
    to_fp8(save(seeded(CONFIGS["llama"]()), tmp_path), lambda weight: (weight, torch.ones(())), "s")
    with pytest.raises(Mismatch, match=r"is in FP8 and has no scale .*weight_scale_inv'"):
        Checkpoint.open(tmp_path)
