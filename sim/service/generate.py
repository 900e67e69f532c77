"""Generated traces: sessions with shared system prompts, turns and think times; some are agents.

A session begins with one of the system prompts, the popular ones more often (Zipf's law). Each turn
adds new tokens to the conversation, asks for an answer, and keeps both. An agent is a session with
many turns and almost no think time: it appends what its tools returned. Lines are those of Mooncake
traces, and the same seed gives the same bytes.
"""

from __future__ import annotations

import heapq
import json
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate, islice
from pathlib import Path

from sim.errors import BadInput
from sim.files import write_chunks
from sim.progress import Progress, Silent
from sim.service.traces import MAX_PROMPT_TOKENS, MOONCAKE_BLOCK, RequestTrace

MAX_CONTEXT_TOKENS = 131_072
"""A session ends before its prompt would be longer."""

AGENT_TURNS, AGENT_THINK = 6.0, 0.05
"""An agent's turns and think time, as multiples of a person's."""

ANSWER_TOKEN_S = 0.02
"""Seconds per token until an answer has been read out; the think time follows."""

SPREAD = 0.8
"""Standard deviation of the logarithm of lengths."""

LINES_A_CHUNK = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Traffic to generate; every length is a mean.

    Args:
        requests: lines of the trace.
        rate_per_s: requests a second, all turns counted.
        burstiness: standard deviation of the gaps between new sessions over their mean; 1 is a
            Poisson process.
        turns: requests of a session.
        think_s: pause after an answer.
        agents: fraction of sessions that are agents.

    Raises:
        BadInput: a value is out of range.
    """

    requests: int
    rate_per_s: float = 1.0
    burstiness: float = 1.0
    turns: float = 4.0
    think_s: float = 30.0
    agents: float = 0.1
    system_prompts: int = 8
    system_tokens: int = 1024
    new_tokens: int = 1024
    output_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rate_per_s", "burstiness"):
            if not 1e-3 <= getattr(self, name) <= 1e6:
                raise BadInput(f"{name}(={getattr(self, name)}) must be from 0.001 to 1,000,000.")
        if not 1 <= self.turns <= 1e4 or not 0 <= self.think_s <= 1e6:
            raise BadInput(
                f"turns(={self.turns}) must be from 1 to 10,000 and think_s(={self.think_s}) from "
                "0 to 1,000,000."
            )
        if not 0 <= self.agents <= 1:
            raise BadInput(f"agents(={self.agents}) must be a fraction from 0 to 1.")
        for name in ("system_tokens", "new_tokens", "output_tokens", "system_prompts"):
            if not 0 < getattr(self, name) <= MAX_CONTEXT_TOKENS:
                raise BadInput(
                    f"{name}(={getattr(self, name)}) must be from 1 to {MAX_CONTEXT_TOKENS:,}."
                )


@dataclass(slots=True)
class _Session:
    """A conversation: ids of its full blocks, its tokens, and the turns still to come."""

    ids: list[int]
    tokens: int
    turns: int
    think_s: float
    waiting: int = 0
    """Tokens of the last answer, which the next prompt contains."""


@dataclass
class _Generator:
    asked: Traffic
    chance: random.Random = field(init=False)
    next_id: int = 0

    def __post_init__(self) -> None:
        asked = self.asked
        self.chance = random.Random(asked.seed)  # noqa: S311
        self.systems: list[list[int]] = [[] for _ in range(asked.system_prompts)]
        self.popular = list(accumulate(1 / (at + 1) for at in range(asked.system_prompts)))
        mean_turns = asked.turns * (1 + asked.agents * (AGENT_TURNS - 1))
        self.gap_s = mean_turns / asked.rate_per_s

    def requests(self) -> Iterator[tuple[float, int, int, list[int]]]:
        """Arrival, prompt, output and block ids, in order of arrival, without end."""
        asked, due = self.asked, list[tuple[float, int, _Session]]()
        shape = 1 / asked.burstiness**2
        new_s, number = 0.0, 0
        while True:
            while not due or new_s <= due[0][0]:
                heapq.heappush(due, (new_s, number, self._session()))
                number += 1
                new_s += self.chance.gammavariate(shape, self.gap_s / shape)
            now_s, order, session = heapq.heappop(due)
            prompt, output, ids = self._turn(session)
            yield now_s, prompt, output, ids
            session.turns -= 1
            if session.turns and session.tokens + output + asked.new_tokens < MAX_CONTEXT_TOKENS:
                pause_s = self.chance.expovariate(1.0) * session.think_s
                later_s = now_s + output * ANSWER_TOKEN_S + pause_s
                heapq.heappush(due, (later_s, order, session))

    def _session(self) -> _Session:
        asked = self.asked
        which = self.chance.choices(range(asked.system_prompts), cum_weights=self.popular)[0]
        agent = self.chance.random() < asked.agents
        mean = asked.turns * (AGENT_TURNS if agent else 1.0)
        turns = 1
        while turns < 10 * mean and self.chance.random() < 1 - 1 / mean:
            turns += 1
        think_s = asked.think_s * (AGENT_THINK if agent else 1.0)
        system = self.systems[which]
        while len(system) < asked.system_tokens // MOONCAKE_BLOCK:
            system.append(self._new_id())
        return _Session(list(system), asked.system_tokens, turns, think_s)

    def _turn(self, session: _Session) -> tuple[int, int, list[int]]:
        new = self._length(self.asked.new_tokens)
        most = MAX_CONTEXT_TOKENS - session.tokens - session.waiting
        session.tokens += session.waiting + min(new, max(1, most))
        session.waiting = self._length(self.asked.output_tokens)
        while len(session.ids) < session.tokens // MOONCAKE_BLOCK:
            session.ids.append(self._new_id())
        ids = list(session.ids)
        if session.tokens % MOONCAKE_BLOCK:
            ids.append(self._new_id())
        return session.tokens, session.waiting, ids

    def _length(self, mean: int) -> int:
        drawn = self.chance.lognormvariate(-SPREAD * SPREAD / 2, SPREAD)
        return min(MAX_PROMPT_TOKENS, max(1, round(mean * drawn)))

    def _new_id(self) -> int:
        self.next_id += 1
        return self.next_id - 1


def _requests(asked: Traffic) -> Iterator[tuple[int, int, int, list[int]]]:
    """Arrival in ms, prompt, output and block ids of each request, in order of arrival."""
    for arrival_s, prompt, output, ids in islice(_Generator(asked).requests(), asked.requests):
        yield round(arrival_s * 1e3), prompt, output, ids


def generated_trace(asked: Traffic) -> RequestTrace:
    """The trace in memory, equal to what `read_trace` reads of the written file."""
    trace = RequestTrace(MOONCAKE_BLOCK)
    for arrival_ms, prompt, output, ids in _requests(asked):
        trace.add(arrival_ms / 1e3, prompt, output, ids)
    return trace


def generated_lines(asked: Traffic) -> Iterator[str]:
    """The lines of the trace, in order of arrival."""
    for arrival_ms, prompt, output, ids in _requests(asked):
        yield json.dumps(
            {
                "timestamp": arrival_ms,
                "input_length": prompt,
                "output_length": output,
                "hash_ids": ids,
            }
        )


def write_traffic(asked: Traffic, path: Path, progress: Progress | None = None) -> None:
    """Write the trace; a name that ends in .gz compresses.

    Raises:
        BadFile: the path cannot be written.
    """
    report = progress or Silent()

    def chunks() -> Iterator[bytes]:
        packer = zlib.compressobj(wbits=31) if path.suffix == ".gz" else None
        lines, done = generated_lines(asked), 0
        while some := list(islice(lines, LINES_A_CHUNK)):
            text = ("\n".join(some) + "\n").encode()
            yield packer.compress(text) if packer else text
            done += len(some)
            report(f"{done // 50_000 * 50_000:,} requests written", done / asked.requests)
        if packer:
            yield packer.flush()

    write_chunks(path, chunks())
