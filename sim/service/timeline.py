"""What requests, GPUs and links do in a part of a trace: bars over time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf

from sim.lanes import COMPUTE, H2D
from sim.progress import Progress
from sim.service.costs import ServiceCosts
from sim.service.instance import Instance
from sim.service.loader import Active, Loader
from sim.service.plans import SoloRestore
from sim.service.service import Service
from sim.service.simulate import simulate_service
from sim.service.traces import RequestTrace

QUEUE, RESTORE, PREFILL, DECODE = "queue", "restore", "prefill", "decode"
PHASES = (QUEUE, RESTORE, PREFILL, DECODE)
"""Of a request: until it is admitted, until its hits are in GPU memory, until its first token, and
until its last. Of a step: what most of its tokens are."""


@dataclass(frozen=True, slots=True)
class RequestSpan:
    """One request; a time that has not come by the end of the part is infinite.

    Args:
        request: its number, in order of arrival.
        restored_s: when its hits outside GPU memory are there; its admission if it has none.
        hit_tokens: found in any tier.
    """

    request: int
    instance: int
    prompt_tokens: int
    hit_tokens: int
    arrival_s: float
    admitted_s: float
    restored_s: float
    first_s: float
    finish_s: float

    @property
    def phases(self) -> Iterator[tuple[str, float, float]]:
        """Name, start and end of each phase that takes time."""
        times = (self.arrival_s, self.admitted_s, self.restored_s, self.first_s, self.finish_s)
        start_s = times[0]
        for name, end_s in zip(PHASES, times[1:], strict=True):
            if end_s > start_s:
                yield name, start_s, end_s
            start_s = max(start_s, end_s)


@dataclass(frozen=True, slots=True)
class WorkSpan:
    """Work of one lane: an engine step, several that only decode, or the copy of a chunk.

    Args:
        kind: of `PHASES`.
        tokens: prompt tokens computed, or tokens copied.
        decoding: requests that get a token in each step.
    """

    instance: int
    lane: str
    kind: str
    start_s: float
    end_s: float
    tokens: int
    decoding: int = 0


@dataclass(frozen=True, slots=True)
class ServiceTimeline:
    """Requests and work that touch `start_s` to `end_s`, in seconds of the trace."""

    start_s: float
    end_s: float
    requests: tuple[RequestSpan, ...]
    work: tuple[WorkSpan, ...]


def service_timeline(
    service: Service,
    trace: RequestTrace,
    start_s: float,
    end_s: float,
    progress: Progress | None = None,
) -> ServiceTimeline:
    """What happens from `start_s` to `end_s`; the requests before are simulated too."""
    watch = Watch(start_s, end_s)
    with contextlib.suppress(_Past):
        simulate_service(service, trace, progress, watch)
    return watch.timeline(trace.in_order())


class _Past(Exception):
    """The part to show is over."""


@dataclass
class Watch:
    """Notes the work of a service from `start_s` to `end_s`, then ends the simulation."""

    start_s: float
    end_s: float
    work: list[WorkSpan] = field(default_factory=list)
    restored_s: dict[int, float] = field(default_factory=dict)
    instance_of: dict[int, int] = field(default_factory=dict)
    seen: Instance | None = None
    loaders: list[_NotedLoader] = field(default_factory=list)

    def loader(self, costs: ServiceCosts, block_tokens: int, order: str) -> Loader:
        """A loader whose copies are noted; called once for each instance, in order."""
        made = _NotedLoader(costs, block_tokens, order)
        made.watch, made.number = self, len(self.loaders)
        self.loaders.append(made)
        return made

    def step(self, number: int, instance: Instance, start_s: float, end_s: float) -> None:
        """Note an engine step of an instance, or several that only decode.

        Raises:
            _Past: it begins after the part to show.
        """
        self.seen = instance
        if start_s > self.end_s:
            raise _Past
        computed = dict.fromkeys((RESTORE, PREFILL), 0)
        booked_s = self.loaders[number].take_booked_s()
        for one, n_tokens in instance.step:
            restores = booked_s is not None or one.front - n_tokens < one.cached
            computed[RESTORE if restores else PREFILL] += n_tokens
            self.instance_of[one.request] = number
            if restores:
                self.restored(one, end_s if booked_s is None else booked_s)
        kind = max(computed, key=computed.__getitem__) if instance.step else DECODE
        tokens, decoding = sum(computed.values()), len(instance.decoding)
        self.add(WorkSpan(number, COMPUTE, kind, start_s, end_s, tokens, decoding))

    def restored(self, one: Active, end_s: float) -> None:
        """A part of a request's hits is in GPU memory at `end_s`."""
        self.restored_s[one.request] = max(end_s, self.restored_s.get(one.request, 0.0))

    def add(self, span: WorkSpan) -> None:
        if span.end_s > self.start_s and span.start_s < self.end_s:
            self.work.append(span)

    def timeline(self, trace: RequestTrace) -> ServiceTimeline:
        """What was noted."""
        requests = []
        for request, arrival_s in enumerate(trace.arrival_s):
            if arrival_s >= self.end_s or self.seen is None:
                break
            span = self._span(self.seen, trace, request)
            if span.finish_s > self.start_s and request not in self.seen.journal.rejected:
                requests.append(span)
        return ServiceTimeline(self.start_s, self.end_s, tuple(requests), tuple(self.work))

    def _span(self, instance: Instance, trace: RequestTrace, request: int) -> RequestSpan:
        journal = instance.journal
        admitted_s, first_s = journal.admitted_s[request], journal.first_s[request]
        restored_s = max(admitted_s, self.restored_s.get(request, 0.0))
        return RequestSpan(
            request,
            self.instance_of.get(request, 0),
            trace.prompt_tokens[request],
            sum(hits[request] for hits in journal.hits.values()),
            trace.arrival_s[request],
            admitted_s,
            min(restored_s, first_s),
            first_s,
            journal.finish_s[request],
        )


