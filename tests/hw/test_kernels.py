"""Each kernel against its formula, written out plainly, and against its siblings."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tiny import CPU, LLAMA, MODELS, OPT, QWEN3
from torch import Tensor

from hw import random_weights
from hw.model.kernels import Kernels, linear_into
from hw.model.rope import rotary_tables
from hw.model.weights import OPT_POSITION_OFFSET, Linear

MAX_TOKENS = 32

each_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def kernels_of(model) -> Kernels:
    return Kernels(random_weights(model, 0, CPU), MAX_TOKENS)


def empty_kv(model, tokens: int, batch: int) -> Tensor:
    return torch.full((tokens, batch, 2, model.n_kv_heads, model.head_dim), math.nan)


def attention_by_hand(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """query: [D], keys, values: [S, D] -> [D]."""
    scores = keys.double() @ query.double() / math.sqrt(query.shape[0])
    return (torch.softmax(scores, 0) @ values.double()).float()


@each_model
@torch.inference_mode()
def test_recomputed_kv_equals_what_the_prefill_stored(model):
    kernels = kernels_of(model)
    layer = kernels.weights.layers[0]
    stored, x = empty_kv(model, 7, 2), torch.empty(7, 2, model.hidden_size)
    kernels.causal_attention(layer, draw(2, 7, model.hidden_size), stored, x)
    recomputed = empty_kv(model, 7, 2)
    kernels.project_kv(layer, x, recomputed, 0)
    torch.testing.assert_close(recomputed, stored)


@each_model
@torch.inference_mode()
def test_recomputed_kv_equals_what_each_decode_step_appended(model):
    kernels = kernels_of(model)
    layer = kernels.weights.layers[1]
    first, tokens = 5, 4
    appended, x = empty_kv(model, tokens, 2), torch.empty(tokens, 2, model.hidden_size)
    for step, hidden in enumerate(draw(tokens, 2, model.hidden_size)):
        kernels.qkv(layer, hidden, appended[step : step + 1], x[step], first + step)
    recomputed = empty_kv(model, tokens, 2)
    kernels.project_kv(layer, x, recomputed, first)
    torch.testing.assert_close(recomputed, appended)


@each_model
@torch.inference_mode()
def test_prefill_of_the_last_token_equals_its_decode_step(model):
    kernels = kernels_of(model)
    layer = kernels.weights.layers[0]
    before = draw(2, 6, model.hidden_size)
    prefilled, kv, x = before.clone(), empty_kv(model, 6, 2), torch.empty(6, 2, model.hidden_size)
    kernels.causal_attention(layer, prefilled, kv, x)
    hidden, row, x_row = before[:, 5].clone(), empty_kv(model, 1, 2), torch.empty_like(x[0])
    queries = kernels.qkv(layer, hidden, row, x_row, 5)
    kernels.attention(layer, hidden, queries, torch.cat((kv[:5], row)))
    torch.testing.assert_close(x_row, x[5])
    torch.testing.assert_close(hidden, prefilled[:, 5])


@each_model
@torch.inference_mode()
def test_a_group_of_query_heads_shares_one_key_head(model):
    kernels = kernels_of(model)
    queries, kv = (
        draw(2, model.n_heads, model.head_dim),
        draw(9, 2, 2, model.n_kv_heads, model.head_dim, seed=1),
    )
    heads = kernels.weights.layers[0].attention
    mixed = kernels.attend.step(heads, queries, kv).view(2, model.n_heads, model.head_dim)
    group = model.n_heads // model.n_kv_heads
    for batch in range(2):
        for head in range(model.n_heads):
            keys, values = kv[:, batch, 0, head // group], kv[:, batch, 1, head // group]
            by_hand = attention_by_hand(queries[batch, head], keys, values)
            torch.testing.assert_close(mixed[batch, head], by_hand)


@torch.inference_mode()
def test_opt_norm_has_mean_zero_before_its_affine_part():
    kernels = kernels_of(OPT)
    norm, x = kernels.weights.final_norm, draw(5, OPT.hidden_size) + 3.0
    plain = (kernels.norm(norm, x) - norm.bias) / norm.weight
    torch.testing.assert_close(plain.mean(-1), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(plain.std(-1, correction=0), torch.ones(5), atol=1e-4, rtol=0)


@torch.inference_mode()
def test_llama_norm_divides_by_the_root_mean_square():
    kernels = kernels_of(LLAMA)
    norm, x = kernels.weights.final_norm, draw(5, LLAMA.hidden_size) + 3.0
    expected = x / x.square().mean(-1, keepdim=True).sqrt() * norm.weight
    torch.testing.assert_close(kernels.norm(norm, x), expected)


@torch.inference_mode()
def test_mlp_adds_to_the_hidden_state():
    kernels = kernels_of(LLAMA)
    layer, hidden = kernels.weights.layers[0], draw(3, LLAMA.hidden_size)
    x = kernels.norm(layer.mlp_norm, hidden)
    gate = x @ layer.ffn.gate.weight.T
    expected = hidden + (gate / (1 + torch.exp(-gate)) * (x @ layer.ffn.up.weight.T)) @ (
        layer.ffn.down.weight.T
    )
    kernels.mlp(layer, hidden)
    torch.testing.assert_close(hidden, expected)


@torch.inference_mode()
def test_opt_positions_start_behind_two_unused_rows():
    kernels = kernels_of(OPT)
    token = torch.tensor([[17, 3]])
    expected = (
        kernels.weights.embed[[17, 3]]
        + kernels.weights.positions[9 + OPT_POSITION_OFFSET : 11 + OPT_POSITION_OFFSET]
    )
    torch.testing.assert_close(kernels.embed(token, 9)[0], expected)


@pytest.mark.parametrize("biased", [True, False])
@torch.inference_mode()
def test_linear_into_writes_the_product_into_the_given_memory(biased):
    linear = Linear(draw(6, 8), draw(6, seed=1) if biased else None)
    x, out = draw(5, 8, seed=2), torch.full((7, 6), math.nan)
    linear_into(linear, x, out[1:6])
    expected = x @ linear.weight.T + (linear.bias if biased else 0.0)
    torch.testing.assert_close(out[1:6], expected)
    assert out[[0, 6]].isnan().all()


def turned(model, x: Tensor, position: int) -> Tensor:
    """x: [D] as one head of one token at `position`."""
    kernels = kernels_of(model)
    moved = x.clone().expand(1, 1, 1, -1).contiguous()
    kernels.attend.rotate(moved, position)
    return moved.flatten()


@pytest.mark.parametrize("model", [LLAMA, QWEN3], ids=lambda model: model.name)
def test_rotation_keeps_lengths_and_leaves_position_zero_alone(model):
    x = draw(model.head_dim)
    torch.testing.assert_close(turned(model, x, 0), x)
    torch.testing.assert_close(turned(model, x, 11).norm(), x.norm())


def test_rotated_scores_depend_only_on_the_distance():
    query, key = draw(LLAMA.head_dim), draw(LLAMA.head_dim, seed=1)
    near = turned(LLAMA, query, 9) @ turned(LLAMA, key, 4)
    far = turned(LLAMA, query, 30) @ turned(LLAMA, key, 25)
    torch.testing.assert_close(near, far)


def test_learned_positions_leave_keys_unrotated():
    x = draw(OPT.head_dim)
    assert turned(OPT, x, 11).equal(x)


def test_llama3_scaling_keeps_fast_wavelengths_and_stretches_slow_ones():
    plain = replace(LLAMA, head_dim=16, rope_scaling=None)
    scaled = replace(plain, rope_scaling=LLAMA.rope_scaling)
    # Angle of token 1 is the frequency; sines of these are below a quarter turn.
    before, after = (rotary_tables(model, 2, CPU)[1][1, :8].asin() for model in (plain, scaled))
    wavelengths, scaling = 2 * math.pi / before, scaled.rope_scaling
    fast = wavelengths < scaling.original_max_positions / scaling.high_freq_factor
    slow = wavelengths > scaling.original_max_positions / scaling.low_freq_factor
    assert fast.any()
    assert slow.any()
    assert (~fast & ~slow).any()
    torch.testing.assert_close(after[fast], before[fast])
    torch.testing.assert_close(after[slow], before[slow] / scaling.factor)
    blended = after[~fast & ~slow] / before[~fast & ~slow]
    assert ((1 / scaling.factor < blended) & (blended < 1)).all()
