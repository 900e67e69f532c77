"""Decoder weights in the layout the kernels read, random or from named tensors.

Letters in shape comments, here and in the other files of `hw`: B sequences, S tokens of each,
L layers, h hidden size, H query heads, H_kv key/value heads, D head size, f MLP width, V words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sim.errors import BadInput, Mismatch
from sim.model.spec import RUNNABLE_FAMILIES, ModelSpec

TORCH_DTYPE = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
OPT_POSITION_OFFSET = 2
"""OPT's learned position table starts with two rows that no token uses."""


@dataclass(slots=True)
class Norm:
    """Layer norm (with bias) or RMS norm (without)."""

    weight: Tensor  # [n]
    bias: Tensor | None  # [n]


@dataclass(slots=True)
class Linear:
    """`y = x W^T + b`."""

    weight: Tensor  # [out, in]
    bias: Tensor | None  # [out]


@dataclass(slots=True)
class Layer:
    """One decoder layer; Q, K and V are fused so that K and V rows are one contiguous slice."""

    input_norm: Norm
    qkv: Linear  # [(H + 2 H_kv) D, h], rows ordered Q, K, V
    q_norm: Norm | None
    k_norm: Norm | None
    out: Linear  # [h, H D]
    mlp_norm: Norm
    gate: Linear | None  # [f, h]
    up: Linear  # [f, h]
    down: Linear  # [h, f]


@dataclass(slots=True)
class Weights:
    """A whole model on one device."""

    model: ModelSpec
    embed: Tensor  # [V, h]
    positions: Tensor | None  # [max_positions + OPT_POSITION_OFFSET, h]
    layers: list[Layer]
    final_norm: Norm
    head: Tensor  # [V, h]

    @property
    def device(self) -> torch.device:
        return self.embed.device


def check_runnable(model: ModelSpec) -> None:
    """Refuse a model that is divided over GPUs, or whose family there are no kernels for.

    Raises:
        BadInput: says so, or names the families that can run.
    """
    if model.tensor_parallel > 1:
        raise BadInput(
            f"the plan is for {model.tensor_parallel} GPUs that share {model.name} (--tp), which "
            "can be planned and simulated but not run: a run needs one GPU."
        )
    if model.family not in RUNNABLE_FAMILIES:
        raise BadInput(
            f"{model.name} is of family {model.family}, which can be planned and simulated but not "
            f"run; families that run: {', '.join(RUNNABLE_FAMILIES)}."
        )
    if model.not_run:
        raise BadInput(
            f"{model.name} has {' and '.join(model.not_run)}, which no device kernel computes; it "
            "can be planned and simulated but not run."
        )


def random_weights(model: ModelSpec, seed: int, device: torch.device) -> Weights:
    """Seeded random weights, scaled so that activations keep their size from layer to layer."""
    check_runnable(model)
    generator = torch.Generator(device=device).manual_seed(seed)
    dtype = TORCH_DTYPE[model.dtype]

    def draw(*shape: int, std: float) -> Tensor:
        values = torch.empty(shape, dtype=dtype, device=device)
        return values.normal_(0.0, std, generator=generator)

    def linear(out_size: int, in_size: int, biased: bool) -> Linear:
        bias = draw(out_size, std=0.1) if biased else None
        return Linear(draw(out_size, in_size, std=in_size**-0.5), bias)

    def norm(size: int, biased: bool) -> Norm:
        weight = draw(size, std=0.1).add_(1.0)
        return Norm(weight, draw(size, std=0.1) if biased else None)

    h, layer_norm = model.hidden_size, model.family == "opt"

    def layer() -> Layer:
        return Layer(
            input_norm=norm(h, layer_norm),
            qkv=linear(model.q_size + 2 * model.kv_size, h, model.qkv_bias),
            q_norm=norm(model.head_dim, False) if model.qk_norm else None,
            k_norm=norm(model.head_dim, False) if model.qk_norm else None,
            out=linear(h, model.q_size, model.out_bias),
            mlp_norm=norm(h, layer_norm),
            gate=linear(model.intermediate_size, h, model.mlp_bias) if model.gated_mlp else None,
            up=linear(model.intermediate_size, h, model.mlp_bias),
            down=linear(h, model.intermediate_size, model.mlp_bias),
        )

    # With a tied head, an embedding that stood out would answer every token with itself.
    embed_std = h**-0.5 if model.tie_embeddings else 1.0
    embed = draw(model.vocab_size, h, std=embed_std)
    return Weights(
        model=model,
        embed=embed,
        positions=None
        if model.rotary
        else draw(model.max_positions + OPT_POSITION_OFFSET, h, std=embed_std),
        layers=[layer() for _ in range(model.n_layers)],
        final_norm=norm(h, layer_norm),
        head=embed if model.tie_embeddings else draw(model.vocab_size, h, std=h**-0.5),
    )


