"""Busy, hidden and idle time against a grid of nanoseconds that is counted point by point."""

from __future__ import annotations

import dataclasses

import pytest
from builders import machine
from hypothesis import given
from hypothesis import strategies as st

from sim.errors import NotMeasured
from sim.graph.timeline import intersection, length, union
from sim.lanes import D2H, H2D
from sim.traces.events import KERNEL, MEMSET, WITHIN, GpuWork, StepMark, TraceEvents
from sim.traces.link import LEAST_BYTES, with_link_from
from sim.traces.measured import MeasuredTrace
from sim.traces.rates import rate_curves

END = 60
TIMES = st.tuples(st.integers(0, END), st.integers(0, END)).map(sorted)
WORK = st.builds(
    lambda times, kind, stream, launch: GpuWork(
        *times, 0, str(stream), kind, "gemm", launch_ns=launch
    ),
    TIMES,
    st.sampled_from([KERNEL, KERNEL, H2D, D2H, MEMSET, WITHIN]),
    st.integers(1, 3),
    st.none() | st.integers(0, END),
)


def trace_of(work, steps=()):
    ordered = tuple(sorted(work, key=lambda one: one[:2]))
    return MeasuredTrace(TraceEvents("t.json", "Kineto", len(ordered), ordered, tuple(steps)))


def points(work, *kinds):
    """Nanoseconds in which work of some kinds runs."""
    return {point for one in work if one.kind in kinds for point in range(one.start_ns, one.end_ns)}


@given(st.lists(WORK, min_size=1, max_size=12))
def test_measures_count_every_nanosecond_once(work):
    found = trace_of(work)
    kernels, loads, stores = (points(work, kind) for kind in (KERNEL, H2D, D2H))
    moving, other = loads | stores, points(work, MEMSET, WITHIN)
    span = max(one.end_ns for one in work) - min(one.start_ns for one in work)
    expected = {
        "span_s": span,
        "kernel_s": len(kernels),
        "h2d_copy_s": len(loads),
        "h2d_hidden_s": len(loads & kernels),
        "d2h_copy_s": len(stores),
        "d2h_hidden_s": len(stores & kernels),
        "exposed_copy_s": len(moving - kernels),
        "other_s": len(other - moving - kernels),
        "idle_s": span - len(kernels | moving | other),
    }
    measures = dataclasses.asdict(found.measures)
    assert {key: round(1e9 * measures[key]) for key in expected} == expected
    idle = sum(dataclasses.asdict(found.idle).values())
    assert round(1e9 * idle) == expected["idle_s"]
    if loads:
        assert found.measures.h2d_overlap_frac == pytest.approx(len(loads & kernels) / len(loads))


@given(st.lists(WORK, min_size=1, max_size=12), st.integers(1, END - 1))
def test_two_steps_that_cover_the_trace_share_its_seconds(work, border):
    """Without launches every nanosecond of work belongs to the step whose annotation holds it."""
    work = [one._replace(launch_ns=None) for one in work]
    steps = [StepMark("step[a]", 0, border), StepMark("step[b]", border, END)]
    found = trace_of(work, steps)
    whole = dataclasses.asdict(found.measures)
    both = [dataclasses.asdict(step.measures) for step in found.steps]
    for key in ("kernel_s", "h2d_copy_s", "h2d_hidden_s", "d2h_hidden_s", "exposed_copy_s"):
        assert sum(part[key] for part in both) == pytest.approx(whole[key], abs=1e-15)
    assert [part["span_s"] for part in both] == pytest.approx([border / 1e9, (END - border) / 1e9])


@given(st.lists(WORK, min_size=1, max_size=12), st.integers(1, END - 1))
def test_launched_work_belongs_to_one_step_whole(work, border):
    steps = [StepMark("step[a]", 0, border), StepMark("step[b]", border, END + 1)]
    work = [one._replace(launch_ns=one.launch_ns or 0) for one in work]
    for at, step in enumerate(trace_of(work, steps).steps):
        mine = [one for one in work if (one.launch_ns >= border) == bool(at)]
        assert round(1e9 * step.measures.kernel_s) == len(points(mine, KERNEL))
        assert round(1e9 * step.measures.h2d_copy_s) == len(points(mine, H2D))
        hidden = points(mine, H2D) & points(work, KERNEL)
        assert round(1e9 * step.measures.h2d_hidden_s) == len(hidden)


@given(st.lists(TIMES), st.lists(TIMES))
def test_unions_and_intersections_of_intervals(left, right):
    one, other = ({p for start, end in some for p in range(start, end)} for some in (left, right))
    assert length(union(left)) == len(one)
    assert length(intersection(union(left), union(right))) == len(one & other)


def copies(sizes, lane=H2D, memory="pinned"):
    return [
        GpuWork(1000 * at, 1000 * at + spent, 0, "13", lane, "copy", size, memory)
        for at, (size, spent) in enumerate(sizes)
    ]


def test_rates_are_medians_of_the_copies_of_one_size():
    curves = rate_curves(copies([(1 << 20, 30), (1 << 20, 50), (1 << 20, 40), (1 << 22, 160)]))
    small, large = curves[H2D, "pinned"]
    assert (small.bytes, small.copies, small.seconds) == (1 << 20, 3, pytest.approx(40e-9))
    assert large.bytes_per_s == pytest.approx((1 << 22) / 160e-9)


@given(
    st.lists(st.tuples(st.integers(1, 1 << 30), st.integers(1, 1 << 20)), min_size=1, max_size=60)
)
def test_a_larger_copy_never_takes_less_time(sizes):
    (points_found,) = rate_curves(copies(sizes)).values()
    assert sum(point.copies for point in points_found) == len(sizes)
    assert len(points_found) <= 31
    by_size = [point.bytes for point in points_found]
    assert by_size == sorted(set(by_size))
    seconds = [point.seconds for point in points_found]
    assert seconds == sorted(seconds)


def linked(tmp_path, work):
    """The test machine with the link of a trace, and what was said of each direction."""
    trace_of(work).save(tmp_path / "t.json")
    return with_link_from(machine(), tmp_path / "t.json")


def test_a_machine_with_the_rates_of_a_trace(tmp_path):
    work = copies([(1 << 20, 50_000), (1 << 24, 400_000)])
    work += copies([(1 << 24, 900_000)], memory="pageable")
    work += copies([(64, 2_000)], D2H)
    changed, text = linked(tmp_path, work)
    h2d = changed.links.h2d
    assert h2d.copy_s(1 << 20) == (pytest.approx(50e-6), True)
    assert h2d.copy_s((1 << 20) + (15 << 19))[0] == pytest.approx(225e-6)
    assert h2d.copy_s(1 << 25) == (pytest.approx(800e-6), False)
    assert h2d.source == "measured"
    assert "t.json" in h2d.note
    assert changed.links.d2h == machine().links.d2h, "64 bytes tell no rate"
    assert "no copy of at least 64 KiB" in text[D2H]


def test_pageable_copies_count_where_no_other_is_large(tmp_path):
    work = copies([(64, 2_000)]) + copies([(1 << 24, 900_000)], memory="pageable")
    changed, text = linked(tmp_path, work)
    assert changed.links.h2d.bytes_per_s == pytest.approx((1 << 24) / 900e-6)
    assert "pageable" in text[H2D]


def test_a_trace_without_large_copies_has_no_rate(tmp_path):
    with pytest.raises(NotMeasured, match="no copy between host and device of at least 64 KiB"):
        linked(tmp_path, copies([(LEAST_BYTES - 1, 9)]))
