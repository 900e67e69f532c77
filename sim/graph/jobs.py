"""Jobs: a decode of several sequences, or the restore of a cached prefix."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from sim.errors import BadInput, UnknownName
from sim.files import STRICT_KEYS
from sim.lanes import TIERS
from sim.model.kv_format import check_kv_bits
from sim.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Workload:
    """One decode job: `n_batches` batches of `batch_size` sequences with equally long prompts.

    Args:
        batch_size: sequences decoded together, B.
        prompt_tokens: tokens of each sequence whose KV is in host memory at the start, S.
        gen_tokens: decode steps; step t attends to `prompt_tokens + t` past tokens and itself.
        n_batches: batches that run one after another in every layer (column schedule).
        kv_bits: 8 or 4: K and V are quantised in host memory (`sim/model/kv_format.py`); None: in
            the model's element type.

    Raises:
        BadInput: a count is not a positive whole number, or kv_bits is another number.
    """

    __pydantic_config__ = STRICT_KEYS
    kind: ClassVar[str] = "decode"

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

    def as_asked(self, model: ModelSpec) -> Workload:
        """The job with the cache in the bits that the model's checkpoint asks for.

        A job that sets bits is unchanged.
        """
        return self if self.kv_bits is not None else replace(self, kv_bits=model.host_kv_bits)

    @property
    def max_tokens(self) -> int:
        """Tokens per sequence once the last step has appended its own."""
        return self.prompt_tokens + self.gen_tokens


UNCOMPRESSED = 16
"""Bits of an element of K and V on a tier where they are in the model's dtype."""

KV_BITS = (3, 4, 8, UNCOMPRESSED)

MAX_TASKS = 1_000_000
"""Largest graph that is planned; a plan simulates its graph several times."""

TASKS_PER_LAYER = 4
"""About the tasks of one layer of one batch in one decode step."""


def check_tasks(tasks: int, remedy: str) -> None:
    """Refuse a job of more tasks than `MAX_TASKS`; `remedy` says what to change."""
    if tasks > MAX_TASKS:
        raise BadInput(
            f"the job has about {tasks:,} tasks and at most {MAX_TASKS:,} are planned; {remedy}."
        )


KV, KV_AND_X = "kv", "kv+x"
CACHED_DATA = (KV, KV_AND_X)
"""What is stored of a cached prefix: K and V, as serving runtimes do, or attention inputs X too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreRequest(Workload):
    """One request whose first `cached_tokens` need not be computed; time runs to its first token.

    Args:
        cached_tokens: leading tokens whose K and V are on the tier. The
            last token of the prompt is always computed, it makes the first new token.
        tier: `dram`, `ssd` or `net`.
        chunk_tokens: token budget of a step, the restore's and other requests' together.
        io_chunk_tokens: tokens that are loaded at a time.
        gpu_share: part of every step's budget that the restore gets; others use up the rest.
        tier_kv_bits: bits of an element of K or V on the tier, 16 where it is not compressed.

    Raises:
        BadInput: a value breaks one of these rules.
    """

    __pydantic_config__ = STRICT_KEYS
    kind: ClassVar[str] = "restore"

    batch_size: int = field(default=1)
    gen_tokens: int = field(default=1)
    cached_tokens: int
    tier: str = "dram"
    chunk_tokens: int = 512
    io_chunk_tokens: int = 128
    gpu_share: float = 1.0
    tier_kv_bits: int = UNCOMPRESSED

    def __post_init__(self) -> None:
        Workload.__post_init__(self)
        if (self.batch_size, self.gen_tokens, self.n_batches) != (1, 1, 1):
            raise BadInput("a restore is of one sequence up to its first token.")
        for name in ("chunk_tokens", "io_chunk_tokens"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise BadInput(f"{name}(={value!r}) must be a whole number of at least 1.")
        if not 1 <= self.cached_tokens < self.prompt_tokens:
            raise BadInput(
                f"cached_tokens(={self.cached_tokens}) must be between 1 and "
                f"{self.prompt_tokens - 1}: the last token of the prompt is always computed."
            )
        if self.tier not in TIERS:
            raise UnknownName("tier", self.tier, TIERS, "A rate such as 4GiB/s works too.")
        if not 0 < self.gpu_share <= 1:
            raise BadInput(f"gpu_share(={self.gpu_share}) must be above 0 and at most 1.")
        if self.tier_kv_bits not in KV_BITS:
            raise BadInput(f"tier_kv_bits(={self.tier_kv_bits}) must be one of 3, 4, 8, 16.")

    def as_asked(self, model: ModelSpec) -> RestoreRequest:
        if self.tier_kv_bits != UNCOMPRESSED or model.kv_bits is None:
            return self
        return replace(self, tier_kv_bits=model.kv_bits)

    @property
    def step_tokens(self) -> int:
        """Tokens of this request in a step: its part of the budget, at least one."""
        return max(1, round(self.gpu_share * self.chunk_tokens))

    @property
    def other_tokens(self) -> int:
        """Tokens of other requests in a step."""
        return max(0, round((1 - self.gpu_share) * self.chunk_tokens))

    def kv_element_bits(self, model: ModelSpec) -> int:
        """Bits of an element of K and V on the tier."""
        return self.tier_kv_bits if self.tier_kv_bits < UNCOMPRESSED else 8 * model.element_bytes

    def first_loaded(self, model: ModelSpec, layer: int) -> int:
        """First cached token of `layer` that the restored prefix needs, at the start of a chunk.

        In a layer with a window no later token attends to those before it. The last chunk is always
        needed, with which a state comes, except in a layer that caches nothing.
        """
        if not model.caches(layer):
            return self.cached_tokens
        first = min(model.first_token(layer, self.cached_tokens), self.cached_tokens - 1)
        return first - first % self.io_chunk_tokens

    def layer_kv_bits(self, model: ModelSpec, layer: int, start: int, stop: int) -> int:
        """Bits on the tier of the rows of tokens [start, stop) of `layer`."""
        attention, end = model.layers[layer].attention, self.cached_tokens
        return attention.span_elements(start, stop, end) * self.kv_element_bits(model)

    def kv_bytes(self, model: ModelSpec) -> int:
        """Bytes on the tier of the K and V that the restored prefix needs."""
        bits = sum(
            self.layer_kv_bits(model, layer, self.first_loaded(model, layer), self.cached_tokens)
            for layer in range(model.n_layers)
        )
        return bits // 8

    def index_bytes(self, model: ModelSpec) -> int:
        """Bytes on the tier of the index keys that the restored prefix needs."""
        return model.index_bytes(self.cached_tokens)

    def x_bytes(self, model: ModelSpec) -> int:
        """Bytes on the tier of X of the tokens whose K and V can be projected from it."""
        layers = [layer for layer in range(model.n_layers) if model.projects(layer)]
        rows = sum(self.cached_tokens - self.first_loaded(model, layer) for layer in layers)
        return rows * model.x_token_bytes
