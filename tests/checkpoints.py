"""Tiny models of `transformers`, saved as checkpoints, and a tokenizer for them."""

from __future__ import annotations

from pathlib import Path

import hf
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "vocab_size": 331,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
GQA = {**SMALL, "intermediate_size": 96, "num_key_value_heads": 2}
EXPERTS = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
LOUD = ("q_proj", "v_proj", "out_proj", "o_proj")
CONFIGS = {
    "opt": lambda: hf.OPTConfig(**SMALL, ffn_dim=96, word_embed_proj_dim=64),
    "llama": lambda: hf.LlamaConfig(**GQA),
    "llama-tied": lambda: hf.LlamaConfig(
        **GQA, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "mistral": lambda: hf.MistralConfig(**GQA, head_dim=24, sliding_window=None),
    "mistral-window": lambda: hf.MistralConfig(**GQA, sliding_window=7),
    "qwen2": lambda: hf.Qwen2Config(**GQA),
    "qwen3": lambda: hf.Qwen3Config(**GQA, head_dim=16),
    "gemma3": lambda: hf.Gemma3TextConfig(**GQA, head_dim=16, sliding_window=7),
    "gpt-oss": lambda: hf.GptOssConfig(
        **GQA, head_dim=16, num_local_experts=4, num_experts_per_tok=2
    ),
    "deepseek": lambda: hf.DeepseekV3Config(
        **{**GQA, "num_key_value_heads": 8, "moe_intermediate_size": 24, "n_routed_experts": 8},
        kv_lora_rank=24,
        q_lora_rank=20,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=12,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
    ),
    "mixtral": lambda: hf.MixtralConfig(**GQA, num_local_experts=4),
    "qwen2-moe": lambda: hf.Qwen2MoeConfig(**GQA, **EXPERTS, shared_expert_intermediate_size=24),
}


def seeded(config: hf.PretrainedConfig) -> hf.PreTrainedModel:
    """A model with weights large enough that no two logits tie and every layer is heard.

    Attention is heard most: a model that hears its last token alone repeats it.
    """
    torch.manual_seed(8)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_(0.0 if name.endswith("bias") else 1.0, 0.1)
            else:
                gain = 3.0 if any(part in name for part in LOUD) else 1.0
                parameter.normal_(0.0, gain * parameter.shape[-1] ** -0.5)
    return model


def save(model: hf.PreTrainedModel, directory: Path, sharded: bool = False) -> Path:
    """Write config and safetensors, in one file or in several small ones."""
    model.save_pretrained(directory, max_shard_size="60KB" if sharded else "1GB")
    return directory


def add_tokenizer(directory) -> Tokenizer:
    """A tokenizer whose word `w7` is id 7 and which puts `<s>`, id 1, before every text."""
    vocabulary = {f"w{number}": number for number in range(331) if number != 1}
    made = Tokenizer(models.WordLevel({**vocabulary, "<s>": 1}, "w0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    made.add_special_tokens(["<s>"])
    made.save(str(directory / "tokenizer.json"))
    return made
