"""A serving runtime as data: how it copies, what it loads before it computes, how it launches.

A runtime changes two things. The order of loads and computation is a graph of the ordinary tasks,
which the planner builds by the runtime's name for it. Everything else is a property of the machine
as the runtime drives it (`Runtime.drives`): copies in blocks, launches by graph replay, fused
element-wise kernels, and the time that the host spends around a request and a step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sim.errors import BadInput
from sim.files import STRICT_KEYS, parse, read_json
from sim.lanes import COPY_LANES
from sim.machine.links import COPY_KINDS
from sim.machine.profile import HardwareProfile
from sim.machine.what_if import with_copies
from sim.model.spec import ModelSpec

KIND = "runtime"

RESTORE_TEXTS = {
    "best": "prefixes restored by the best plan",
    "whole": "a cached prefix loaded as a whole before the step that needs it",
    "by-layer": "a cached prefix loaded layer by layer while earlier layers compute",
}
"""How a cached prefix arrives, in a clause."""

DECODE_TEXTS = {
    "lp": "the best plan",
    "resident": "K and V of running requests in GPU memory",
    "hf-offloaded": "every layer's K and V moved both ways in each step",
    "flexgen": "K and V staged through pinned memory, with a barrier after each layer",
    "llama.cpp": "a layer's K and V copied, then attended to",
    "llama.cpp-ring": "a layer's K and V copied while earlier layers compute",
    "load-all": "a layer's K and V loaded while earlier layers compute",
}
"""How K and V of running requests reach the attention, by the policy whose graph it is."""

ENGINE = "engine"
BLOCK_LAYERS = ("all", "one")


@dataclass(frozen=True, slots=True)
class Word:
    """A choice with its source."""

    __pydantic_config__ = STRICT_KEYS

    value: str
    source: str


@dataclass(frozen=True, slots=True)
class Amount:
    """A number with its source; `unit` is in the name of the field that holds it."""

    __pydantic_config__ = STRICT_KEYS

    value: float
    source: str

    def __post_init__(self) -> None:
        if not 0 <= self.value < float("inf"):
            raise BadInput(f"value(={self.value}) must be at least 0 and finite.")


@dataclass(frozen=True, slots=True)
class Flag:
    """Yes or no, with its source."""

    __pydantic_config__ = STRICT_KEYS

    value: bool
    source: str


NONE = "kvoverlap's own executor"


@dataclass(frozen=True, slots=True)
class Variant:
    """The same runtime with some of its settings changed.

    Args:
        label: what is changed, in a few words.
        launch: command line that starts it so, with `$name` where the job's sizes go; empty where
            no setting does it.
        page: documents the settings.
    """

    __pydantic_config__ = STRICT_KEYS

    label: str
    launch: str
    page: str
    restore: Word | None = None
    decode: Word | None = None
    copies: Word | None = None
    block_tokens: Amount | None = None
    block_layers: Word | None = None


VARIED = ("restore", "decode", "copies", "block_tokens", "block_layers")


@dataclass(frozen=True, slots=True)
class Runtime:
    """How a runtime restores prefixes and decodes; each field with its source.

    Args:
        restore: a key of `RESTORE_TEXTS`.
        decode: a key of `DECODE_TEXTS`; `lp` for the best plan, `resident` where K and V of a
            running request must be in GPU memory.
        copies: `engine`, or one of `COPY_KINDS`.
        block_tokens: tokens of one copy; 0 for one copy of everything that is loaded at once.
        block_layers: `all` if a block holds a token's K and V of all layers, `one` if of one.
        step_tokens: token budget of a step; 0 for that of the request.
        graph_replay: kernels are replayed from CUDA graphs, so that the host launches none.
        elementwise_frac: part of the time of the element-wise kernels of kvoverlap's executor that
            the runtime's fused ones take.
        request_s: host time around a request before its first step.
        step_s: host time between two decode steps.
        prefill_frac: part of the machine's FLOP/s in single kernels that a whole prefill reaches,
            where the power limit lowers the clock.
        attention_frac: part of the machine's rate that the runtime's decode attention reaches.
        resident_layers: whether it can keep K and V of whole layers in GPU memory.
        launch: command line that starts it with its cache in host memory, with `$name` where the
            job's sizes go: `$model`, `$name`, `$host_gib`, `$host_gb`, `$gpu_frac`, `$context`.
        variants: what its settings can change.
    """

    __pydantic_config__ = STRICT_KEYS

    name: str
    description: str
    page: str
    restore: Word = Word("best", NONE)
    decode: Word = Word("lp", NONE)
    copies: Word = Word(ENGINE, NONE)
    block_tokens: Amount = Amount(0, NONE)
    block_layers: Word = Word("all", NONE)
    step_tokens: Amount = Amount(0, NONE)
    graph_replay: Flag = Flag(False, NONE)
    elementwise_frac: Amount = Amount(1, NONE)
    request_s: Amount = Amount(0, NONE)
    step_s: Amount = Amount(0, NONE)
    prefill_frac: Amount = Amount(1, NONE)
    attention_frac: Amount = Amount(1, NONE)
    resident_layers: Flag = Flag(False, NONE)
    launch: str = ""
    variants: tuple[Variant, ...] = ()

    def __post_init__(self) -> None:
        for name, known in (
            ("restore", RESTORE_TEXTS),
            ("decode", DECODE_TEXTS),
            ("copies", (ENGINE, *COPY_KINDS)),
            ("block_layers", BLOCK_LAYERS),
        ):
            if getattr(self, name).value not in known:
                raise BadInput(
                    f"{name}(={getattr(self, name).value!r}) must be one of {', '.join(known)}."
                )
        for name in ("elementwise_frac", "prefill_frac", "attention_frac"):
            if not 0 < getattr(self, name).value <= 1:
                raise BadInput(
                    f"{name}(={getattr(self, name).value:g}) must be above 0 and at most 1."
                )
        for name in ("request_s", "step_s"):
            if getattr(self, name).value >= 0.5:
                raise BadInput(f"{name}(={getattr(self, name).value:g}) must be below 0.5 s.")
        for name in ("block_tokens", "step_tokens"):
            if getattr(self, name).value != int(getattr(self, name).value):
                raise BadInput(f"{name}(={getattr(self, name).value:g}) must be a whole number.")

    @classmethod
    def load(cls, path: Path | str) -> Runtime:
        """Read a runtime file.

        Raises:
            BadFile: unreadable, of another kind, or with an unknown, absent or invalid key.
        """
        return parse(cls, read_json(path, KIND), str(path))

    def variant(self, one: Variant) -> Runtime:
        """The runtime with the changes of a variant."""
        given = {name: getattr(one, name) for name in VARIED if getattr(one, name) is not None}
        return replace(self, launch=one.launch, page=one.page, **given)

    @property
    def serves(self) -> bool:
        """Whether it restores prefixes for later requests; others decode from host memory."""
        return self.decode.value == "resident"

    @property
    def plans_itself(self) -> bool:
        """Whether it follows a plan, as kvoverlap's own executor does."""
        return self.restore.value == "best"

    def block_bytes(self, model: ModelSpec) -> int | None:
        """Bytes of one copy of a whole block; None where a load is one copy."""
        all_layers = self.block_layers.value == "all"
        row_bytes = model.all_rows_bytes if all_layers else model.kv_token_bytes
        return int(self.block_tokens.value) * row_bytes or None

    def restore_text(self, model: ModelSpec) -> str:
        """How it restores a prefix, in a clause."""
        parts = [RESTORE_TEXTS[self.restore.value]]
        if (block := self.block_bytes(model)) is not None:
            parts.append(f"copies of {block / 2**20:.3g} MiB")
        if self.copies.value != ENGINE:
            parts.append(f"{self.copies.value} copies")
        if self.step_tokens.value:
            parts.append(f"steps of up to {int(self.step_tokens.value):,} tokens")
        if self.request_s.value:
            parts.append(f"{1e3 * self.request_s.value:.1f} ms of host time around a request")
        return f"as {self.name} does it: {', '.join(parts)}"

    @property
    def decode_text(self) -> str:
        """How it decodes, in a clause."""
        parts = [DECODE_TEXTS[self.decode.value]]
        if self.graph_replay.value:
            parts.append("kernels replayed from graphs")
        if self.step_s.value:
            parts.append(f"{1e3 * self.step_s.value:.2f} ms of host time between steps")
        return f"as {self.name} does it: {', '.join(parts)}"

    def drives(
        self, hardware: HardwareProfile, model: ModelSpec, fixed_s: float = 0.0
    ) -> HardwareProfile:
        """The machine as the runtime drives it.

        Args:
            fixed_s: host time before the first task.

        Raises:
            NotMeasured: the link has no figures of the runtime's kind of copies.
        """
        if self.copies.value != ENGINE:
            hardware = with_copies(hardware, self.copies.value, f"runtime {self.name}")
        links = hardware.links
        block = self.block_bytes(model)
        if block is not None:
            cut = {lane: replace(links.of(lane), block_bytes=block) for lane in COPY_LANES}
            links = replace(links, **cut)
        dispatch = replace(hardware.dispatch, start_s=hardware.dispatch.start_s + fixed_s)
        if self.graph_replay.value:
            dispatch = replace(dispatch, kernel_s=0.0)
        return replace(
            hardware,
            links=links,
            dispatch=dispatch,
            elementwise=hardware.elementwise.faster(1 / self.elementwise_frac.value),
            attention=hardware.attention.faster(self.attention_frac.value),
        )
