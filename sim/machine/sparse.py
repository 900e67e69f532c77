"""Measured times of attention to the tokens that an index chooses (DeepSeek sparse attention)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from sim.files import STRICT_KEYS
from sim.machine.curves import Curve, RaggedGrid
from sim.model.attention import MultiHeadLatent, SparseIndex, check_sizes


@dataclass(frozen=True, slots=True)
class IndexSizes:
    """Sizes of an index over latents, as they were timed.

    Args:
        n_heads, head_dim: of the index.
        top_tokens: tokens that a query attends to.
        latent_size: elements of a token's latent and rotary key.
    """

    __pydantic_config__ = STRICT_KEYS

    n_heads: int
    head_dim: int
    top_tokens: int
    latent_size: int

    def __post_init__(self) -> None:
        sizes = ("n_heads", "head_dim", "top_tokens", "latent_size")
        check_sizes("index", **{name: getattr(self, name) for name in sizes})

    def reads_like(self, attention: MultiHeadLatent, index: SparseIndex) -> bool:
        """Whether an attention differs by its numbers of heads alone."""
        sizes = index.head_dim, index.top_tokens, attention.row_size
        return sizes == (self.head_dim, self.top_tokens, self.latent_size)


@dataclass(frozen=True, slots=True)
class SparseHeads:
    """Measured seconds of one decode attention over (batch, context): the scores of all index
    keys, the choice, and the attention to the chosen latents.

    Args:
        n_heads: query heads of the attention.
    """

    __pydantic_config__ = STRICT_KEYS

    n_heads: int
    index: IndexSizes
    fan: RaggedGrid

    def __post_init__(self) -> None:
        check_sizes("attention.sparse", n_heads=self.n_heads)


@dataclass(frozen=True, slots=True)
class SparsePrefill:
    """Measured seconds of the same for a chunk of one prompt, kernel by kernel.

    Args:
        n_heads: query heads that were timed.
        block_heads: query heads that a pass of the attention computes, however many are asked for.
        attend: over tokens of the chunk; each reads `top_tokens` rows.
        score, choose: over (tokens of the chunk, keys that its first token sees, itself included).
        note: engine and version.
    """

    __pydantic_config__ = STRICT_KEYS

    n_heads: int
    block_heads: int
    index: IndexSizes
    attend: Curve
    score: RaggedGrid
    choose: RaggedGrid
    note: str = ""

    def __post_init__(self) -> None:
        sizes = {"n_heads": self.n_heads, "block_heads": self.block_heads}
        check_sizes("restore.prefill.sparse", **sizes)

    def at(self, heads: int, index: SparseIndex, start: int, n_tokens: int) -> tuple[float, bool]:
        """Seconds of `n_tokens` tokens of a prompt from `start` on, and whether such were measured.

        Passes go with blocks of query heads, and scores with the heads of the index. A choice that
        an earlier layer made takes nothing.
        """
        seconds, inside = self.attend.at(n_tokens)
        seconds *= ceil(heads / self.block_heads) / ceil(self.n_heads / self.block_heads)
        inside = inside and heads == self.n_heads
        if not index.shared:
            score_s, scored = self.score.at(n_tokens, start + 1)
            choose_s, chosen = 0.0, True
            if start + n_tokens > index.top_tokens:
                choose_s, chosen = self.choose.at(n_tokens, start + 1)
            seconds += score_s * index.n_heads / self.index.n_heads + choose_s
            inside = inside and scored and chosen and index.n_heads == self.index.n_heads
        return seconds, inside

    def scaled(self, factor: float) -> SparsePrefill:
        """The same work where everything takes `factor` times as long."""
        kernels = ("attend", "score", "choose")
        return replace(self, **{name: getattr(self, name).scaled(factor) for name in kernels})