class _NotedLoader(Loader):
    """Notes the copies of each chunk."""

    watch: Watch
    number: int
    booked_s: float | None = None
    """End of the copies of a planned restore, whose step has not been noted."""

    def take_booked_s(self) -> float | None:
        booked_s, self.booked_s = self.booked_s, None
        return booked_s

    def book(self, solo: SoloRestore, now_s: float) -> None:
        super().book(solo, now_s)
        self.booked_s = now_s + solo.link_end_s
        for lane, seconds in solo.busy_s:
            if lane != COMPUTE and seconds:
                begin_s = self.booked_s - seconds if lane == H2D else now_s
                span = WorkSpan(self.number, lane, RESTORE, begin_s, begin_s + seconds, 0)
                self.watch.add(span)

    def start(self, start_s: float) -> None:
        one, before = self.chosen(start_s), dict(self.busy_s)
        tokens = one.back
        super().start(start_s)
        tokens -= one.back
        for lane, busy_s in self.busy_s.items():
            seconds = busy_s - before.get(lane, 0.0)
            if seconds > 0:
                begin_s = one.load_end_s - seconds if lane == H2D else start_s
                span = WorkSpan(self.number, lane, RESTORE, begin_s, begin_s + seconds, tokens)
                self.watch.add(span)
        self.watch.restored(one, one.load_end_s)


def packed(requests: Sequence[RequestSpan], end_s: float) -> list[int]:
    """A row for each request, so that no two of a row overlap; rows are few."""
    rows: list[float] = []
    found = []
    for one in requests:
        free = next((row for row, until_s in enumerate(rows) if until_s <= one.arrival_s), None)
        if free is None:
            free = len(rows)
            rows.append(0.0)
        rows[free] = min(end_s, one.finish_s) if one.finish_s < inf else end_s
        found.append(free)
    return found
