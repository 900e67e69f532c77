"""Bits of stored weights by hand: formats, scales, modules left out, and the cache's dtype."""

from __future__ import annotations

import json

import pytest

from sim.catalog import DATA
from sim.errors import BadFile
from sim.model.config import load_model_config, model_from_config

LLAMA = json.loads((DATA / "models" / "llama-3.1-8b.json").read_text())
LITE = json.loads((DATA / "models" / "deepseek-v2-lite.json").read_text())
ATTENTION = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024)
MLP = 32 * 3 * 4096 * 14336
TABLES = 2 * 128256 * 4096


def stored(config=LLAMA, **quantised):
    return model_from_config({**config, "quantization_config": quantised}, "stored")


GROUP_128 = {
    "quant_method": "compressed-tensors",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 4, "type": "int", "group_size": 128, "symmetric": True},
        }
    },
    "ignore": ["lm_head"],
}


@pytest.mark.parametrize(
    ("quantised", "weight_bits", "bits"),
    [
        ({"quant_method": "fp8"}, 8, 8),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 8, 8 + 32 / 128**2),
        ({"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head"]}, 8, 8),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 4, 4 + 20 / 128),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 8, 8),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, 4, 4 + 20 / 32),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8, 8),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4, 4.5),
        ({"quant_method": "mxfp4"}, 4, 4.25),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}, 4, 4.5),
        ({"quant_algo": "FP8", "kv_cache_scheme": "FP8"}, 8, 8),
        (GROUP_128, 4, 4 + 16 / 128),
    ],
)
def test_bytes_of_a_dense_model_by_hand(quantised, weight_bits, bits):
    model = stored(**quantised)
    assert model.weight_bits == weight_bits
    assert model.weight_bytes == pytest.approx((ATTENTION + MLP) * bits / 8 + 2 * TABLES)
    assert model.n_parameters == ATTENTION + MLP + TABLES


@pytest.mark.parametrize(
    "names",
    [
        ["model.layers.*.self_attn"],
        ["re:.*self_attn.*"],
        ["*.self_attn.*"],
        [f"model.layers.{layer}.self_attn*" for layer in range(32)],
        ["self_attn"],
    ],
)
def test_modules_left_out_keep_the_dtype(names):
    model = stored(quant_method="modelopt", quant_algo="NVFP4", ignore=["lm_head", *names])
    assert (model.bits.attention, model.bits.dense) == (16, 4.5)
    assert model.weight_bytes == ATTENTION * 2 + MLP * 4.5 / 8 + TABLES * 2


def test_a_group_is_an_average_over_its_layers_and_matrices():
    one = stored(quant_method="fp8", modules_to_not_convert=["model.layers.3.mlp.up_proj"])
    assert one.bits.dense == pytest.approx(8 + 8 / 32 / 3)
    assert one.bits.attention == 8


def test_experts_may_have_other_bits_than_the_rest():
    mixed = stored(
        LITE,
        quant_method="modelopt",
        quant_algo="MIXED_PRECISION",
        quantized_layers={
            f"model.layers.{layer}.mlp.experts.{expert}.up_proj": {"quant_algo": "NVFP4"}
            for layer in range(1, 27)
            for expert in range(64)
        }
        | {f"model.layers.{layer}.self_attn.o_proj": {"quant_algo": "FP8"} for layer in range(27)},
    )
    assert (mixed.bits.experts, mixed.bits.shared, mixed.bits.dense) == (4.5, 16, 16)
    out = 16 * 128 * 2048
    attention = sum(mixed.layers[0].attention.matrices(2048).values())
    assert mixed.bits.attention == pytest.approx(16 - 8 * out / attention)
    assert mixed.weight_bits == 4


def test_the_router_keeps_the_dtype_in_every_format():
    model = stored(LITE, quant_method="fp8")
    router, shared = 64 * 2048, 2 * 1408 * 3 * 2048
    assert model.bits.shared == pytest.approx((16 * router + 8 * shared) / (router + shared))


@pytest.mark.parametrize(
    ("quantised", "bits"),
    [
        ({}, None),
        ({"kv_cache_scheme": {"num_bits": 8, "type": "float"}}, 8),
        ({"kv_cache_quant_algo": "FP8"}, 8),
        ({"kv_cache_quant_algo": "NVFP4"}, 4),
    ],
)
def test_the_cache_that_a_checkpoint_asks_for(quantised, bits):
    assert stored(quant_method="fp8", **quantised).kv_bits == bits


def test_modelopt_writes_a_file_beside_the_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    asked = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": asked}))
    model = load_model_config(tmp_path)
    assert (model.weight_bits, model.kv_bits, model.module_bits) == (8, 8, None)
    assert model.weight_bytes == ATTENTION + MLP + 2 * TABLES


@pytest.mark.parametrize(
    ("quantised", "reason"),
    [
        ({"quant_method": "gguf"}, "quant_method 'gguf' is not supported; supported: fp8"),
        ({"quant_method": "modelopt", "quant_algo": "X"}, "quant_algo 'X' is not supported"),
        ({"quant_method": "fp8", "kv_cache_scheme": "tiny"}, "kv_cache_scheme 'tiny'"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {}},
            "config_groups give 0 widths",
        ),
    ],
)
def test_an_unknown_format_is_refused_by_name(quantised, reason):
    with pytest.raises(BadFile, match=reason):
        stored(**quantised)
