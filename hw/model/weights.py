"""The tensors of a model on one device, in the layout that the kernels read.

Letters in shape comments, here and in the other files of `hw`: B sequences, S tokens of each,
L layers, h hidden size, H query heads, H_kv key/value heads, D head size, f MLP width, V words,
E experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from sim.errors import BadInput
from sim.model.layers import Experts as ExpertSizes
from sim.model.runnable import why_not_run
from sim.model.spec import ModelSpec

TORCH_DTYPE = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
OPT_POSITION_OFFSET = 2
"""OPT's learned position table starts with two rows that no token uses."""

Part = TypeVar("Part")


@dataclass(slots=True)
class Norm:
    """Layer norm (with bias) or RMS norm (without)."""

    weight: Tensor  # [n]
    bias: Tensor | None  # [n]

    def rms(self, x: Tensor, eps: float) -> Tensor:
        """RMS norm over the last dimension, in 32 bit where the weight is."""
        if self.weight.dtype == x.dtype:
            return F.rms_norm(x, x.shape[-1:], self.weight, eps)
        return F.rms_norm(x.float(), x.shape[-1:], self.weight, eps).to(x.dtype)


@dataclass(slots=True)
class Linear:
    """`y = x W^T + b`."""

    weight: Tensor  # [out, in]
    bias: Tensor | None  # [out]

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def rows(self, start: int, stop: int | None) -> Linear:
        """The part that makes outputs [start, stop)."""
        return Linear(self.weight[start:stop], None if self.bias is None else self.bias[start:stop])


@dataclass(slots=True)
class Heads:
    """Attention over K and V of each KV head.

    Q, K and V are fused so that K and V rows are one contiguous slice.
    """

    qkv: Linear  # [(H + 2 H_kv) D, h], rows ordered Q, K, V
    q_norm: Norm | None
    k_norm: Norm | None
    out: Linear  # [h, H D]
    local: bool  # rotary positions have the base of layers with a window
    sinks: Tensor | None  # [H]


@dataclass(slots=True)
class Latents:
    """Latent attention; rows that are rotated have the two halves of a rotation apart."""

    cached: Linear  # [r + d_r, h], the latent and the rotary key
    cached_norm: Norm  # [r]
    down: Linear | None  # [query rank, h]
    down_norm: Norm | None
    asked: Linear  # [H (d_n + d_r), h or query rank]
    up: Tensor  # [H, d_n + d_v, r], to the key and the value of each head
    out: Linear  # [h, H d_v]


@dataclass(slots=True)
class Mlp:
    """One MLP that every token passes through."""

    gate: Linear | None  # [f, h]
    up: Linear  # [f, h]
    down: Linear  # [h, f]


@dataclass(slots=True)
class Experts:
    """MLPs of which each token passes through those that its router chooses.

    Args:
        correction: added to the scores for the choice alone, in 32 bit.
        shared: the MLP of every token, which `shared_gate` may weigh.
    """

    router: Linear  # [E, h]
    correction: Tensor | None  # [E]
    gate_up: Tensor  # [E, 2 f, h], rows of the gate first
    gate_up_bias: Tensor | None  # [E, 2 f]
    down: Tensor  # [E, h, f]
    down_bias: Tensor | None  # [E, h]
    shared: Mlp | None
    shared_gate: Linear | None  # [1, h]


@dataclass(slots=True)
class Layer:
    """One decoder layer; `attention_norm` and `ffn_norm` are of the outputs (Gemma 2 and 3)."""

    input_norm: Norm
    attention: Heads | Latents
    attention_norm: Norm | None
    mlp_norm: Norm
    ffn: Mlp | Experts
    ffn_norm: Norm | None


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


def matrices(part: Any) -> Iterator[Tensor]:
    """The tensors of two or more dimensions in a layer or a part of one, in the order of fields.

    Norms and biases, under 0.1 %, are not among them.
    """
    if isinstance(part, Tensor) and part.dim() > 1:
        yield part
    elif is_dataclass(part):
        for field in fields(part):
            yield from matrices(getattr(part, field.name))


def with_matrices(part: Part, others: Iterator[Tensor]) -> Part:
    """The layer with `others` in place of its `matrices`, in the same order."""
    if isinstance(part, Tensor):
        return next(others) if part.dim() > 1 else part  # type: ignore[return-value]
    if not is_dataclass(part) or isinstance(part, type):
        return part
    changed = {one.name: with_matrices(getattr(part, one.name), others) for one in fields(part)}
    return replace(part, **changed)


def check_runnable(model: ModelSpec, device_kind: str = "cpu") -> None:
    """Refuse a model that is divided over GPUs, or that there are no kernels for.

    Raises:
        BadInput: says so, or names what can run.
    """
    if (reason := why_not_run(model)) is not None:
        raise BadInput(reason)
    has_experts = any(isinstance(layer.ffn, ExpertSizes) for layer in model.groups)
    if device_kind == "cuda" and has_experts and model.dtype != "bfloat16":
        raise BadInput(
            f"{model.name} has experts, which run on a GPU in bfloat16 only, and is planned in "
            f"{model.dtype}; plan it with --dtype bfloat16."
        )
