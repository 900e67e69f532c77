"""A traffic question: requests, what serves them, and the sizes of its host cache.

`TrafficQuestion.commands` are the `kvoverlap traffic` that give the same answers.
"""

from __future__ import annotations

import hashlib
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

from dashboard.data.machines import profile_key
from planner.restore.service import make_service
from sim.errors import DoesNotFit
from sim.machine.profile import HardwareProfile
from sim.machine.what_if import in_dtype_of
from sim.model.spec import ModelSpec
from sim.progress import Part, Progress, Silent
from sim.service import (
    SERVICE_POLICIES,
    Engine,
    RequestTrace,
    Service,
    ServiceSettings,
    ServiceTimeline,
    Traffic,
    TrafficAnswer,
    answer,
    enough,
    generated_trace,
    service_timeline,
    simulate_service,
)

POLICIES = tuple(policy for policy in SERVICE_POLICIES if policy != "compute-only")
"""Policies that use the cache; computing every hit is a cache of size 0."""

CHAT = "chat"
EXAMPLES = {
    CHAT: Traffic(requests=300, rate_per_s=0.5, seed=3),
    "chat, in bursts": Traffic(requests=300, rate_per_s=0.3, burstiness=4.0, seed=3),
    "agents": Traffic(
        requests=300,
        rate_per_s=1.0,
        turns=2.0,
        think_s=200.0,
        agents=1.0,
        output_tokens=128,
        seed=2,
    ),
    "long documents": Traffic(
        requests=300,
        rate_per_s=0.25,
        turns=2.0,
        agents=0.0,
        system_prompts=16,
        system_tokens=12_288,
        output_tokens=128,
        seed=1,
    ),
}
"""Each is served without overload by the model and machine with which the page opens."""

GENERATED_FILE = "trace.jsonl.gz"
MAX_WORK = 150_000
"""Requests times runs that the dashboard simulates: about a minute."""

OPTION_OF = {"requests": "generate", "rate_per_s": "rate", "think_s": "think"}
"""Options of `kvoverlap traffic` whose names differ from those of `Traffic`."""


@dataclass(frozen=True)
class Requests:
    """The requests of a question: generated, or those of a file.

    Args:
        file: its name on the command line.
        asked: what to generate; None for a file.
        content: of the file; None if generated.
    """

    file: str
    asked: Traffic | None = None
    content: RequestTrace | None = field(default=None, repr=False)

    @property
    def n_requests(self) -> int:
        if self.content is not None:
            return len(self.content)
        return self.asked.requests if self.asked is not None else 0

    @property
    def skipped(self) -> int:
        """Bad lines of the file, which are left out."""
        return 0 if self.content is None else self.content.skipped

    @property
    def key(self) -> str:
        """Text that is equal for equal requests."""
        if self.content is None:
            return repr(self.asked)
        one = self.content
        parts = (one.arrival_s, one.prompt_tokens, one.output_tokens, one.first, one.nodes)
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part.tobytes())
        return f"{one.block_tokens} {digest.hexdigest()}"

    def trace(self) -> RequestTrace:
        """The requests in memory."""
        if self.content is not None:
            return self.content
        return generated_trace(self.asked or Traffic(requests=1))

    @property
    def command(self) -> str | None:
        """The command that writes the file; None for a visitor's own."""
        if self.asked is None:
            return None
        parts = []
        for one in fields(self.asked):
            value = getattr(self.asked, one.name)
            if value != one.default:
                option = OPTION_OF.get(one.name, one.name).replace("_", "-")
                parts += [f"--{option}", f"{value:g}" if isinstance(value, float) else f"{value}"]
        return shlex.join(["kvoverlap", "traffic", *parts, "-o", self.file])


