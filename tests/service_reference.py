"""The same service with a SimPy process for each engine, each loader and the source of requests.

The reference takes every engine step and every chunk of a load as an event of its own. At one
moment steps end and requests arrive first, then steps begin, then loads begin.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from math import inf
from typing import Any

import simpy

from sim.service.instance import Instance
from sim.service.loader import Loader
from sim.service.service import Outcome, Router, Service
from sim.service.traces import RequestTrace

BEGIN, LOAD = 2, 3
"""Priorities at one moment, after those of SimPy itself, 0 and 1."""


class _Eager(Loader):
    """A loader whose chunks are started by a process of their own, when they start."""

    def advance(self, now_s: float) -> None:
        """Nothing is left to catch up with."""

    def end_s(self, now_s: float) -> float:  # noqa: ARG002
        """The process of the loads wakes the engine."""
        return inf


def reference_outcome(service: Service, trace: RequestTrace) -> Outcome:
    """Times of all requests of a trace, as `simulate_service` gives them."""
    trace = trace.in_order()
    instances, journal = service.build(trace, _Eager)
    run = _Run(service, trace, instances)
    run.env.run()
    return Outcome.of(service, trace, instances, journal)


class _Run:
    """Processes and their events. Times that decide are added up as the service adds them.

    SimPy keeps its own clock, which may differ from them in the last digit.
    """

    def __init__(self, service: Service, trace: RequestTrace, instances: list[Instance]) -> None:
        self.env = simpy.Environment()
        self.instances = instances
        self.router = Router(service.routing, instances)
        self.engines = [self.env.event() for _ in instances]
        """What each idle engine waits for."""
        self.loaders = [self.env.event() for _ in instances]
        for request, arrival_s in enumerate(trace.arrival_s):
            self.env.process(self._arrival(request, arrival_s + service.engine.request_s))
        for number in range(len(instances)):
            self.env.process(self._engine(number))
            self.env.process(self._loader(number))

    def _later(self, priority: int, delay_s: float = 0.0) -> simpy.Event:
        """An event after all others of its moment with a smaller priority."""
        event = simpy.Event(self.env)
        event._ok, event._value = True, None
        self.env.schedule(event, priority, max(0.0, delay_s))
        return event

    @staticmethod
    def _wake(events: list[Any], number: int, now_s: float) -> None:
        if not events[number].triggered:
            events[number].succeed(now_s)

    def _arrival(self, request: int, arrival_s: float) -> Iterator[simpy.Event]:
        yield self.env.timeout(arrival_s)
        number = self.router.choose(request, arrival_s)
        self.instances[number].arrive(request)
        self._wake(self.engines, number, arrival_s)

    def _engine(self, number: int) -> Generator[simpy.Event, float, None]:
        one, now_s = self.instances[number], 0.0
        while True:
            yield self._later(BEGIN)
            for other in self.instances:
                other.settle(now_s)
            seconds = one.begin(now_s)
            self._wake(self.loaders, number, now_s)
            if seconds is None:
                self.engines[number] = self.env.event()
                now_s = yield self.engines[number]
                continue
            yield self.env.timeout(seconds)
            now_s += seconds
            one.end(now_s)

    def _loader(self, number: int) -> Iterator[simpy.Event]:
        loader = self.instances[number].loader
        while True:
            start_s = loader.next_start_s()
            if start_s == inf:
                self.loaders[number] = self.env.event()
                yield self.loaders[number]
                continue
            yield self._later(LOAD, start_s - self.env.now)
            while loader.next_start_s() == start_s:  # several copies that take no time
                one = loader.chosen(start_s)
                loader.start(start_s)
                if one.claimed:
                    self.env.process(self._loaded(number, one.load_end_s))

    def _loaded(self, number: int, end_s: float) -> Iterator[simpy.Event]:
        yield self._later(1, end_s - self.env.now)
        self._wake(self.engines, number, end_s)
