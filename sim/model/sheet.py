"""What a model takes: weights, and the cache and state of one sequence, by layer."""

from __future__ import annotations

from dataclasses import dataclass

from sim.errors import BadInput
from sim.model.attention import Attention
from sim.model.compressed import NoAttention
from sim.model.spec import ModelSpec

SHEET_KV_BITS = (16, 8, 4)
DTYPE_BITS = 16
"""Bits of K, V and X in a sheet, whatever dtype a config names."""


@dataclass(frozen=True, slots=True)
class LayerSheet:
    """Bytes of one layer: of its weights, and of one sequence at the sheet's context.

    Args:
        from_x: whether a token's K and V can be projected from the layer's input X of that token.
    """

    layer: int
    attention: str
    ffn: str
    weight_bytes: int
    kv_bytes: int
    index_bytes: int
    state_bytes: int
    from_x: bool

    @property
    def kind(self) -> tuple[str, str]:
        return self.attention, self.ffn


@dataclass(frozen=True, slots=True)
class Sheet:
    """Bytes of a model, and of one sequence of `context_tokens`.

    Args:
        kv_bits: of an element of K and V; index keys have 8 bits, states those of their config.
        asked_kv_bits: those that the checkpoint asks for; None for the model's dtype.
        x_bytes_per_token: of X of all layers that have attention.
    """

    name: str
    family: str
    parameters: int
    active_parameters: int
    weight_bytes: int
    context_tokens: int
    kv_bits: int
    asked_kv_bits: int | None
    kv_bytes: int
    index_bytes: int
    state_bytes: int
    x_bytes_per_token: int
    layers: tuple[LayerSheet, ...]


def sheet(model: ModelSpec, context: int, kv_bits: int = DTYPE_BITS) -> Sheet:
    """The sheet of a model at a context.

    Raises:
        BadInput: a context below 1, or other bits than 16, 8 or 4.
    """
    if context < 1:
        raise BadInput(f"context(={context}) must be at least 1 token.")
    if kv_bits not in SHEET_KV_BITS:
        raise BadInput(f"kv_bits(={kv_bits}) must be 16, 8 or 4.")

    def kv_bytes(attention: Attention) -> int:
        return attention.kv_elements(context) * kv_bits // 8

    layers = tuple(
        LayerSheet(
            layer=number,
            attention=one.attention.text,
            ffn=one.ffn.text,
            weight_bytes=model.layer_bytes(one),
            kv_bytes=kv_bytes(one.attention),
            index_bytes=one.attention.index_elements(context),
            state_bytes=one.attention.state_bytes(DTYPE_BITS // 8),
            from_x=one.attention.projects_from_x,
        )
        for number, one in enumerate(model.layers)
    )
    with_x = sum(not isinstance(one.attention, NoAttention) for one in model.layers)
    return Sheet(
        name=model.name,
        family=model.family,
        parameters=model.n_parameters,
        active_parameters=model.active_parameters,
        weight_bytes=model.weight_bytes,
        context_tokens=context,
        kv_bits=kv_bits,
        asked_kv_bits=model.kv_bits,
        kv_bytes=sum(one.kv_bytes for one in layers),
        index_bytes=sum(one.index_bytes for one in layers),
        state_bytes=sum(one.state_bytes for one in layers),
        x_bytes_per_token=with_x * model.hidden_size * DTYPE_BITS // 8,
        layers=layers,
    )
