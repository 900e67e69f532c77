"""The split of a decode step, and the data that stays in device memory for the whole job.

Each resident byte saves one byte of transfer in every step. Resident weights cost nothing to use,
so whole layers of them are chosen first. A layer with a resident cache attends in place and stores
nothing. In any other layer the first tokens may have resident K and V, which are copied next to the
loaded ones, and the following tokens may have resident X, from which K and V are recomputed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sim.errors import BadInput
from sim.files import STRICT_KEYS
from sim.graph.jobs import Workload
from sim.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Residency:
    """Resident data of every layer, the same for each batch.

    Args:
        kv_tokens: per layer, number of the prompt's first tokens with resident K and V. If it is
            the whole prompt, K and V of new tokens stay too and the layer moves nothing. A layer
            whose sliding window drops tokens has all or none.
        x_tokens: per layer, number of the following tokens with resident attention input X.
        weight_layers: layers with resident weights in a schedule that moves weights.
    """

    kv_tokens: tuple[int, ...]
    x_tokens: tuple[int, ...]
    weight_layers: tuple[int, ...] = ()

    @classmethod
    def nothing(cls, model: ModelSpec) -> Residency:
        return cls((0,) * model.n_layers, (0,) * model.n_layers)

    @classmethod
    def whole_cache(cls, model: ModelSpec, workload: Workload) -> Residency:
        """All K and V on the device; no weights of the column schedule."""
        return cls((workload.prompt_tokens,) * model.n_layers, (0,) * model.n_layers)

    def holds_whole(self, layer: int, workload: Workload) -> bool:
        """Whether a layer's cache never leaves the device."""
        return self.kv_tokens[layer] == workload.prompt_tokens

    def describe(self) -> str:
        """A description of the resident data; empty if there is none."""
        n_layers = len(self.kv_tokens)
        parts = []
        if any(self.kv_tokens):
            parts.append(f"K and V of {sum(self.kv_tokens) / n_layers:,.0f} tokens")
        if any(self.x_tokens):
            parts.append(f"X of {sum(self.x_tokens) / n_layers:,.0f} of the recomputed tokens")
        if parts:
            parts = [f"{' and '.join(parts)} (mean of the layers)"]
        if self.weight_layers:
            parts.append(f"weights of {len(self.weight_layers)} of {n_layers} layers")
        return f"in GPU memory stay {', '.join(parts)}" if parts else ""

    def check(self, model: ModelSpec, workload: Workload) -> None:
        """Refuse counts that do not match the model's layers or exceed the prompt."""
        if not len(self.kv_tokens) == len(self.x_tokens) == model.n_layers:
            raise BadInput(f"what stays resident must be given for {model.n_layers} layers.")
        for layer, (kv, x) in enumerate(zip(self.kv_tokens, self.x_tokens, strict=True)):
            if kv < 0 or x < 0 or kv + x > workload.prompt_tokens:
                raise BadInput(
                    f"layer {layer}: resident K and V of {kv} tokens and X of {x} must be at least "
                    f"0 and within the {workload.prompt_tokens} tokens of the prompt."
                )
            partly = (kv or x) and not self.holds_whole(layer, workload)
            if partly and not keeps_part(model, workload, layer):
                why = "tokens leave its sliding window during these steps"
                if not model.splits(layer):
                    why = "a step does not read the same rows of its cache each time"
                raise BadInput(f"layer {layer}: {why}; keep its whole cache, or none.")
        if any(layer not in range(model.n_layers) for layer in self.weight_layers):
            raise BadInput(f"weight_layers {self.weight_layers} must be among the layers.")


@dataclass(frozen=True, slots=True)
class DecodeChoice:
    """Recomputed tokens of every step and layer, and resident data; the rest is loaded."""

    split: list[list[int]]
    residency: Residency


def keeps_part(model: ModelSpec, workload: Workload, layer: int) -> bool:
    """Whether a part of a layer's cache may be resident: its window drops no tokens."""
    return model.splits(layer) and not model.first_token(layer, workload.max_tokens - 1)


def evenly_spaced(count: int, n_layers: int) -> tuple[int, ...]:
    """`count` layers, evenly spaced, so that transfers of the others fill the gaps."""
    return tuple(sorted({(2 * at + 1) * n_layers // (2 * count) for at in range(count)}))


@dataclass(frozen=True, slots=True)
class StepSplit:
    """One decode step: tokens of every layer by how their K and V reach the attention.

    `context_tokens` is the number of all past tokens. The counts of a layer add up to the tokens
    that it attends to, which are fewer with a sliding window.
    """

    __pydantic_config__ = STRICT_KEYS

    step: int
    context_tokens: int
    recomputed_tokens: tuple[int, ...]
    loaded_tokens: tuple[int, ...]
    resident_tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        rows = (self.recomputed_tokens, self.loaded_tokens, self.resident_tokens)
        if len({len(row) for row in rows}) != 1:
            raise BadInput(f"step {self.step}: the token lists must have one entry per layer.")
        for layer, counts in enumerate(zip(*rows, strict=True)):
            if min(counts) < 0 or sum(counts) > self.context_tokens:
                raise BadInput(
                    f"step {self.step}, layer {layer}: recomputed, loaded and resident tokens "
                    f"{counts} must be at least 0 and add up to at most {self.context_tokens}."
                )

    @property
    def layer_tokens(self) -> tuple[int, ...]:
        """Past tokens that each layer attends to."""
        rows = (self.recomputed_tokens, self.loaded_tokens, self.resident_tokens)
        return tuple(map(sum, zip(*rows, strict=True)))

    @property
    def median_layer(self) -> tuple[int, int]:
        """(recomputed, attended) tokens of the layer with the median recomputed count.

        Only the layers that attend to most tokens count, which hold most of the cache, or, if these
        recompute none, the next that do.
        """
        by_tokens: dict[int, list[int]] = {}
        for recomputed, tokens in zip(self.recomputed_tokens, self.layer_tokens, strict=True):
            by_tokens.setdefault(tokens, []).append(recomputed)
        most = max((at for at, counts in by_tokens.items() if any(counts)), default=max(by_tokens))
        layers = sorted(by_tokens[most])
        return layers[len(layers) // 2], most


def step_splits(
    model: ModelSpec, workload: Workload, split: Sequence[Sequence[int]], residency: Residency
) -> tuple[StepSplit, ...]:
    """The split of every step: tokens that are neither resident nor recomputed are loaded."""
    steps = []
    for number, row in enumerate(split):
        past = workload.context_tokens(number)
        attended = [model.layer_context(layer, past) for layer in range(model.n_layers)]
        resident = tuple(
            attended[layer] if residency.holds_whole(layer, workload) else count
            for layer, count in enumerate(residency.kv_tokens)
        )
        loaded = tuple(
            tokens - count - own for tokens, count, own in zip(attended, row, resident, strict=True)
        )
        steps.append(StepSplit(number, past, tuple(row), loaded, resident))
    return tuple(steps)