@dataclass(frozen=True)
class TrafficAnswers:
    """What every policy gives with each size of the host cache.

    Args:
        runs: by policy and size in bytes.
        block_bytes: of a block of all GPUs of an instance, in the cache.
        gpu_blocks: blocks of K and V in the GPU memory of an instance.
        gpu_bytes: by purpose, in the memory of each GPU.
        span_s: from the first arrival to the last.
        busiest_minute: with the most arrivals, counted from the first one.
    """

    runs: dict[tuple[str, float], TrafficAnswer]
    block_tokens: int
    block_bytes: int
    gpu_blocks: int
    gpu_bytes: dict[str, float]
    span_s: float
    busiest_minute: int

    @property
    def policies(self) -> list[str]:
        return list(dict.fromkeys(policy for policy, _ in self.runs))

    @property
    def sizes(self) -> list[float]:
        """Rising."""
        return sorted({size for _, size in self.runs})

    def p90_s(self, policy: str) -> list[float]:
        """The p90 of TTFT with each size."""
        return [spread.p90 for size in self.sizes if (spread := self.runs[policy, size].ttft_s)]

    def knee(self, policy: str) -> float:
        """The smallest size from which more does not pay."""
        return enough(self.sizes, self.p90_s(policy))

    @property
    def best(self) -> tuple[str, float]:
        """The policy whose p90 of TTFT falls lowest, and its knee."""
        policy = min(self.policies, key=lambda one: min(self.p90_s(one)))
        return policy, self.knee(policy)


