"""A layer: its attention, and the matrices of its FFN.

Sizes are counts of elements. Letters in comments as in `sim.model.spec`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

from sim.errors import BadInput
from sim.files import STRICT_KEYS
from sim.model.attention import FullAttention, Matrices, MultiHeadLatent, check_sizes
from sim.model.compressed import CompressedAttention, LinearState, NoAttention


@dataclass(frozen=True, slots=True)
class Dense:
    """One MLP of the given width, with a gate (three matrices) or without; width 0 is none."""

    __pydantic_config__ = STRICT_KEYS

    width: int
    gated: bool = True
    kind: Literal["dense"] = "dense"

    def __post_init__(self) -> None:
        check_sizes("FFN", 0, width=self.width)

    @property
    def text(self) -> str:
        return f"dense, {self.width:,} wide" if self.width else "no FFN"

    def matrices(self, hidden: int) -> Matrices:
        one = hidden * self.width
        made = {"up_proj": one, "down_proj": one} | ({"gate_proj": one} if self.gated else {})
        return made if self.width else {}

    def active_elements(self, hidden: int) -> int:
        """Elements that one token passes through."""
        return sum(self.matrices(hidden).values())

    @property
    def projected_size(self) -> int:
        """Elements that the first products make of one token."""
        return (1 + self.gated) * self.width

    def shard(self, gpus: int, expert_gpus: int) -> Dense:  # noqa: ARG002
        """The part of one of `gpus` GPUs."""
        return replace(self, width=ceil(self.width / gpus))


@dataclass(frozen=True, slots=True)
class Experts:
    """MLPs of which each token passes through a few: routed ones it chooses, a shared one always.

    Args:
        n_routed: experts to choose from.
        n_active: routed experts that a token passes through.
        width: of one routed expert.
        shared_width: of all MLPs that every token passes through together; 0 for none.
        latent: elements that a token is reduced to before its routed experts; None for none.
        gpus: GPUs that the routed experts are divided over (expert parallelism).
    """

    __pydantic_config__ = STRICT_KEYS

    n_routed: int
    n_active: int
    width: int
    shared_width: int = 0
    gated: bool = True
    latent: int | None = None
    gpus: int = 1
    kind: Literal["experts"] = "experts"

    def __post_init__(self) -> None:
        check_sizes("experts", n_routed=self.n_routed, n_active=self.n_active, width=self.width)
        check_sizes("experts", 0, shared_width=self.shared_width)
        if self.n_active > self.n_routed:
            raise BadInput(
                f"experts: n_active(={self.n_active}) must be at most n_routed(={self.n_routed})."
            )

    @property
    def text(self) -> str:
        shared = f" and {self.shared_width:,} wide shared" if self.shared_width else ""
        return f"{self.n_active} of {self.n_routed} experts, {self.width:,} wide{shared}"

    @property
    def n_matrices(self) -> int:
        """Of each expert: up and down, and a gate."""
        return 3 if self.gated else 2

    def matrices(self, hidden: int) -> Matrices:
        parts, held = self.n_matrices, self.n_routed // self.gpus
        made = {
            "experts": held * parts * (self.latent or hidden) * self.width,
            "gate": hidden * self.n_routed,
        }
        if self.shared_width:
            made["shared_experts"] = parts * hidden * self.shared_width
        if self.latent is not None:
            made["latent_proj"] = 2 * hidden * self.latent
        return made

    def active_elements(self, hidden: int) -> int:
        """Elements that one token passes through."""
        made = self.matrices(hidden)
        return sum(made.values()) - made["experts"] * (self.n_routed - self.n_active) // (
            self.n_routed
        )

    @property
    def projected_size(self) -> int:
        """Elements that the first products make of one token."""
        return (1 + self.gated) * (self.n_active * self.width + self.shared_width)

    def shard(self, gpus: int, expert_gpus: int) -> Experts:
        """The part of one of `gpus` GPUs, each with one in `expert_gpus` of the routed experts."""
        width, shared = (ceil(one * expert_gpus / gpus) for one in (self.width, self.shared_width))
        return replace(self, width=width, shared_width=shared, gpus=expert_gpus)


AnyAttention = FullAttention | MultiHeadLatent | CompressedAttention | LinearState | NoAttention


@dataclass(frozen=True, slots=True)
class Layer:
    """The attention and the FFN of a layer.

    Args:
        other_elements: of matrices that belong to neither, through which every token passes.
    """

    __pydantic_config__ = STRICT_KEYS

    attention: AnyAttention
    ffn: Dense | Experts
    other_elements: int = 0

    @property
    def text(self) -> str:
        """Both in words."""
        parts = [self.attention.text, self.ffn.text]
        return "; ".join(text for text in parts if not text.startswith("no "))

    @property
    def without_window(self) -> Layer:
        """The layer without its window, which changes no kernel but how many keys one reads."""
        one = self.attention
        if not isinstance(one, FullAttention) or one.window is None:
            return self
        return replace(self, attention=replace(one, window=None, chunked=False))

    def shard(self, gpus: int, expert_gpus: int) -> Layer:
        """The part of one of `gpus` GPUs; other matrices are on every GPU."""
        parts = self.attention.shard(gpus), self.ffn.shard(gpus, expert_gpus)
        return Layer(*parts, self.other_elements)

    @property
    def projected_size(self) -> int:
        """Elements of the largest activation of one token."""
        return max(self.attention.projected_size, self.ffn.projected_size)

    def active_elements(self, hidden: int) -> int:
        """Of the matrices that one token passes through."""
        attention = sum(self.attention.matrices(hidden).values())
        return attention + self.ffn.active_elements(hidden) + self.other_elements
