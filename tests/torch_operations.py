"""Operations of torch by their schema: arguments, out-of-place forms, and attention kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

MAX_PRODUCT = 2**22
"""Multiplications of the largest product in 16 bits that is computed; larger ones give zeros."""


def leaves(nested: object) -> list[Any]:
    """What tuples, lists and dicts hold."""
    found: list[Any] = []
    for one in nested.values() if isinstance(nested, dict) else nested:
        if isinstance(one, (list, tuple, dict)):
            found += leaves(one)
        else:
            found.append(one)
    return found


def mapped(function: Callable[[Any], Any], kind: type, nested: Any) -> Any:
    """The same tuples, lists and dicts with `function` of everything of a kind in them."""
    if isinstance(nested, kind):
        return function(nested)
    if isinstance(nested, dict):
        return {name: mapped(function, kind, one) for name, one in nested.items()}
    if isinstance(nested, (list, tuple)):
        return type(nested)([mapped(function, kind, one) for one in nested])
    return nested


def kind_of(argument: object) -> object:
    """What the dtype of a result depends on."""
    if isinstance(argument, Tensor):
        return argument.dtype, tuple(argument.shape)
    return type(argument), argument  # 1 and 1.0 are equal, and make different dtypes


def same_dense_strides(one: Tensor, other: Tensor) -> bool:
    """Whether one stretch of memory goes into another, as `cudaMemcpyAsync` copies."""
    if one.numel() == 0:
        return True
    dense = sum((n - 1) * step for n, step in zip(one.shape, one.stride(), strict=True)) + 1
    strides = [
        [step for n, step in zip(it.shape, it.stride(), strict=True) if n > 1]
        for it in (one, other)
    ]
    return dense == one.numel() and strides[0] == strides[1]


def by_name(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    names = [argument.name for argument in func._schema.arguments]
    return dict(zip(names, args, strict=False)) | kwargs


@cache
def functional(func: Any) -> Any:
    """The form of an operation with `out=` or in place that makes its result; None without one."""
    schema = func._schema
    written = [one for one in schema.arguments if one.alias_info and one.alias_info.is_write]
    if not written or func.is_view:
        return None
    out = {one.name for one in written if one.kwarg_only}
    kept = [(one.name, str(one.type)) for one in schema.arguments if one.name not in out]
    name = func.overloadpacket.__name__
    packet = getattr(aten, name if out else name.removesuffix("_"), None)
    if packet is None or (packet is func.overloadpacket and not out):
        return None
    if not out and torch.Tag.pointwise not in func.tags:
        return None
    for overload in packet.overloads():
        other = getattr(packet, overload)._schema
        makes = not any(one.alias_info for one in other.arguments)
        if makes and [(one.name, str(one.type)) for one in other.arguments] == kept:
            return getattr(packet, overload)
    return None


def left_out(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether this is a product of benchmark size in 16 bits, for which the CPU needs a second."""
    if func not in (aten.mm.out, aten.addmm.out) or kwargs["out"].dtype == torch.float32:
        return False
    (m, k), n = args[-2].shape, args[-1].shape[1]
    if kwargs["out"].shape != (m, n) or args[-1].shape[0] != k:
        return False
    return m * n * k > MAX_PRODUCT


def new_bias(cls: type, *_: object) -> Tensor:
    return Tensor._make_subclass(cls, torch.empty(0))


def has_flash(params: Any) -> bool:
    return params.query.dtype != torch.float32


def has_efficient(params: Any) -> bool:
    return not params.enable_gqa


def _flash(given: dict[str, Any]) -> Tensor:
    """What the flash kernel computes; query: [B, H, S_q, D], key, value: [B, H_kv, S_kv, D]."""
    heads = given["query"], given["key"], given["value"]
    return _attention(*heads, given["is_causal"], given.get("scale"))


def _efficient(given: dict[str, Any]) -> Tensor:
    """What the memory-efficient kernel computes; query: [B, S_q, H, D], key alike."""
    heads = [given[name].transpose(1, 2) for name in ("query", "key", "value")]
    return _attention(*heads, given["custom_mask_type"] > 0, given.get("scale")).transpose(1, 2)


def _attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None) -> Tensor:
    """Attention in which, if it is causal, the last query sees all keys."""
    mask = torch.ones((q.shape[2], k.shape[2]), dtype=torch.bool).tril(k.shape[2] - q.shape[2])
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask if causal else None, scale=scale, enable_gqa=True
    )


FUSED_ATTENTION = {
    "_scaled_dot_product_flash_attention": _flash,
    "_efficient_attention_forward": _efficient,
}
"""Kernels that no CPU has under these names, as `scaled_dot_product_attention`."""
