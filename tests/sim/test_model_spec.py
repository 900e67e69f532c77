"""Model shapes read from configs as published, in the spelling of transformers 4 and 5."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from builders import tiny_model

from hw import random_weights
from sim.catalog import DATA, find_model
from sim.errors import BadFile, BadInput
from sim.model.config import load_model_config, model_from_config

PUBLISHED_PARAMETERS = {
    "opt-125m": 0.125e9,
    "opt-1.3b": 1.316e9,
    "opt-6.7b": 6.658e9,
    "opt-13b": 12.85e9,
    "opt-30b": 29.97e9,
    "llama-2-7b": 6.738e9,
    "llama-2-13b": 13.016e9,
    "llama-3.1-8b": 8.030e9,
    "llama-3.1-70b": 70.55e9,
    "qwen3-8b": 8.19e9,
    "mistral-7b": 7.248e9,
    "mistral-7b-v0.1": 7.242e9,
    "gemma-2-9b": 9.24e9,
    "deepseek-v2-lite": 15.7e9,
}
LLAMA = json.loads((DATA / "models" / "llama-3.1-8b.json").read_text())
OPT = json.loads((DATA / "models" / "opt-13b.json").read_text())
DEEPSEEK = json.loads((DATA / "models" / "deepseek-v2-lite.json").read_text())


def llama(**changes):
    return model_from_config({**LLAMA, **changes}, "changed")


def deepseek(**changes):
    return model_from_config({**DEEPSEEK, **changes}, "changed")


def opt(**changes):
    return model_from_config({**OPT, **changes}, "changed")


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_parameters_are_within_two_percent_of_the_published_count(name):
    assert find_model(name).n_parameters == pytest.approx(PUBLISHED_PARAMETERS[name], rel=0.02)


@pytest.mark.parametrize(
    ("name", "kv_bytes", "x_bytes"),
    [
        ("opt-13b", 20 << 10, 10 << 10),
        ("opt-125m", 3 << 10, 1536),
        ("llama-2-13b", 20 << 10, 10 << 10),
        ("llama-3.1-8b", 4 << 10, 8 << 10),
        ("llama-3.1-70b", 4 << 10, 16 << 10),
        ("qwen3-8b", 4 << 10, 8 << 10),
        ("mistral-7b", 4 << 10, 8 << 10),
        ("gemma-2-9b", 16 << 10, 14 << 10),
        ("deepseek-v2-lite", 1152, 4 << 10),
    ],
)
def test_bytes_of_a_token_in_one_layer(name, kv_bytes, x_bytes):
    model = find_model(name)
    assert (model.kv_token_bytes, model.x_token_bytes) == (kv_bytes, x_bytes)


def test_a_plain_model_as_published():
    model = find_model("opt-13b")
    assert (model.n_layers, model.n_heads, model.n_kv_heads, model.head_dim) == (40, 40, 40, 128)
    assert (model.hidden_size, model.intermediate_size, model.vocab_size) == (5120, 20480, 50272)
    assert not any((model.gated_mlp, model.rotary, model.qk_norm))
    assert all((model.qkv_bias, model.out_bias, model.mlp_bias, model.tie_embeddings))


def test_a_grouped_query_model_as_published():
    model = find_model("llama-3.1-8b")
    assert (model.n_layers, model.n_heads, model.n_kv_heads, model.head_dim) == (32, 32, 8, 128)
    assert (model.hidden_size, model.intermediate_size, model.vocab_size) == (4096, 14336, 128256)
    assert all((model.gated_mlp, model.rotary))
    assert not any((model.qkv_bias, model.out_bias, model.mlp_bias, model.tie_embeddings))
    assert (model.rope_theta, model.norm_eps) == (500_000.0, 1e-5)
    assert model.rope_scaling.factor == 8.0
    assert model.rope_scaling.original_max_positions == 8192


def test_only_qwen3_norms_its_keys():
    assert find_model("qwen3-8b").qk_norm
    assert not find_model("mistral-7b").qk_norm


def test_head_dim_is_read_and_not_derived_from_the_hidden_size():
    model = llama(head_dim=64)
    assert (model.head_dim, model.q_size, model.kv_size) == (64, 2048, 512)
    assert llama(head_dim=None).head_dim == 128


def test_absent_kv_heads_mean_one_for_each_query_head():
    assert llama(num_key_value_heads=None).n_kv_heads == 32


def test_weight_bytes_by_hand():
    # layer: 8*(8 + 2*8) + 8*8 + 2*8*32 = 768; tables: (64 tied + 100 positions) * 8.
    model = tiny_model(n_layers=3, max_positions=100)
    assert model.n_parameters == 3 * 768 + 164 * 8
    assert model.weight_bytes == 2 * model.n_parameters
    assert replace(model, dtype="float32").weight_bytes == 4 * model.n_parameters
    # gated: one more matrix; rotary: no positions; untied: a second table.
    other = replace(model, gated_mlp=True, rotary=True, tie_embeddings=False)
    assert other.n_parameters == 3 * (768 + 8 * 32) + 2 * 64 * 8


def test_the_spelling_of_transformers_5_means_the_same():
    config = {key: value for key, value in LLAMA.items() if key != "torch_dtype"}
    scaling, theta = config.pop("rope_scaling"), config.pop("rope_theta")
    config |= {"dtype": "bfloat16", "rope_parameters": {**scaling, "rope_theta": theta}}
    assert model_from_config(config, "same") == model_from_config(LLAMA, "same")


def test_without_a_dtype_the_weights_are_float32():
    config = {key: value for key, value in LLAMA.items() if key != "torch_dtype"}
    assert model_from_config(config, "plain").dtype == "float32"


def test_the_older_key_of_the_rope_kind_is_read_too():
    scaling = {key: value for key, value in LLAMA["rope_scaling"].items() if key != "rope_type"}
    assert llama(rope_scaling={**scaling, "type": "llama3"}).rope_scaling.factor == 8.0
    assert llama(rope_scaling=None).rope_scaling is None


def test_a_sliding_window_counts_for_qwen_only_when_switched_on():
    assert llama(model_type="mistral", sliding_window=4096).sliding_window == 4096
    qwen = {"model_type": "qwen2", "sliding_window": 4096}
    assert llama(**qwen, use_sliding_window=False).sliding_window is None
    assert llama(**qwen, use_sliding_window=True).sliding_window == 4096


def windows(n_layers=32, **changes):
    """Which layers of a changed config have a window."""
    model = llama(num_hidden_layers=n_layers, sliding_window=64, **changes)
    return [layer for layer in range(n_layers) if model.window(layer) == 64]


GELU = {"hidden_act": None, "hidden_activation": "gelu_pytorch_tanh", "head_dim": 128}


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({"model_type": "mistral"}, list(range(6))),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 4}, [4, 5]),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 6}, []),
        ({"model_type": "gemma2", **GELU}, [0, 2, 4]),
        ({"model_type": "gemma3_text", **GELU}, [0, 1, 2, 3, 4]),
        ({"model_type": "gemma3_text", "sliding_window_pattern": 3, **GELU}, [0, 1, 3, 4]),
        (
            {"model_type": "gemma2", "layer_types": ["full_attention"] * 5 + ["sliding_attention"]}
            | GELU,
            [5],
        ),
    ],
)
def test_the_layers_with_a_window_are_those_of_the_family(changes, layers):
    assert windows(6, **changes) == layers


def test_qwen2_has_a_bias_on_its_projections_alone():
    model = llama(model_type="qwen2")
    assert (model.qkv_bias, model.out_bias, model.mlp_bias) == (True, False, False)


@pytest.mark.parametrize(
    ("config", "field"),
    [(LLAMA, field) for field in ("hidden_size", "intermediate_size", "rms_norm_eps", "vocab_size")]
    + [(OPT, field) for field in ("ffn_dim", "num_hidden_layers", "max_position_embeddings")],
)
def test_a_missing_field_is_named(config, field):
    less = {key: value for key, value in config.items() if key != field}
    with pytest.raises(BadFile, match=f"'{field}' is missing; add it"):
        model_from_config(less, "less")


@pytest.mark.parametrize("value", [None, "gpt2", ["opt"], 7])
def test_an_unknown_architecture_says_how_to_go_on(value):
    with pytest.raises(BadFile, match=r"is not supported; .*--assume-like llama reads it"):
        llama(model_type=value)


def test_an_unknown_architecture_names_the_nearest_one():
    with pytest.raises(BadFile, match="nearest known one is 'qwen3_moe'"):
        llama(model_type="qwen4_moe")


def test_an_unknown_architecture_can_be_read_as_another_and_says_so():
    model = model_from_config({**LLAMA, "model_type": "new", "new_window": 7}, "x", "llama")
    assert (model.name, model.family) == ("x (assumed llama)", "llama")
    assert model.layers == llama().layers
    with pytest.raises(BadInput, match="--assume-like lama: must be one of"):
        model_from_config({**LLAMA, "model_type": "new"}, "x", "lama")
    assert model_from_config(LLAMA, "x", "opt").name == "x"  # a known family is read as itself


@pytest.mark.parametrize(
    ("make", "changes", "reason"),
    [
        (llama, {"num_key_value_heads": 7}, "multiple of n_kv_heads"),
        (llama, {"num_hidden_layers": 0}, "n_layers"),
        (llama, {"num_hidden_layers": 1.5}, "n_layers"),
        (llama, {"num_hidden_layers": True}, "n_layers"),
        (llama, {"head_dim": "128"}, "head_dim"),
        (llama, {"hidden_size": "4096"}, "hidden_size"),
        (llama, {"num_attention_heads": 0}, "num_attention_heads"),
        (llama, {"torch_dtype": "float8"}, "dtype"),
        (llama, {"torch_dtype": ["float16"]}, "dtype"),
        (llama, {"rms_norm_eps": "small"}, "rms_norm_eps"),
        (llama, {"rope_theta": "large"}, "rope_theta"),
        (llama, {"rope_scaling": {"rope_type": "llama3"}}, "'factor'"),
        (llama, {"rope_scaling": [8]}, "rope_scaling"),
        (llama, {"model_type": "mistral", "sliding_window": "wide"}, "sliding_window"),
        (llama, {"model_type": "mistral", "sliding_window": float("inf")}, "sliding_window"),
        (llama, {"model_type": "mistral", "sliding_window": 1}, r"sliding_window\(=1\)"),
        (
            llama,
            {"model_type": "mistral", "sliding_window": 9, "layer_types": ["full_attention"]},
            "layer_types must name",
        ),
        (llama, {"model_type": "gemma2", "sliding_window_pattern": 0}, "sliding_window_pattern"),
        (deepseek, {"kv_lora_rank": None}, "'kv_lora_rank' is missing"),
        (deepseek, {"q_lora_rank": "few"}, r"q_lora_rank\(='few'\)"),
        (deepseek, {"v_head_dim": 0}, r"v_head_dim\(=0\)"),
        (deepseek, {"num_experts_per_tok": 65}, r"n_active\(=65\) must be at most"),
        (deepseek, {"first_k_dense_replace": -1}, r"first_k_dense_replace\(=-1\)"),
        (deepseek, {"first_k_dense_replace": 28}, r"first_k_dense_replace\(=28\)"),
        (deepseek, {"moe_layer_freq": 2}, r"moe_layer_freq"),
        (opt, {"do_layer_norm_before": False}, "post-norm"),
        (opt, {"word_embed_proj_dim": 512}, "post-norm"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_name(make, changes, reason):
    with pytest.raises(BadInput, match=reason):
        make(**changes)


def test_a_config_is_read_from_its_file_or_its_folder(tmp_path):
    folder = tmp_path / "My-Model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    assert load_model_config(folder).name == "My-Model"
    assert load_model_config(folder / "config.json") == load_model_config(folder)
    assert load_model_config(folder, name="other").name == "other"


@pytest.mark.parametrize("text", ["", "{", "[1]", '"opt"', '{"model_type": "opt"}'])
def test_a_broken_config_names_its_file(tmp_path, text):
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(BadFile, match=r"model\.json"):
        load_model_config(tmp_path / "model.json")


def test_an_absent_config_names_its_path(tmp_path):
    with pytest.raises(BadFile, match=r"config\.json does not exist"):
        load_model_config(tmp_path)


def test_fp8_matrices_halve_the_weights_but_not_the_cache():
    plain, fp8 = find_model("llama-3.1-70b"), find_model("llama-3.1-70b-fp8")
    assert (fp8.weight_bits, plain.weight_bits) == (8, None)
    assert fp8.n_parameters == plain.n_parameters
    assert 2 * fp8.layer_weight_bytes == plain.layer_weight_bytes
    assert fp8.kv_token_bytes == plain.kv_token_bytes


@pytest.mark.parametrize(
    ("make", "changes", "lacks"),
    [
        (llama, {"hidden_act": "gelu"}, "activation 'gelu'"),
        (opt, {"activation_function": "gelu"}, "activation 'gelu'"),
        (llama, {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "rope type 'dynamic'"),
        (llama, {"rope_scaling": {"type": "linear", "factor": 8.0}}, "rope type 'linear'"),
    ],
)
def test_what_only_a_run_needs_does_not_stop_a_plan(make, changes, lacks):
    model = make(**changes)
    assert model.not_run == (lacks,)
    assert replace(model, not_run=(), rope_scaling=None) == replace(make(), rope_scaling=None)
    with pytest.raises(BadInput, match=f"{lacks}, which no device kernel computes"):
        random_weights(replace(model, n_layers=1), 0, torch.device("cpu"))


def test_a_field_that_may_change_bytes_is_refused_by_name():
    with pytest.raises(BadFile, match=r"new_window\(=7\): not known for llama"):
        llama(new_window=7)
    for name in ("index_topk", "cross_attention_layers"):
        with pytest.raises(BadFile, match=rf"{name}\(=9\): not known for llama"):
            llama(**{name: 9})
    for kinds in (["linear_attention"] * 32, ["sliding_attention"] * 32, ["full_attention"]):
        with pytest.raises(BadFile, match="layer_types must name 'full_attention' for each of"):
            llama(layer_types=kinds)
    assert llama(new_window=None, initializer_range=0.1, some_flag=True) == llama()
