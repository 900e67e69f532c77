"""Measured times of linear attention: the kernels that update the state of each sequence."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sim.files import STRICT_KEYS
from sim.machine.curves import Curve
from sim.machine.prefill import check_head_sizes
from sim.model.compressed import LinearRule


@dataclass(frozen=True, slots=True)
class StateTable:
    """Measured seconds of the kernel that updates and reads the states of a layer (linear
    attention), without its convolution and projections.

    Args:
        state_bits: of an element of the state.
        decode: over the sequences that decode one token each.
        chunked: over the tokens of one prompt; None where they were not measured.
        prompts: over prompts of the same length in one launch, whatever length was timed. Heads of
            all prompts fill the device in turn, so that their number costs the same factor at
            every length.
        note: engine and version.
    """

    __pydantic_config__ = STRICT_KEYS

    rule: LinearRule
    n_key_heads: int
    key_head_dim: int
    n_value_heads: int
    value_head_dim: int
    state_bits: int
    decode: Curve
    chunked: Curve | None = None
    prompts: Curve | None = None
    note: str = ""

    def __post_init__(self) -> None:
        sizes = ("n_key_heads", "key_head_dim", "n_value_heads", "value_head_dim", "state_bits")
        check_head_sizes("attention.states", **{name: getattr(self, name) for name in sizes})

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        keys = self.n_key_heads, self.key_head_dim
        return *keys, self.n_value_heads, self.value_head_dim, self.state_bits

    @property
    def bits(self) -> int:
        """Of the states of a sequence."""
        return self.key_head_dim * self.n_value_heads * self.value_head_dim * self.state_bits

    def seconds(self, sequences: int, tokens: float) -> tuple[float, bool] | None:
        """Of so many tokens of each sequence, and whether they were measured; None where nothing
        like it was."""
        if tokens <= 1:
            return self.decode.at(sequences)
        if self.chunked is None:
            return None
        one_s, inside = self.chunked.at(tokens)
        if sequences == 1:
            return one_s, inside
        if self.prompts is None:
            return sequences * one_s, False
        all_s, within = self.prompts.at(sequences)
        return one_s * all_s / self.prompts.at(1)[0], inside and within

    def scaled(self, factor: float) -> StateTable:
        """The same work where everything takes `factor` times as long."""
        chunked = self.chunked and self.chunked.scaled(factor)
        prompts = self.prompts and self.prompts.scaled(factor)
        decode = self.decode.scaled(factor)
        return replace(self, decode=decode, chunked=chunked, prompts=prompts)
