"""Bars of a service over time: they are the times of the simulation, cut into phases."""

from __future__ import annotations

from itertools import pairwise

import pytest
from builders import examples
from hypothesis import given
from services import BLOCK, request_traces, service_machine, services, tiny_service

from sim.service import (
    PHASES,
    RequestTrace,
    packed,
    service_timeline,
    simulate_service,
)


def whole(service, trace):
    return service_timeline(service, trace, 0.0, 1e9)


@examples(20)
@given(services(), request_traces())
def test_phases_and_work_add_up_to_the_times_of_the_service(service, trace):
    outcome = simulate_service(service, trace)
    found = whole(service, trace)
    journal = outcome.journal
    assert [one.request for one in found.requests] == outcome.served
    for one in found.requests:
        at = one.request
        assert one.first_s == journal.first_s[at]
        assert one.hit_tokens == sum(hits[at] for hits in journal.hits.values())
        times = [one.arrival_s, one.admitted_s, one.restored_s, one.first_s, one.finish_s]
        assert times == sorted(times)
        spent = sum(end_s - start_s for _, start_s, end_s in one.phases)
        assert spent == pytest.approx(one.finish_s - one.arrival_s)
        assert [name for name, _, _ in one.phases] == [
            name for name in PHASES if name in {name for name, _, _ in one.phases}
        ]
    shown_s = dict.fromkeys(("compute", "h2d"), 0.0)
    for one in found.work:
        if one.lane in shown_s:
            shown_s[one.lane] += one.end_s - one.start_s
    assert shown_s["h2d"] == pytest.approx(outcome.busy_s["h2d"], abs=1e-9)
    assert shown_s["compute"] >= outcome.busy_s["compute"] - 1e-9  # a step may wait for copies


def test_a_hit_is_restored_then_the_rest_is_computed():
    """24 of 32 tokens are in the host cache, whose link copies 1,000 a second."""
    trace = RequestTrace(BLOCK)
    trace.add(0.0, 24, 1, [1, 2, 3])
    trace.add(1.0, 160, 1, list(range(100, 120)))
    trace.add(5.0, 160, 1, list(range(200, 220)))
    trace.add(9.0, 32, 1, [1, 2, 3, 4])
    service = tiny_service("load-only", gpu_blocks=24, hardware=service_machine(h2d=1e3))
    found = service_timeline(service, trace, 9.0, 10.0)
    (last,) = found.requests
    loads = [one for one in found.work if one.lane == "h2d"]
    assert sum(one.tokens for one in loads) == 24
    assert last.hit_tokens == 24
    assert last.restored_s == loads[-1].end_s
    assert last.restored_s - last.admitted_s == pytest.approx(24 / 1e3)
    (step,) = [one for one in found.work if one.lane == "compute"]
    assert (step.kind, step.tokens, step.end_s) == ("prefill", 8, last.first_s)


def test_only_what_touches_the_part_is_shown():
    trace = RequestTrace(BLOCK)
    for at in range(40):
        trace.add(at * 0.1, 40, 12, [at % 3, 10 + at])
    service = tiny_service("two-ended")
    every, part = whole(service, trace), service_timeline(service, trace, 1.0, 1.5)
    expected = [one for one in every.requests if one.finish_s > 1.0 and one.arrival_s < 1.5]
    assert [one.request for one in part.requests] == [one.request for one in expected]
    for one, same in zip(part.requests, expected, strict=True):
        assert one.arrival_s == same.arrival_s
        assert one.finish_s == same.finish_s or one.finish_s >= 1.5
    assert all(one.end_s > 1.0 and one.start_s < 1.5 for one in part.work)


def test_rows_hold_requests_that_do_not_overlap():
    trace = RequestTrace(BLOCK)
    for at in range(30):
        trace.add(at * 0.004, 40, 12, [at])
    found = whole(tiny_service(), trace)
    rows = packed(found.requests, found.end_s)
    by_row: dict[int, list] = {}
    for one, row in zip(found.requests, rows, strict=True):
        by_row.setdefault(row, []).append(one)
    for requests in by_row.values():
        for before, after in pairwise(requests):
            assert before.finish_s <= after.arrival_s
    assert len(by_row) < len(found.requests)
