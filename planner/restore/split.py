"""A fixed split: which tokens of each layer are computed, projected from X, or loaded."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from sim.errors import BadInput
from sim.files import STRICT_KEYS
from sim.graph.jobs import RestoreRequest
from sim.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class RestoreSplit:
    """In each layer the first tokens are computed, the next projected from X, the others loaded.

    No layer computes more tokens than the layer before it. A computed token then attends only to
    computed tokens and waits for no load. Of the tokens that are not computed, a layer with a
    window projects and loads only the last, which later tokens attend to.

    Args:
        computed_tokens: of each layer, from token ids.
        projected_tokens: of each layer, those whose X is loaded and turned into K and V.
        by_layer: loads go layer after layer, so that the uncached tokens can follow them through
            the layers; otherwise token after token from the back, in all layers at once.
    """

    __pydantic_config__ = STRICT_KEYS

    computed_tokens: tuple[int, ...]
    projected_tokens: tuple[int, ...]
    by_layer: bool

    @classmethod
    def even(cls, model: ModelSpec, computed: int) -> RestoreSplit:
        """The same number of computed tokens in every layer, the others loaded."""
        return cls((computed,) * model.n_layers, (0,) * model.n_layers, False)

    def loaded_tokens(self, model: ModelSpec, request: RestoreRequest) -> tuple[int, ...]:
        """Tokens of each layer that are loaded: all others that the restored prefix needs."""
        return tuple(
            request.cached_tokens - max(computed, request.first_loaded(model, layer)) - projected
            for layer, (computed, projected) in enumerate(
                zip(self.computed_tokens, self.projected_tokens, strict=True)
            )
        )

    def check(self, model: ModelSpec, request: RestoreRequest) -> None:
        """Raise BadInput where the counts do not describe a split of this request."""
        if not len(self.computed_tokens) == len(self.projected_tokens) == model.n_layers:
            raise BadInput(f"the split must hold {model.n_layers} layers.")
        counts = (
            *self.computed_tokens,
            *self.projected_tokens,
            *self.loaded_tokens(model, request),
        )
        if min(counts) < 0:
            raise BadInput(
                "computed, projected and loaded tokens of a layer must be at least 0 and add up to "
                f"the {request.cached_tokens} cached tokens."
            )
        if any(later > earlier for earlier, later in pairwise(self.computed_tokens)):
            raise BadInput(
                "computed_tokens must not rise from layer to layer: computing a token in a layer "
                "needs the output of the layer before it."
            )
        uneven = len({*zip(self.computed_tokens, self.projected_tokens, strict=True)}) > 1
        if not self.by_layer and (uneven or any(self.projected_tokens)):
            raise BadInput("a split that is not the same in all layers must load by_layer.")
