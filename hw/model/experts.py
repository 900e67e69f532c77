"""Experts: each token passes through the few that its router chooses, and through those alone.

Letters in shape comments as in `hw.model.weights`; T tokens, k experts that each passes through.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from hw.model.weights import Experts
from sim.model.arithmetic import Arithmetic, Router


def routed(experts: Experts, x: Tensor, n_active: int, arithmetic: Arithmetic) -> Tensor:
    """The weighted sum of each token's routed experts; x: [T, h] -> [T, h]."""
    return mix(experts, x, experts.router(x), n_active, arithmetic)


def mix(
    experts: Experts, x: Tensor, logits: Tensor, n_active: int, arithmetic: Arithmetic
) -> Tensor:
    """As `routed`, from the router's logits, [T, E].

    Tokens are sorted by expert, so that each expert is one product over its own tokens. A GPU
    never tells the host which experts were chosen: the host would wait for it.
    """
    weights, chosen = choose(logits, n_active, arithmetic.router)
    n_experts = experts.gate_up.shape[0]
    order = chosen.flatten().argsort(stable=True)  # [T k], pairs of token and expert by expert
    rows = x[order // n_active]
    made = _grouped if x.device.type == "cuda" else _one_by_one
    mixed = made(experts, rows, chosen.flatten()[order], n_experts)
    by_token = torch.empty_like(mixed).index_copy_(0, order, mixed).unflatten(0, (-1, n_active))
    return (by_token * weights[..., None]).sum(1)


def choose(logits: Tensor, n_active: int, router: Router) -> tuple[Tensor, Tensor]:
    """Weights and numbers of the experts of each token, both [T, k]; logits: [T, E]."""
    scores = logits.softmax(-1, dtype=torch.float32)
    weights, chosen = scores.topk(n_active, dim=-1)
    if router.normalised:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights.to(logits.dtype), chosen


def _grouped(experts: Experts, rows: Tensor, chosen: Tensor, n_experts: int) -> Tensor:
    """All experts in one kernel a product; rows: [T k, h], whose experts `chosen` rise."""
    numbers = torch.arange(n_experts, device=rows.device)
    stops = torch.searchsorted(chosen, numbers, right=True, out_int32=True)
    inner = F.grouped_mm(rows, experts.gate_up.transpose(1, 2), offs=stops)
    return F.grouped_mm(activated(inner), experts.down.transpose(1, 2), offs=stops)


def _one_by_one(experts: Experts, rows: Tensor, chosen: Tensor, n_experts: int) -> Tensor:
    """A product for each expert that was chosen; arguments as of `_grouped`."""
    out, start = torch.empty_like(rows), 0
    for number, count in enumerate(chosen.bincount(minlength=n_experts).tolist()):
        if count:
            inner = activated(F.linear(rows[start : start + count], experts.gate_up[number]))
            torch.mm(inner, experts.down[number].t(), out=out[start : start + count])
            start += count
    return out


def activated(inner: Tensor) -> Tensor:
    """The gate's activation times the rest; inner: [T, 2 f], gate first -> [T, f]."""
    gate, up = inner.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)
