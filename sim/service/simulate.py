"""Requests through a service: one loop over arrivals and the ends of engine steps.

Only steps are events. Copies are booked when a step begins or ends: within a step nothing changes
what the links do. `tests/service_reference.py` runs the same with a SimPy process for each engine,
loader and source of requests, and gives the same times within 1e-9.
"""

from __future__ import annotations

from math import inf
from typing import Protocol

from sim.progress import Progress, Silent
from sim.service.costs import ServiceCosts
from sim.service.instance import Instance
from sim.service.loader import Loader
from sim.service.service import Outcome, Router, Service
from sim.service.traces import RequestTrace

REPORT_REQUESTS = 500


class StepWatch(Protocol):
    """Follows a simulation."""

    def loader(self, costs: ServiceCosts, block_tokens: int, order: str) -> Loader:
        """The loader of an instance."""

    def step(self, number: int, instance: Instance, start_s: float, end_s: float) -> None:
        """Called when an instance has begun a step, or several that only decode."""


def simulate_service(
    service: Service,
    trace: RequestTrace,
    progress: Progress | None = None,
    watch: StepWatch | None = None,
) -> Outcome:
    """Times of all requests of a trace."""
    report = progress or Silent()
    trace = trace.in_order()
    instances, journal = service.build(trace, Loader if watch is None else watch.loader)
    router = Router(service.routing, instances)
    next_s = [inf] * len(instances)
    in_step = [False] * len(instances)
    n_requests, at, host_s = len(trace), 0, service.engine.request_s
    arrivals = [at_s + host_s for at_s in trace.arrival_s] if host_s else trace.arrival_s
    shared = len(instances) > 1 and "net" in service.tier_names
    while True:
        now_s = min(next_s)
        if at < n_requests and arrivals[at] < now_s:
            now_s = arrivals[at]
        if now_s == inf:
            return Outcome.of(service, trace, instances, journal)
        ready = []
        for number, one in enumerate(instances):
            if next_s[number] <= now_s:
                if in_step[number]:
                    one.end(now_s)
                    in_step[number] = False
                ready.append(number)
        while at < n_requests and arrivals[at] <= now_s:
            number = router.choose(at, now_s)
            instances[number].arrive(at)
            if not in_step[number] and number not in ready:
                ready.append(number)
            at += 1
            if at % REPORT_REQUESTS == 0:
                report("requests", at / n_requests)
        if shared:
            for one in instances:
                one.settle(now_s)
        until_s = arrivals[at] if at < n_requests else inf
        for number in ready:
            one = instances[number]
            seconds = one.begin(now_s)
            in_step[number] = seconds is not None
            if seconds is None:
                next_s[number] = one.wake_s(now_s)
            else:
                next_s[number] = one.coast(now_s, seconds, until_s)
                if watch is not None:
                    watch.step(number, one, now_s, next_s[number])