def weights_from_tensors(
    model: ModelSpec, tensors: Mapping[str, Tensor], device: torch.device
) -> Weights:
    """Weights from tensors under their Hugging Face names.

    Raises:
        Mismatch: a tensor that the config calls for is absent or has another shape.
    """
    return assemble_weights(model, tensors.get, device)


def assemble_weights(
    model: ModelSpec, read: Callable[[str], Tensor | None], device: torch.device
) -> Weights:
    """Copy the tensors that `model` calls for to the device, one by one, into our layout.

    Args:
        read: the tensor of a Hugging Face name, anywhere and in any float dtype; None if absent.

    Raises:
        Mismatch: a tensor that the config calls for is absent or has another shape.
    """
    check_runnable(model)
    dtype = TORCH_DTYPE[model.dtype]
    opt = model.family == "opt"

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    def fill(out: Tensor, name: str) -> Tensor:
        tensor = read(name)
        if tensor is None:
            raise Mismatch(
                f"the checkpoint has no tensor {name!r}, which its config.json asks for; use the "
                "config.json of these weights, or all of the weight files."
            )
        if tensor.shape != out.shape:
            raise Mismatch(
                f"tensor {name!r} has shape {tuple(tensor.shape)} and config.json asks for "
                f"{tuple(out.shape)}; use the config.json of these weights."
            )
        return out.copy_(tensor)

    def linear(name: str, out_size: int, in_size: int, biased: bool) -> Linear:
        bias = fill(empty(out_size), f"{name}.bias") if biased else None
        return Linear(fill(empty(out_size, in_size), f"{name}.weight"), bias)

    def norm(name: str, size: int) -> Norm:
        bias = fill(empty(size), f"{name}.bias") if opt else None
        return Norm(fill(empty(size), f"{name}.weight"), bias)

    h, f = model.hidden_size, model.intermediate_size
    root = "model.decoder" if opt else "model"
    qkv_sizes = [model.q_size, model.kv_size, model.kv_size]

    def fused(at: str) -> Linear:
        made = Linear(empty(sum(qkv_sizes), h), empty(sum(qkv_sizes)) if model.qkv_bias else None)
        for kind, whole in (("weight", made.weight), ("bias", made.bias)):
            if whole is not None:
                for letter, part in zip("qkv", whole.split(qkv_sizes), strict=True):
                    fill(part, f"{at}.{letter}_proj.{kind}")
        return made

    def layer(number: int) -> Layer:
        at = f"{root}.layers.{number}"
        mlp = at if opt else f"{at}.mlp"
        return Layer(
            input_norm=norm(f"{at}.{'self_attn_layer_norm' if opt else 'input_layernorm'}", h),
            qkv=fused(f"{at}.self_attn"),
            q_norm=norm(f"{at}.self_attn.q_norm", model.head_dim) if model.qk_norm else None,
            k_norm=norm(f"{at}.self_attn.k_norm", model.head_dim) if model.qk_norm else None,
            out=linear(
                f"{at}.self_attn.{'out_proj' if opt else 'o_proj'}", h, model.q_size, model.out_bias
            ),
            mlp_norm=norm(f"{at}.{'final_layer_norm' if opt else 'post_attention_layernorm'}", h),
            gate=None if opt else linear(f"{mlp}.gate_proj", f, h, model.mlp_bias),
            up=linear(f"{mlp}.{'fc1' if opt else 'up_proj'}", f, h, model.mlp_bias),
            down=linear(f"{mlp}.{'fc2' if opt else 'down_proj'}", h, f, model.mlp_bias),
        )

    embed = fill(empty(model.vocab_size, h), f"{root}.embed_tokens.weight")
    positions = None
    if opt:
        rows = model.max_positions + OPT_POSITION_OFFSET
        positions = fill(empty(rows, h), f"{root}.embed_positions.weight")
    head = embed
    if not model.tie_embeddings:
        head = fill(empty(model.vocab_size, h), "lm_head.weight")
    return Weights(
        model=model,
        embed=embed,
        positions=positions,
        layers=[layer(number) for number in range(model.n_layers)],
        final_norm=norm(f"{root}.{'final_layer_norm' if opt else 'norm'}", h),
        head=head,
    )
