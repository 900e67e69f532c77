"""Experts: each token passes through the few that its router chooses, and through those alone.

Letters in shape comments as in `hw.model.weights`; T tokens, k experts that each passes through.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from hw.model.weights import Experts, Linear
from sim.model.arithmetic import Arithmetic, Router


def routed(
    experts: Experts, x: Tensor, n_active: int, how: Arithmetic, follow: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The weighted sum of each token's routed experts, and which ones these were.

    Args:
        x: [T, h].
        follow: [T, k], experts to pass through instead of the router's choice.

    Returns:
        [T, h] and [T, k].
    """
    logits = experts.router(x)
    if how.router.scoring == "sigmoid":  # in 32 bit, as its choice is a fine one
        logits = F.linear(x.float(), experts.router.weight.float())
    chosen = choose(logits, n_active, how.router, experts.correction) if follow is None else follow
    return mix(experts, x, weigh(logits, chosen, how.router), chosen, how), chosen


def mix(experts: Experts, x: Tensor, weights: Tensor, chosen: Tensor, how: Arithmetic) -> Tensor:
    """The weighted sum of each token's experts; x: [T, h], weights and chosen: [T, k] -> [T, h].

    Tokens are sorted by expert, so that each expert is one product over its own tokens. A GPU
    never tells the host which experts were chosen: the host would wait for it.
    """
    n_active = chosen.shape[1]
    order = chosen.flatten().argsort(stable=True)  # [T k], pairs of token and expert by expert
    rows = x[order // n_active]
    made = grouped if x.device.type == "cuda" else one_by_one
    mixed = made(experts, rows, chosen.flatten()[order], how)
    by_token = torch.empty_like(mixed).index_copy_(0, order, mixed).unflatten(0, (-1, n_active))
    return (by_token * weights[..., None]).sum(1).to(x.dtype)


def choose(
    logits: Tensor, n_active: int, router: Router, correction: Tensor | None = None
) -> Tensor:
    """Numbers of the experts of each token, [T, k]; logits: [T, E]."""
    scores = logits
    if router.scoring == "sigmoid":
        scores = logits.float().sigmoid()
        scores = _within_groups(scores if correction is None else scores + correction, router)
    return scores.topk(n_active, dim=-1).indices


def weigh(logits: Tensor, chosen: Tensor, router: Router) -> Tensor:
    """Weights of the chosen experts, [T, k]; logits: [T, E]."""
    if router.scoring == "chosen":
        return logits.gather(1, chosen).softmax(-1)
    wide = logits.float()
    scores = wide.sigmoid() if router.scoring == "sigmoid" else wide.softmax(-1)
    weights = scores.gather(1, chosen)
    if router.normalised:
        weights = weights / weights.sum(-1, keepdim=True)
    return (weights * router.scale).to(logits.dtype)


def _within_groups(scores: Tensor, router: Router) -> Tensor:
    """Scores, [T, E], with -inf outside of the groups whose two best experts have the most."""
    grouped = scores.unflatten(-1, (router.n_groups, -1))
    of_group = grouped.topk(2, dim=-1).values.sum(-1)
    least = of_group.topk(router.top_groups, dim=-1).values[:, -1:]
    return grouped.masked_fill((of_group < least)[..., None], -math.inf).flatten(1)


def grouped(experts: Experts, rows: Tensor, chosen: Tensor, arithmetic: Arithmetic) -> Tensor:
    """All experts in one kernel a product; rows: [T k, h], whose experts `chosen` rise."""
    numbers = torch.arange(experts.gate_up.shape[0], device=rows.device)
    stops = torch.searchsorted(chosen, numbers, right=True, out_int32=True)

    def product(x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
        out = F.grouped_mm(x, weights.transpose(1, 2), offs=stops)
        return out if bias is None else out.add_(bias[chosen])

    inner = activated(product(rows, experts.gate_up, experts.gate_up_bias), arithmetic)
    return product(inner, experts.down, experts.down_bias)


def one_by_one(experts: Experts, rows: Tensor, chosen: Tensor, arithmetic: Arithmetic) -> Tensor:
    """A product for each expert that was chosen; arguments as of `grouped`."""
    counts = chosen.bincount(minlength=experts.gate_up.shape[0]).tolist()
    out = torch.empty_like(rows)
    parts = zip(rows.split(counts), out.split(counts), strict=True)
    for number, (x, made) in enumerate(parts):
        if x.shape[0]:
            inner = activated(expert(experts.gate_up, experts.gate_up_bias, number)(x), arithmetic)
            made.copy_(expert(experts.down, experts.down_bias, number)(inner))
    return out


def expert(weights: Tensor, biases: Tensor | None, number: int) -> Linear:
    """The matrix of one expert."""
    return Linear(weights[number], None if biases is None else biases[number])


def activated(inner: Tensor, arithmetic: Arithmetic) -> Tensor:
    """The gate's activation times the rest; inner: [T, 2 f], gate first -> [T, f]."""
    gate, up = inner.chunk(2, dim=-1)
    limit = arithmetic.swiglu_limit
    if limit is None:
        return F.silu(gate).mul_(up)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate.mul_((arithmetic.swiglu_alpha * gate).sigmoid_()).mul_(up.add_(1.0))