@dataclass(frozen=True)
class TrafficQuestion:
    """The inputs.

    Args:
        whole: a shipped model, or one of an uploaded config, whose name is its file.
        reference: the machine on the command line, a shipped name or a path.
        settings: of the service; its engine's policy and its host cache vary.
        sizes: of the host cache of an instance, in bytes.
        ttft_slo_s, tpot_slo_s: limits that a good request keeps; None for no limit.
        tp, ep: GPUs of an instance, and of these those that hold whole experts.
    """

    requests: Requests
    whole: ModelSpec
    hardware: HardwareProfile
    reference: str
    settings: ServiceSettings
    sizes: tuple[float, ...]
    policies: tuple[str, ...]
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None
    tp: int = 1
    ep: int = 1

    @property
    def key(self) -> str:
        """Text that is equal for equal questions."""
        named = replace(self, requests=Requests(self.requests.file))
        return f"{named!r} {self.requests.key} {profile_key(self.hardware)}"

    @property
    def n_tasks(self) -> int:
        """Requests to simulate, over all runs."""
        sizes = len([size for size in self.sizes if size])
        return self.requests.n_requests * (1 + sizes * len(self.policies))

    @cached_property
    def model(self) -> ModelSpec:
        """What one GPU holds, in the dtype of the machine's profile."""
        return in_dtype_of(self.whole, self.hardware, chosen=False).shard(self.tp, self.ep)

    def service(self, policy: str, block_tokens: int) -> Service:
        """The service with one policy and no host cache yet.

        Raises:
            KvOverlapError: the machine does not support the model.
        """
        engine = replace(self.settings.engine, policy=policy)
        settings = replace(self.settings, engine=engine)
        return make_service(settings, self.model, self.hardware, block_tokens)

    def check(self) -> None:
        """Refuse a service that serves no request.

        Raises:
            DoesNotFit: every request is too long for the GPU memory of an instance or the model.
            KvOverlapError: the machine does not support the model.
        """
        trace = self.requests.trace()
        service = self.service(self.policies[0], trace.block_tokens)
        blocks = service.costs.gpu_blocks(trace.block_tokens, service.engine.max_batch)
        most = min(self.model.max_positions, blocks * trace.block_tokens)
        lengths = zip(trace.prompt_tokens, trace.output_tokens, strict=True)
        if all(prompt + max(1, output) > most for prompt, output in lengths):
            raise DoesNotFit(
                f"every request is longer than the {most:,} tokens for which an instance of "
                f"{self.whole.name} has room."
            )

    def answers(self, progress: Progress | None = None) -> TrafficAnswers:
        """Every policy with each size; without a cache all policies are the same.

        Raises:
            DoesNotFit, KvOverlapError: as `check`.
        """
        self.check()
        report = progress or Silent()
        trace = self.requests.trace()
        sizes = sorted(set(self.sizes))
        asked = [(policy, size) for policy in self.policies for size in sizes]
        apart = [one for one in asked if one[1] or one[0] == self.policies[0]]
        runs: dict[tuple[str, float], TrafficAnswer] = {}
        services = {one: self.service(one, trace.block_tokens) for one in self.policies}
        for at, (policy, size) in enumerate(apart):
            service = services[policy].with_tiers({"dram": size}, trace.block_tokens)
            text = f"{policy} with {size_text(size)}, run {at + 1} of {len(apart)}"
            part = Part(report, text, at / len(apart), 1 / len(apart))
            outcome = simulate_service(service, trace, part)
            runs[policy, size] = answer(outcome, self.ttft_slo_s, self.tpot_slo_s)
        runs = {one: runs[one if one in runs else (self.policies[0], one[1])] for one in asked}
        arrivals, first_s, costs = trace.arrival_s, min(trace.arrival_s), service.costs
        minutes = Counter(int((at_s - first_s) // 60) for at_s in arrivals)
        return TrafficAnswers(
            runs,
            trace.block_tokens,
            service.block_bytes(trace.block_tokens),
            outcome.gpu_blocks,
            {
                "weights": costs.model.weight_bytes,
                "KV": outcome.gpu_blocks * costs.gpu_block_bytes(trace.block_tokens),
                "workspace": costs.workspace_bytes(service.engine.max_batch),
            },
            max(arrivals) - first_s,
            max(minutes, key=minutes.__getitem__),
        )

    def minute(
        self, policy: str, size: float, start_s: float, progress: Progress | None = None
    ) -> ServiceTimeline:
        """Requests and lanes in the minute that begins `start_s` after the first arrival."""
        trace = self.requests.trace()
        service = self.service(policy, trace.block_tokens)
        service = service.with_tiers({"dram": size}, trace.block_tokens)
        first_s = min(trace.arrival_s) + start_s
        return service_timeline(service, trace, first_s, first_s + 60.0, progress)

    def command(self, policy: str) -> str:
        """The command whose `--json` gives one policy's answers."""
        settings = self.settings
        options: dict[str, object] = {
            "model": self.whole.name,
            "hardware": self.reference,
            "tp": self.tp if self.tp != 1 else None,
            "ep": self.ep if self.ep != 1 else None,
            "instances": settings.instances if settings.instances != 1 else None,
            "routing": settings.routing if settings.instances != 1 else None,
            "sizes": ",".join(map(size_option, sorted(set(self.sizes)))),
            "policy": policy,
            "chunk": settings.chunk_tokens if settings.chunk_tokens != CHUNK else None,
            "ttft-slo": self.ttft_slo_s,
            "tpot-slo": self.tpot_slo_s,
        }
        words = ["kvoverlap", "traffic", self.requests.file]
        words += ["--skip-bad"] if self.requests.skipped else []
        for name, value in options.items():
            if value is not None:
                text = f"{value:g}" if isinstance(value, float) else f"{value}"
                words += [f"--{name}", text]
        return shlex.join(words)

    @property
    def commands(self) -> list[str]:
        """All commands, in the order in which they run."""
        made = [self.requests.command] if self.requests.command else []
        return [*made, *(self.command(policy) for policy in self.policies)]


CHUNK = ServiceSettings(engine=Engine(policy=POLICIES[0])).chunk_tokens
"""The command's default."""


def size_option(n_bytes: float) -> str:
    """A size as the command reads it."""
    return f"{n_bytes / 1e9:.12g}GB" if n_bytes else "0"


def size_text(n_bytes: float) -> str:
    """A size as people read it."""
    if n_bytes >= 1e12:
        return f"{n_bytes / 1e12:,.4g} TB"
    return f"{n_bytes / 1e9:,.4g} GB" if n_bytes else "no cache"


def size_list(sizes: Sequence[float]) -> str:
    """Sizes as the page's address holds them."""
    return ",".join(map(size_option, sizes))
