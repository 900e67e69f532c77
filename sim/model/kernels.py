"""The kinds of device kernels that an operation launches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Literal

from sim.model.attention import MultiHeadLatent, SparseIndex
from sim.model.compressed import LinearState
from sim.model.layers import AnyAttention, Experts

Weights = Literal["attention", "dense", "experts", "shared", "head"]
"""Groups of matrices whose elements may be stored in different bits, as in `ModuleBits`."""


@dataclass(frozen=True, slots=True)
class MatMul:
    """`[m, k] x [k, n]`.

    Args:
        weights: group of the matrix `[k, n]`.
    """

    m: int
    n: int
    k: int
    weights: Weights = field(default="dense", compare=False)

    @property
    def flops(self) -> int:
        return 2 * self.m * self.n * self.k


@dataclass(frozen=True, slots=True)
class GroupedMatMul:
    """One kernel over `groups` products with `[k, n]`, `rows` rows spread evenly over them."""

    rows: int
    n: int
    k: int
    groups: float

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.n * self.k

    @property
    def stacked(self) -> MatMul:
        """The product with the same FLOPs and weight bytes: all weights next to each other."""
        rows, width = ceil(self.rows / self.groups), round(self.n * self.groups)
        return MatMul(rows, width, self.k, "experts")


@dataclass(frozen=True, slots=True)
class DecodeAttention:
    """One query token of `batch` sequences over `rows` rows of K and V, its own included."""

    batch: int
    rows: int
    attention: AnyAttention

    @property
    def flops(self) -> int:
        """Products of queries and keys, and of weights and values."""
        return self.batch * self.rows * self.attention.row_flops


INDEX_BITS = 8
"""Of an element of an index key."""


@dataclass(frozen=True, slots=True)
class IndexScores:
    """Scores of one query token of `batch` sequences on `keys` index keys each."""

    batch: int
    keys: int
    index: SparseIndex

    @property
    def bytes(self) -> int:
        return self.batch * self.keys * self.index.head_dim * INDEX_BITS // 8

    @property
    def flops(self) -> int:
        return self.batch * self.keys * self.index.score_flops


@dataclass(frozen=True, slots=True)
class StateUpdate:
    """New tokens enter the states of their sequences, and read them.

    Args:
        state: the layer's attention by state.
        rows: new tokens of all sequences.
        bytes: of the states, read and written.
        sequences: that the tokens belong to, the same number to each.
    """

    state: LinearState
    rows: int
    bytes: int
    flops: int
    sequences: int = 1

    @property
    def chunked(self) -> bool:
        """Several tokens of a sequence enter at once."""
        return self.rows > self.sequences


@dataclass(frozen=True, slots=True)
class ElementwiseKernel:
    """One element-wise kernel that reads and writes `bytes` in total.

    Args:
        plain: it copies and computes nothing.
    """

    bytes: int
    plain: bool = False


@dataclass(frozen=True, slots=True)
class ExpertsShape:
    """The routed experts of one layer on one GPU.

    Args:
        hidden: elements of a token at their input and output.
        width: intermediate size of one expert.
        active: experts that a token passes through.
        routed: experts to choose from, on all GPUs.
        gpus: GPUs that the experts are divided over, which tokens choose evenly.
        matrices: of one expert: up and down, and a gate.
    """

    hidden: int
    width: int
    active: int
    routed: int
    gpus: int = 1
    matrices: int = 3

    @classmethod
    def of(cls, experts: Experts, hidden: int) -> ExpertsShape:
        sizes = (experts.width, experts.n_active, experts.n_routed, experts.gpus)
        return cls(experts.latent or hidden, *sizes, experts.n_matrices)

    def touched(self, n_tokens: float) -> float:
        """Experts of one GPU that at least one of `n_tokens` tokens passes through, on average.

        Each token chooses evenly and on its own: n (1 - (1 - active/n)^tokens).
        """
        untouched_frac: float = (1 - self.active / self.routed) ** n_tokens
        return self.routed * (1 - untouched_frac) / self.gpus

    def roofline_s(
        self, n_tokens: float, touched: float, bits: float, flops_per_s: float, bytes_per_s: float
    ) -> float:
        """The longer of the FLOPs and of reading the touched experts' weights, by rate."""
        weights = self.matrices * self.hidden * self.width
        flops = 2 * n_tokens * self.active * weights / self.gpus
        return max(flops / flops_per_s, touched * weights * bits / 8 / bytes_per_s)


@dataclass(frozen=True, slots=True)
class IndexedAttention:
    """Latent decode attention with an index, of one query token of `batch` sequences.

    Args:
        keys: index keys of each, of which the attention reads the chosen rows.
        parts: scores, choice and attention, which cost as much where the whole was not timed.
    """

    batch: int
    keys: int
    attention: MultiHeadLatent
    parts: tuple[IndexScores | ElementwiseKernel | DecodeAttention, ...]

    @property
    def flops(self) -> int:
        counted = IndexScores | DecodeAttention
        return sum(one.flops for one in self.parts if isinstance(one, counted))


@dataclass(frozen=True, slots=True)
class ExpertsKernel:
    """The routed experts of one layer on `rows` tokens: up, gate, activation and down.

    Runtimes fuse them. `parts` are the kernels that cost as much where fused ones were not timed.
    """

    rows: int
    shape: ExpertsShape
    parts: tuple[GroupedMatMul | ElementwiseKernel, ...]

    @property
    def flops(self) -> int:
        return sum(one.flops for one in self.parts if isinstance(one, GroupedMatMul))


@dataclass(frozen=True, slots=True)
class AllReduceKernel:
    """The sum of one tensor of `bytes` over the GPUs that share the model, on each of them."""

    bytes: int


Kernel = (
    MatMul
    | GroupedMatMul
    | DecodeAttention
    | IndexScores
    | IndexedAttention
    | StateUpdate
    | ElementwiseKernel
    | ExpertsKernel
    | AllReduceKernel
)


def n_launches(launched: Sequence[Kernel]) -> int:
    """Kernels that the host launches; parts count one by one."""
    whole = ExpertsKernel | IndexedAttention
    return sum(len(one.parts) if isinstance(one, whole) else 1 for one in launched)
