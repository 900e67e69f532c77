"""Times of a service's work: engine steps, copies of cached blocks, and GPU memory left for them.

All times are those of a restore (`sim/cost/restore.py`), so a hit on an idle service takes as long
as `kvoverlap restore` says.
"""

from __future__ import annotations

from collections.abc import Callable

from sim.cost.restore import RestoreCosts
from sim.engine.sharing import machine_of_one_gpu
from sim.errors import DoesNotFit
from sim.graph.jobs import RestoreRequest
from sim.graph.memory import activation_bytes
from sim.lanes import H2D
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec
from sim.service.blocks import block_bytes
from sim.service.copies import CopyCosts

STRAIGHT = 1e-12
"""Relative error up to which times between two numbers of tokens count as a straight line."""


class ServiceCosts:
    """Times and sizes of one instance.

    Args:
        model: one GPU's part.
        hardware: the machine; its GPUs that share the model see equal uplinks.
        chunk_tokens: token budget of an engine step.
        io_chunk_tokens: tokens of one copy.
        kv_bits: of a cached value outside GPU memory.
        free_copies: copies take no time, which bounds what any order of them can reach.
        with_x: X is stored with K and V, so that a plan may project from it.

    Raises:
        BadInput: the GPUs' uplinks have different rates.
    """

    def __init__(
        self,
        model: ModelSpec,
        hardware: HardwareProfile,
        chunk_tokens: int,
        io_chunk_tokens: int,
        kv_bits: int = 16,
        free_copies: bool = False,
        with_x: bool = False,
    ) -> None:
        seen = machine_of_one_gpu(hardware, model)
        self.model, self.hardware = model, seen
        self._copies_cost = 0.0 if free_copies else 1.0
        self.chunk_tokens, self.io_chunk_tokens, self.kv_bits = (
            chunk_tokens,
            io_chunk_tokens,
            kv_bits,
        )
        self._request = self.request(model.max_positions, model.max_positions - 1)
        self.with_x = with_x
        self._costs = RestoreCosts(seen, model, self._request)
        self._matmuls = _Straight(self._costs.matmuls_s, chunk_tokens)
        self._rows = _Straight(lambda rows: self.step_s([(0, rows)], 0, 0, 0), chunk_tokens)
        self._heads_s: dict[int, float] = {0: 0.0}
        speed = self._copies_cost
        self.copies = CopyCosts(self._costs, seen, self._request, with_x, speed)
        self._prefill_ends_s = [0.0]
        self._decodes: dict[int, _Straight] = {}

    def request(self, prompt: int, cached: int, tier: str = "dram") -> RestoreRequest:
        """A restore with this service's chunks."""
        return RestoreRequest(
            prompt_tokens=prompt,
            cached_tokens=cached,
            tier=tier,
            chunk_tokens=self.chunk_tokens,
            io_chunk_tokens=self.io_chunk_tokens,
            tier_kv_bits=self.kv_bits,
        )

    @property
    def lookup_s(self) -> float:
        """Seconds from admission to the first byte that is loaded."""
        return self._copies_cost * self._costs.lookup_s

    def step_s(
        self, prompts: list[tuple[int, int]], decoding: int, context: float, sampled: int
    ) -> float:
        """Time of an engine step; `sampled` requests produce a token in it."""
        rows = decoding + sum(n_tokens for _, n_tokens in prompts)
        matmuls_s = self._matmuls.at(rows)
        if sampled not in self._heads_s:
            head = self._costs.operations.compute("head", sampled, 1)
            self._heads_s[sampled] = head.seconds
        work_s = self._costs.shared_step_s(prompts, decoding, context, matmuls_s)
        return work_s + self._heads_s[sampled]

    def rows_s(self, n_tokens: int) -> float:
        """Time of a step that computes the first tokens of a prompt."""
        return self._rows.at(n_tokens)

    def decode_line(self, decoding: int, context: int) -> tuple[int, int, float, float]:
        """Time of a step that only decodes: a straight line over the tokens attended to.

        Returns:
            First and last number of tokens on the line, the time at the first, and its slope. If
            both numbers are the same, the time there.
        """
        if decoding not in self._decodes:
            self._decodes[decoding] = _Straight(
                lambda tokens: self._decode_s(decoding, tokens), self.model.max_positions
            )
        return self._decodes[decoding].line(context)

    def _decode_s(self, decoding: int, context: int) -> float:
        return self.step_s([], decoding, context, decoding)

    def prefill_s(self, n_tokens: int) -> float:
        """Time to compute the first tokens of a prompt, in steps of the whole budget."""
        size, ends = self.chunk_tokens, self._prefill_ends_s
        steps, rest = divmod(n_tokens, size)
        while len(ends) <= steps + 1:
            start = (len(ends) - 1) * size
            ends.append(ends[-1] + self.step_s([(start, size)], 0, 0, 0))
        return ends[steps] + (ends[steps + 1] - ends[steps]) * rest / size

    def chunk_load_s(self, lane: str | None) -> float:
        """Time in which one more chunk of a long prefix arrives, over the slower of its lanes."""
        size = self.io_chunk_tokens
        moved = self.copies.chunk(0, size, 2 * size)
        lanes = [H2D] if lane is None else [lane, H2D]
        return max(self.copies.load_s(name, *moved) for name in lanes)

    def block_bytes(self, block_tokens: int) -> int:
        """Bytes of one block of one GPU, as cached outside GPU memory."""
        return self.copies.block_bytes(block_tokens)

    def gpu_block_bytes(self, block_tokens: int) -> int:
        """Bytes of one block in the memory of one GPU."""
        return block_bytes(self.model, block_tokens) // self.model.tensor_parallel

    def workspace_bytes(self, max_batch: int) -> int:
        """Bytes of the activations of a step and of its logits."""
        return (
            self.chunk_tokens * activation_bytes(self.model) + 4 * self.model.vocab_size * max_batch
        )

    def gpu_blocks(self, block_tokens: int, max_batch: int) -> int:
        """Blocks of K and V in GPU memory, besides the weights and the activations of a step.

        Raises:
            DoesNotFit: not even one block.
        """
        model, memory = self.model, self.hardware.memory
        workspace = self.workspace_bytes(max_batch)
        free = memory.job_device_bytes - model.weight_bytes - workspace
        one = self.gpu_block_bytes(block_tokens)
        if free < one:
            raise DoesNotFit(
                f"{model.name}: weights take {model.weight_bytes / 2**30:.1f} GiB and a step "
                f"{workspace / 2**30:.1f} GiB of {memory.job_device_bytes / 2**30:.1f} GiB, which "
                "leaves no block for K and V; raise --tp, lower --chunk, or choose another model."
            )
        return int(free // one)


class _Straight:
    """A function of whole numbers that is mostly straight lines, evaluated at few of them.

    A range counts as straight if the function is at three points between its ends.
    """

    def __init__(self, exact: Callable[[int], float], most: int) -> None:
        self._exact = exact
        self._known: dict[int, float] = {}
        self._straight: dict[tuple[int, int], bool] = {}
        self._most = most

    def at(self, count: int) -> float:
        """The value at a number."""
        low, _, value, slope = self.line(count)
        return value + slope * (count - low)

    def line(self, count: int) -> tuple[int, int, float, float]:
        """The straight line that holds a number: its ends, its first value and its slope."""
        low, high = 1, 2
        while high < count:
            low, high = high, 2 * high
        high = min(high, max(self._most, count))
        while low < count < high:
            if (low, high) not in self._straight:
                self._straight[low, high] = self._is_straight(low, high)
            if self._straight[low, high]:
                value = self._value(low)
                return low, high, value, (self._value(high) - value) / (high - low)
            middle = (low + high) // 2
            low, high = (middle, high) if count > middle else (low, middle)
        return count, count, self._value(count), 0.0

    def _value(self, count: int) -> float:
        if count not in self._known:
            self._known[count] = self._exact(count)
        return self._known[count]

    def _is_straight(self, low: int, high: int) -> bool:
        value = self._value(low)
        slope = (self._value(high) - value) / (high - low)
        between = {low + (high - low) * part // 4 for part in (1, 2, 3)}
        return all(
            abs(value + slope * (at - low) - self._value(at)) <= STRAIGHT * self._value(at)
            for at in between
        )
