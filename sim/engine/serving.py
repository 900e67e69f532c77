"""A restore among other requests: tokens of each engine step, and the latency of each request.

A step has a budget of tokens. Each decoding request gets one token. Prompts without a cached
prefix get their chunks next, first come, first served. The restore gets the rest, from the front
of its prefix. Its loads from the back continue in every step, also in steps without a token for
it: the scheduling of Cake (arXiv 2410.03065, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from sim.cost.restore import RestoreCosts
from sim.errors import BadFile, BadInput
from sim.files import decode_csv, naming_file
from sim.graph.jobs import RestoreRequest
from sim.lanes import H2D, LANE_OF_TIER
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec

COLUMNS = ("arrival_s", "prompt_tokens", "gen_tokens")


@dataclass(frozen=True, slots=True)
class OtherRequest:
    """A request without a cached prefix, whose `gen_tokens` are decoded one in a step."""

    arrival_s: float
    prompt_tokens: int
    gen_tokens: int

    def __post_init__(self) -> None:
        if not 0 <= self.arrival_s < inf or min(self.prompt_tokens, self.gen_tokens) < 1:
            raise BadInput(
                f"arrival_s(={self.arrival_s}) must be at least 0, prompt_tokens"
                f"(={self.prompt_tokens}) and gen_tokens(={self.gen_tokens}) at least 1."
            )


@dataclass(frozen=True, slots=True)
class Latency:
    """Time to first token, and time per token after it (None for a single token), in seconds."""

    ttft_s: float
    tpot_s: float | None


@dataclass(frozen=True, slots=True)
class Served:
    """Latencies of the restore and, in the order given, of the others."""

    restore: Latency
    others: tuple[Latency, ...]


MAX_STEPS = 100_000


def serve(
    model: ModelSpec,
    hardware: HardwareProfile,
    request: RestoreRequest,
    others: Sequence[OtherRequest],
    restores: bool = True,
) -> Served:
    """Run engine steps until every request is done; the restore arrives at time 0.

    Args:
        restores: False leaves the restore out, which shows its cost to the others.

    Raises:
        BadInput: the decoding requests could fill the budget of every step, or there are too many
            steps.
    """
    steps = sum(one.gen_tokens + one.prompt_tokens // request.chunk_tokens for one in others)
    if steps > MAX_STEPS:
        raise BadInput(
            f"the other requests need up to {steps:,} engine steps and at most {MAX_STEPS:,} are "
            "simulated; shorten them."
        )
    if len(others) >= request.chunk_tokens:
        raise BadInput(f"{len(others)} other requests must be fewer than the tokens of a step.")
    return _Engine(RestoreCosts(hardware, model, request), others, restores).run()


@dataclass(slots=True)
class _Other:
    asked: OtherRequest
    computed: int = 0
    token_s: list[float] = field(default_factory=list)

    @property
    def decodes(self) -> bool:
        return self.computed >= self.asked.prompt_tokens and not self.done

    @property
    def done(self) -> bool:
        return len(self.token_s) == self.asked.gen_tokens

    @property
    def latency(self) -> Latency:
        more = len(self.token_s) - 1
        tpot_s = (self.token_s[-1] - self.token_s[0]) / more if more else None
        return Latency(self.token_s[0] - self.asked.arrival_s, tpot_s)


class _Loads:
    """The copies of one restore from the back, both legs in series."""

    def __init__(self, costs: RestoreCosts) -> None:
        self.costs, self.request = costs, costs.workload
        self.back = self.request.cached_tokens
        self.next_s = costs.lookup_s
        self.end_s = 0.0

    def claim_until(self, now_s: float, front: int) -> None:
        """Claim every chunk whose copy starts before `now_s`."""
        while self.next_s < now_s and self.back > front:
            size = self.request.io_chunk_tokens
            start = max((self.back - 1) // size * size, front)
            model, loads = self.costs.model, self.costs.loads
            n_bytes = loads.kv_bytes(0, model.n_layers, start, self.back)
            lane = LANE_OF_TIER.get(self.request.tier)
            if lane is not None:
                self.next_s += self.costs.copy_s(lane, n_bytes)
            self.end_s = max(self.next_s, self.end_s) + self.costs.copy_s(H2D, n_bytes)
            if lane is None:
                self.next_s = self.end_s
            self.back = start if start > loads.first else front


class _Engine:
    def __init__(self, costs: RestoreCosts, others: Sequence[OtherRequest], restores: bool) -> None:
        self.costs, self.request = costs, costs.workload
        self.others = [_Other(one) for one in others]
        self.loads = _Loads(costs)
        self.front = 0
        self.restored_s = None if restores else 0.0
        self.now_s = 0.0

    def run(self) -> Served:
        while self.restored_s is None or not all(one.done for one in self.others):
            self._step()
        return Served(Latency(self.restored_s, None), tuple(one.latency for one in self.others))

    def _step(self) -> None:
        here = [one for one in self.others if one.asked.arrival_s <= self.now_s and not one.done]
        decoding = [one for one in here if one.decodes]
        left = self.request.chunk_tokens - len(decoding)
        parts = [(one.asked.prompt_tokens + len(one.token_s) - 1, 1) for one in decoding]
        prefilled = []
        for one in here:
            count = 0 if one.decodes else min(left, one.asked.prompt_tokens - one.computed)
            if count:
                prefilled.append((one, count))
                parts.append((one.computed, count))
                left -= count
        restored = self._restored(left)
        if restored:
            parts.append((self.front, restored))
            self.front += restored
        if not parts:
            self._wait()
            return
        last = self.front == self.request.prompt_tokens and restored > 0
        ended = [one for one, count in prefilled if one.computed + count == one.asked.prompt_tokens]
        self.now_s += self.costs.step_s(parts, len(decoding) + len(ended) + last)
        for one, count in prefilled:
            one.computed += count
        for one in (*decoding, *ended):
            one.token_s.append(self.now_s)
        if last:
            self.restored_s = self.now_s

    def _restored(self, left: int) -> int:
        """Tokens of the restore in a step with `left` tokens free."""
        if self.restored_s is not None:
            return 0
        cached = self.request.cached_tokens
        self.loads.claim_until(self.now_s, self.front)
        if self.front < self.loads.back:
            return min(left, self.loads.back - self.front)
        if self.loads.end_s > self.now_s:
            return 0
        self.front = max(self.front, cached)
        return min(left, self.request.prompt_tokens - self.front)

    def _wait(self) -> None:
        """Nothing to compute: on to the end of the loads, or to the next arrival."""
        arrivals = [one.asked.arrival_s for one in self.others]
        events = [*arrivals, self.loads.end_s] if self.restored_s is None else arrivals
        self.now_s = min(event for event in events if event > self.now_s)


def read_others(path: Path | str) -> tuple[OtherRequest, ...]:
    """Requests from a CSV file with the columns arrival_s, prompt_tokens, gen_tokens.

    Raises:
        BadFile: another header, or a row that is not such a request.
    """
    with naming_file(str(path)):
        rows = decode_csv(path)
        if set(rows[0]) != set(COLUMNS):
            raise BadFile(f"{path} must have the columns {', '.join(COLUMNS)}.")
        return tuple(map(_other, rows))


def _other(row: dict[str, str]) -> OtherRequest:
    try:
        counts = (int(row["prompt_tokens"]), int(row["gen_tokens"]))
        return OtherRequest(float(row["arrival_s"]), *counts)
    except (TypeError, ValueError):
        raise BadInput(f"row {row} must hold a time and two whole numbers.") from None
