"""Published models against oracles: counts of parameters, transformers, others' bytes."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from importlib.util import find_spec

import pytest
import torch

from sim.catalog import DATA, find_model, model_names
from sim.errors import BadFile
from sim.model.config import READERS, load_model_config, model_from_config
from sim.model.sheet import sheet

BILLION = 1e9
PUBLISHED = {
    "deepseek-v2-lite": (15.7, 2.4),
    "deepseek-v3": (671, 37),
    "deepseek-v4-flash": (284, 13),
    "deepseek-v4-pro": (1573, 49),
    "gemma-4-26b-a4b": (25.2, 3.8),
    "gemma-4-31b": (30.7, 30.7),
    "glm-5": (744, 40),
    "gpt-oss-120b": (116.8, 5.1),
    "gpt-oss-20b": (20.9, 3.6),
    "kimi-k2": (1026, 32),
    "llama-3.1-405b": (405.9, 405.9),
    "llama-4-maverick": (400, 17),
    "llama-4-scout": (109, 17),
    "mimo-v2-flash": (309, 15),
    "minimax-m2.5": (229, 10),
    "mixtral-8x22b": (141, 39),
    "mixtral-8x7b": (46.7, 12.9),
    "nemotron-3-nano-30b-a3b": (31.6, 3.2),
    "nemotron-3-super-120b-a12b-fp8": (120.6, 12.1),
    "nemotron-3-ultra-550b-a55b": (550, 55),
    "nemotron-super-49b": (49.9, 49.9),
    "qwen3-0.6b": (0.6, 0.6),
    "qwen3-235b-a22b": (235, 22),
    "qwen3-30b-a3b": (30.5, 3.3),
    "qwen3-32b": (32.8, 32.8),
    "qwen3-8b": (8.2, 8.2),
    "qwen3-coder-480b-a35b": (480, 35),
    "qwen3.5-122b-a10b": (122, 10),
    "qwen3.5-27b": (27, 27),
    "qwen3.5-397b-a17b": (397, 17),
}
"""Billions of parameters, all and active, on the models' cards and in their reports."""


def near(count: float, published: float) -> bool:
    """Within 1 %, or the published count is this one rounded to its last digit."""
    digits = len(str(published).partition(".")[2])
    return abs(count / published - 1) < 0.01 or round(count, digits) == published


def test_parameters_of_thirty_models_are_the_published_ones():
    off = {}
    for name, (total, active) in PUBLISHED.items():
        model = find_model(name)
        counted = model.n_parameters / BILLION, model.active_parameters / BILLION
        if not (near(counted[0], total) and near(counted[1], active)):
            off[name] = counted
    # Scout's published 109 B count its vision tower; the others' active ones are rounded down.
    assert set(off) <= {"llama-4-scout", "glm-5", "deepseek-v2-lite", "qwen3-30b-a3b"} | {
        "nemotron-3-super-120b-a12b-fp8"
    }
    for name, (total, active) in off.items():
        assert total == pytest.approx(PUBLISHED[name][0], rel=0.02)
        assert active == pytest.approx(PUBLISHED[name][1], rel=0.025)


# Small models of transformers: our matrices have exactly as many elements as theirs.

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "num_hidden_layers": 4,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
ROUTED = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_routed_experts": 8}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 12,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    **ROUTED,
}
INDEX = {"index_n_heads": 2, "index_head_dim": 8, "index_topk": 16}
GATED_DELTA = {
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}
FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": 64},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {},
    "gemma3_text": {},
    "phi3": {"pad_token_id": 0, "head_dim": None},
    "glm4": {"pad_token_id": 0},
    "seed_oss": {},
    "cohere2": {"layer_types": None, "pad_token_id": 0},
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 32,
    },
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "glm4_moe": {**ROUTED, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "gpt_oss": {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 64},
    "minimax_m2": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "deepseek_v32": {**LATENT, **INDEX},
    "glm_moe_dsa": {**LATENT, **INDEX},
    "llama4_text": {
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 40,
        "interleave_moe_layer_step": 2,
    },
    "gemma4_text": {
        "num_global_key_value_heads": 1,
        "global_head_dim": 16,
        "attention_k_eq_v": True,
        "sliding_window": 64,
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
        "hidden_size_per_layer_input": 0,
        "enable_moe_block": True,
        "num_experts": 8,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
    },
    "qwen3_next": {
        **GATED_DELTA,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 24,
    },
    "qwen3_5_text": GATED_DELTA,
    "nemotron_h": {
        "hybrid_override_pattern": "ME*-",
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "n_groups": 2,
        "ssm_state_size": 8,
        "conv_kernel": 4,
        "moe_shared_expert_intermediate_size": 24,
        "n_shared_experts": 1,
        "moe_latent_size": 20,
        **ROUTED,
    },
    "mimo_v2_flash": {
        "v_head_dim": 8,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_head_dim": 12,
        "swa_v_head_dim": 8,
        "sliding_window": 64,
        "hybrid_layer_pattern": [0, 1, 1, 1],
        "moe_layer_freq": [0, 1, 1, 1],
        **ROUTED,
    },
}


