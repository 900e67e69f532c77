"""Weights: seeded ones, and ones from a checkpoint's tensors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import CPU, LLAMA, MODELS, QWEN2, QWEN3
from torch import Tensor

from hw import random_weights, weights_from_tensors
from hw.model.weights import Weights
from sim.errors import Mismatch

LAYER = "model.layers.1"


def checkpoint(model) -> dict[str, Tensor]:
    """Random tensors under the names a Llama-like checkpoint has."""
    h, f = model.hidden_size, model.intermediate_size
    shapes = {
        "model.embed_tokens.weight": (model.vocab_size, h),
        "model.norm.weight": (h,),
        "lm_head.weight": (model.vocab_size, h),
    }
    for at in (f"model.layers.{number}" for number in range(model.n_layers)):
        shapes |= {
            f"{at}.input_layernorm.weight": (h,),
            f"{at}.post_attention_layernorm.weight": (h,),
            f"{at}.self_attn.q_proj.weight": (model.q_size, h),
            f"{at}.self_attn.k_proj.weight": (model.kv_size, h),
            f"{at}.self_attn.v_proj.weight": (model.kv_size, h),
            f"{at}.self_attn.o_proj.weight": (h, model.q_size),
            f"{at}.mlp.gate_proj.weight": (f, h),
            f"{at}.mlp.up_proj.weight": (f, h),
            f"{at}.mlp.down_proj.weight": (h, f),
        }
        if model.qkv_bias:
            shapes |= {f"{at}.self_attn.{name}_proj.bias": (model.kv_size,) for name in "kv"}
            shapes[f"{at}.self_attn.q_proj.bias"] = (model.q_size,)
        if model.qk_norm:
            shapes |= {f"{at}.self_attn.{name}_norm.weight": (model.head_dim,) for name in "qk"}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def tensors_of(weights: Weights) -> list[Tensor]:
    """Every tensor of some weights, found by walking their fields."""

    def walk(value: object) -> list[Tensor]:
        if isinstance(value, Tensor):
            return [value]
        if isinstance(value, list):
            return [tensor for item in value for tensor in walk(item)]
        names = getattr(value, "__dataclass_fields__", {})
        return [tensor for name in names for tensor in walk(getattr(value, name))]

    return walk([weights.embed, weights.positions, weights.layers, weights.final_norm])


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_random_weights_repeat_with_their_seed(model):
    first, again, other = (tensors_of(random_weights(model, seed, CPU)) for seed in (3, 3, 4))
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    assert not any(a.equal(b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_random_weights_have_the_parameters_the_spec_counts(model):
    """The spec leaves out norms and biases, which are vectors, and OPT's two unused rows."""
    weights = random_weights(model, 0, CPU)
    matrices = sum(tensor.numel() for tensor in tensors_of(weights) if tensor.dim() == 2)
    matrices += 0 if model.tie_embeddings else weights.head.numel()
    unused = 0 if model.rotary else 2 * model.hidden_size
    assert matrices - unused == model.n_parameters


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_have_the_dtype_of_the_spec(dtype):
    model = replace(LLAMA, dtype=dtype)
    made, loaded = (
        random_weights(model, 0, CPU),
        weights_from_tensors(model, checkpoint(LLAMA), CPU),
    )
    wanted = {getattr(torch, dtype)}
    assert {tensor.dtype for tensor in tensors_of(made) + tensors_of(loaded)} == wanted


def test_tied_embeddings_share_memory():
    tied = replace(LLAMA, tie_embeddings=True)
    tensors = checkpoint(LLAMA)
    del tensors["lm_head.weight"]
    for weights in (random_weights(tied, 0, CPU), weights_from_tensors(tied, tensors, CPU)):
        assert weights.head.data_ptr() == weights.embed.data_ptr()
    untied = random_weights(LLAMA, 0, CPU)
    assert untied.head.data_ptr() != untied.embed.data_ptr()


@pytest.mark.parametrize("model", [LLAMA, QWEN2, QWEN3], ids=lambda model: model.name)
def test_a_checkpoint_lands_in_the_fused_layout(model):
    tensors = checkpoint(model)
    weights = weights_from_tensors(model, tensors, CPU)
    layer = weights.layers[1]
    parts = [tensors[f"{LAYER}.self_attn.{name}_proj.weight"] for name in "qkv"]
    assert layer.attention.qkv.weight.equal(torch.cat(parts))
    assert (layer.attention.qkv.bias is not None) == model.qkv_bias
    assert (layer.attention.k_norm is not None) == model.qk_norm
    assert layer.ffn.gate.weight.equal(tensors[f"{LAYER}.mlp.gate_proj.weight"])
    assert weights.head.equal(tensors["lm_head.weight"])


@pytest.mark.parametrize("name", list(checkpoint(QWEN2)))
def test_a_missing_tensor_is_named(name):
    tensors = checkpoint(QWEN2)
    del tensors[name]
    with pytest.raises(Mismatch, match=f"no tensor '{name}'"):
        weights_from_tensors(QWEN2, tensors, CPU)


def test_a_tensor_of_another_shape_is_named_with_both_shapes():
    name = f"{LAYER}.self_attn.k_proj.weight"
    tensors = checkpoint(LLAMA) | {name: torch.zeros(64, 64)}
    with pytest.raises(Mismatch, match=rf"{name}.*\(64, 64\).*\(16, 64\)"):
        weights_from_tensors(LLAMA, tensors, CPU)
