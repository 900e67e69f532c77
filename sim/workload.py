"""What is asked of the model: how many sequences, how long, how many new tokens."""

from __future__ import annotations

from dataclasses import dataclass

from sim.errors import BadInput
from sim.files import STRICT_KEYS
from sim.kv_format import check_kv_bits


@dataclass(frozen=True, slots=True)
class Workload:
    """One decode job: `n_batches` batches of `batch_size` sequences with equally long prompts.

    Args:
        batch_size: sequences decoded together, B.
        prompt_tokens: tokens of each sequence whose KV lies in host memory at the start, S.
        gen_tokens: decode steps; step t attends to `prompt_tokens + t` past tokens and itself.
        n_batches: batches that take turns in every layer (column schedule).
        kv_bits: 8 or 4: K and V lie quantised in host memory (`sim/kv_format.py`); None: in the
            model's element type.

    Raises:
        BadInput: a count is not a positive whole number, or kv_bits is another number.
    """

    __pydantic_config__ = STRICT_KEYS

    batch_size: int
    prompt_tokens: int
    gen_tokens: int
    n_batches: int = 1
    kv_bits: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "prompt_tokens", "gen_tokens", "n_batches"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise BadInput(f"{name}(={value!r}) must be a whole number of at least 1.")
        check_kv_bits(self.kv_bits)

    def context_tokens(self, step: int) -> int:
        """Past tokens whose KV step `step` needs: the prompt and everything generated before."""
        return self.prompt_tokens + step

    @property
    def max_tokens(self) -> int:
        """Tokens per sequence once the last step has appended its own."""
        return self.prompt_tokens + self.gen_tokens