def is_matrix(name: str, one: torch.Tensor) -> bool:
    """Norms, biases and gates of one output are vectors, which no sheet counts."""
    if "conv1d.weight" in name:
        return True
    return one.dim() > 1 and min(one.shape) > 1 and "bias" not in name


@pytest.mark.parametrize("family", FAMILIES)
def test_matrices_are_those_of_transformers(family):
    transformers = pytest.importorskip("transformers")
    given = {**SMALL, **FAMILIES[family]}
    given = {key: value for key, value in given.items() if value is not None}
    config = transformers.AutoConfig.for_model(family, **given)
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(config)
    matrices = sum(one.numel() for name, one in theirs.named_parameters() if is_matrix(name, one))
    ours = model_from_config({"model_type": family, **given}, family)
    assert ours.n_parameters == matrices


# Configs that others collected, and bytes that others computed.

needs_configs = pytest.mark.skipif(
    find_spec("aiconfigurator_core") is None, reason="aiconfigurator-core is not installed"
)


def collected() -> dict[str, str]:
    """Paths of the 89 configs in aiconfigurator-core 0.12.0, by the name of the model."""
    folder = resources.files("aiconfigurator_core") / "model_configs"
    end = "_config.json"
    paths = {one.name.removesuffix(end): str(one) for one in folder.iterdir()}
    return {
        name: path
        for name, path in paths.items()
        if path.endswith(end) and not path.endswith(f"_hf_quant{end}")
    }


@needs_configs
def test_collected_configs_are_read_or_refused_by_field():
    configs, refused = collected(), {}
    for name, path in configs.items():
        try:
            load_model_config(path, name)
        except BadFile as error:
            refused[name] = str(error)
    assert len(configs) == 89
    assert len(configs) - len(refused) >= 86, refused
    assert all("is not supported" in text or "=" in text for text in refused.values())


@pytest.fixture(scope="module")
def calculator():
    """The calculator of kvcache-simulator 0.1.3 and its models by the name of the config.

    It reads its 0.2 MB of YAML for each question, which takes longer than all else here.
    """
    module = pytest.importorskip("kvcache_sim.calculator")
    start, end = "https://huggingface.co/", "/raw/main/config.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_models_data", cache(module.load_models_data))
        models = module.load_models_data()["models"]
        yield (
            module,
            {one["source_url"].removeprefix(start).removesuffix(end): one for one in models},
        )


def source_of(name: str) -> str:
    text = json.loads((DATA / "models" / f"{name}.json").read_text())["_source"]
    return text.removeprefix("https://huggingface.co/").removesuffix("/raw/main/config.json")


OTHER_REPOSITORIES = {
    "kimi-k3": "moonshotai/Kimi-K3/blob/main/config.json",
    "deepseek-v4-flash": "deepseek-ai/DeepSeek-V4-Flash-0731",
    "deepseek-v4-pro": "deepseek-ai/DeepSeek-V4-Pro-0813",
    "gemma-4-31b": "google/gemma-4-31B",
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B-Instruct",
    "llama-3.1-70b": "meta-llama/Llama-3.1-70B-Instruct",
}
"""Names that the calculator has for models that have the same layers as ours."""


@pytest.mark.parametrize("context", [4096, 131_072])
def test_bytes_of_a_sequence_are_those_of_the_calculator(context, calculator):
    module, known = calculator
    compared = 0
    for name in model_names():
        model = known.get(OTHER_REPOSITORIES.get(name, source_of(name)))
        if model is None:
            continue
        precisions = {"precision": "bf16_fp16", "indexer_precision": "fp8_int8"}
        theirs = module.calculate_cache_size(model, tokens=context, **precisions)
        whole = module.calculate_cache_size(
            model, tokens=context, include_linear_attention_state=True, **precisions
        )
        index_bytes = theirs.indexer_bytes
        if name == "minimax-m3":  # its runtime keeps index keys in 16 bits; a sheet has 8
            index_bytes /= 2
        ours = sheet(find_model(name), context)
        assert ours.kv_bytes == pytest.approx(theirs.kv_bytes, rel=1e-3), name
        assert ours.index_bytes == pytest.approx(index_bytes, rel=1e-3), name
        states = whole.total_bytes - theirs.total_bytes
        assert ours.state_bytes == pytest.approx(states, rel=1e-3), name
        compared += 1
    assert compared >= 23


def test_every_family_has_a_reader_of_few_lines():
    assert len(READERS) > 40
    for reader in set(READERS.values()):
        code = reader.__code__
        last = max(line for *_, line in code.co_lines() if line is not None)
        assert last - code.co_firstlineno < 60, reader.__name__


@pytest.mark.parametrize("name", model_names())
def test_a_sheet_is_the_sum_of_its_layers(name):
    model = find_model(name)
    made = sheet(model, 4096)
    layers = sum(one.weight_bytes for one in made.layers)
    assert len(made.layers) == model.n_layers
    assert 0 <= made.weight_bytes - layers <= made.weight_bytes
    assert made.kv_bytes == sum(one.kv_bytes for one in made.layers)
    assert 0 < made.active_parameters <= made.parameters
    assert sheet(model, 4096, 8).kv_bytes * 2 == made.kv_bytes
    longer = sheet(model, 8192)
    assert longer.state_bytes == made.state_bytes
    assert longer.kv_bytes >= made.kv_bytes
