"""Overlap, exposed copies, idle causes and critical paths of timelines drawn by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
from builders import (
    dispatch,
    examples,
    graph,
    random_graphs,
    slowed,
    task,
    unit_machine,
)
from hypothesis import given
from hypothesis import strategies as st

from sim.engine.api import simulate
from sim.errors import BadInput
from sim.graph.timeline import Timeline, earliest_schedule, intersection, length, union
from sim.lanes import COMPUTE, COPY_LANES, D2H, H2D, LANES


def timeline(*entries):
    """A timeline of (task, start, end) entries."""
    tasks, starts, ends = zip(*entries, strict=True)
    return Timeline(graph(*tasks), starts, ends)


# compute  |  a a . . b b b .
# h2d      |  . x x x . y y .
# d2h      |  . . . . . . z z
DRAWN = timeline(
    (task("a", COMPUTE, 2), 0.0, 2.0),
    (task("x", H2D, 3), 1.0, 4.0),
    (task("b", COMPUTE, 3, "x"), 4.0, 7.0),
    (task("y", H2D, 2), 5.0, 7.0),
    (task("z", D2H, 2), 6.0, 8.0),
)


def test_busy_time_of_each_lane():
    assert [DRAWN.busy_s(lane) for lane in LANES] == [5, 5, 2, 0]
    assert DRAWN.busy_s(COMPUTE, device=1) == 0


def test_copy_time_counts_both_directions_at_once_only_once():
    assert DRAWN.copy_s == 6
    assert DRAWN.intervals(COPY_LANES) == [(1, 4), (5, 8)]


def test_overlap_is_copy_time_beside_compute():
    assert DRAWN.overlapped_copy_s == 3
    assert DRAWN.exposed_copy_s == 3
    assert DRAWN.overlap_frac == 0.5


def test_without_copies_everything_overlaps():
    assert timeline((task("a", COMPUTE, 2), 0.0, 2.0)).overlap_frac == 1.0


def test_breakdown_in_three_parts():
    found = timeline(
        (task("x", H2D, 1), 1.0, 2.0), (task("a", COMPUTE, 2, "x"), 2.5, 4.5)
    ).breakdown
    assert (found.compute_s, found.exposed_copy_s, found.idle_s) == (2, 1, 1.5)


def test_another_device_does_not_count_as_overlap():
    drawn = timeline((task("a", COMPUTE, 2, device=1), 0.0, 2.0), (task("x", H2D, 2), 0.0, 2.0))
    assert drawn.exposed_copy_s == 2


def test_idle_time_is_booked_on_the_lane_of_the_last_dep():
    assert DRAWN.idle_by_cause(COMPUTE) == {"waits for h2d": 2, "drained": 1}
    # Nothing in the graph explains why x and y did not start at once.
    assert DRAWN.idle_by_cause(H2D) == {"hand-over": 2, "drained": 1}
    assert DRAWN.idle_by_cause(D2H) == {"hand-over": 6}


def test_time_between_the_end_of_a_dep_and_the_start_is_hand_over():
    drawn = timeline((task("x", H2D, 2), 0.0, 2.0), (task("a", COMPUTE, 1, "x"), 2.25, 3.25))
    assert drawn.idle_by_cause(COMPUTE) == {"waits for h2d": 2, "hand-over": 0.25}


def test_a_dep_that_was_done_in_time_is_not_waited_for():
    drawn = timeline(
        (task("x", H2D, 1), 0.0, 1.0),
        (task("a", COMPUTE, 3), 0.0, 3.0),
        (task("b", COMPUTE, 1, "x"), 3.5, 4.5),
    )
    assert drawn.idle_by_cause(COMPUTE) == {"hand-over": 0.5}


def test_a_task_measured_to_start_before_its_dep_ended_waited_only_until_it_started():
    drawn = timeline((task("x", H2D, 2), 0.0, 2.0), (task("a", COMPUTE, 1, "x"), 1.875, 3.0))
    assert drawn.idle_by_cause(COMPUTE) == {"waits for h2d": 1.875}


def test_a_lane_without_work_is_drained_from_the_start():
    assert timeline((task("a", COMPUTE, 2), 0.0, 2.0)).idle_by_cause(H2D) == {"drained": 2}


def names(drawn):
    return [drawn.graph.tasks[at].id for at in drawn.critical_path]


def test_the_critical_path_follows_whatever_ended_last():
    assert names(DRAWN) == ["z"]
    drawn = timeline(
        (task("x", H2D, 3), 0.0, 3.0),
        (task("a", COMPUTE, 1), 0.0, 1.0),
        (task("b", COMPUTE, 2, "x"), 3.0, 5.0),
        (task("y", H2D, 1), 3.0, 4.0),
        (task("c", COMPUTE, 2, "y"), 5.0, 7.0),
    )
    assert names(drawn) == ["x", "b", "c"]


def test_the_critical_path_crosses_a_slot_that_is_written_again():
    drawn = simulate(
        graph(
            task("load0", H2D, 1),
            task("use0", COMPUTE, 3, "load0"),
            task("load1", H2D, 1, "use0"),
            task("use1", COMPUTE, 3, "load1"),
        ),
        unit_machine(),
    )
    assert names(drawn) == ["load0", "use0", "load1", "use1"]


def test_an_empty_timeline_has_nothing_to_say():
    empty = Timeline(graph(), (), ())
    assert (empty.makespan_s, empty.copy_s, empty.critical_path) == (0.0, 0, ())


@pytest.mark.parametrize(
    ("start", "end"), [(2.0, 1.0), (-1.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))]
)
def test_a_span_that_is_none_is_refused_with_the_task(start, end):
    with pytest.raises(BadInput, match="task a runs from"):
        timeline((task("a", H2D, 1), start, end))


def test_times_for_another_number_of_tasks_are_refused():
    with pytest.raises(BadInput, match="2 starts and 1 ends"):
        Timeline(graph(task("a", H2D, 1)), (0.0, 1.0), (1.0,))


PAUSES = st.sampled_from([{}, {"gap_s": 0.5, "task_s": 0.25}, {"handover_s": 0.75}])


@given(random_graphs(), PAUSES)
@examples(100)
def test_the_breakdown_adds_up_to_the_makespan(made, pauses):
    drawn = simulate(made, unit_machine(dispatch=dispatch(**pauses)))
    parts = drawn.breakdown
    assert min(parts.compute_s, parts.exposed_copy_s, parts.idle_s) >= -1e-9
    total = parts.compute_s + parts.exposed_copy_s + parts.idle_s
    assert total == pytest.approx(drawn.makespan_s)
    assert 0 <= drawn.overlap_frac <= 1


@given(random_graphs(devices=2), PAUSES)
@examples(100)
def test_idle_and_busy_time_of_every_lane_add_up_to_the_makespan(made, pauses):
    interference = (slowed(H2D, D2H, 0.5),)
    hardware = unit_machine(dispatch=dispatch(**pauses), interference=interference)
    drawn = simulate(made, hardware)
    for device in (0, 1):
        for lane in LANES:
            idle = drawn.idle_by_cause(lane, device)
            assert min(idle.values(), default=1) > 0
            total = sum(idle.values()) + drawn.busy_s(lane, device)
            assert total == pytest.approx(drawn.makespan_s)


@given(random_graphs())
@examples(100)
def test_a_critical_path_without_pauses_fills_the_makespan(made):
    drawn = simulate(made, unit_machine())
    spans = [drawn.spans[at] for at in drawn.critical_path]
    assert sum(span.duration_s for span in spans) == pytest.approx(drawn.makespan_s)
    assert spans[0].start_s == 0
    assert spans[-1].end_s == drawn.makespan_s


def test_the_earliest_schedule_by_hand():
    made = graph(
        task("x", H2D, 2), task("a", COMPUTE, 1), task("b", COMPUTE, 1, "x"), task("y", H2D, 1)
    )
    found = earliest_schedule(made, [2, 1, 1, 1], [0.5, 0.75, 1.0, 5.0], 0.25, 0.125)
    assert found.start_s == (0.5, 0.75, 2.625, 5.0)
    assert found.end_s == (2.5, 1.75, 3.625, 6.0)


POINTS = st.integers(0, 20)
INTERVALS = st.lists(st.tuples(POINTS, POINTS), max_size=8)


def covered(intervals):
    """The unit cells that half-open whole-number intervals cover."""
    return {cell for start, end in intervals for cell in range(start, end)}


@given(INTERVALS)
@examples(200)
def test_a_union_covers_the_same_points_disjointly(intervals):
    merged = union(intervals)
    assert covered(merged) == covered(intervals)
    assert length(merged) == len(covered(intervals))
    assert all(early[1] < late[0] for early, late in pairwise(merged))


@given(INTERVALS, INTERVALS)
@examples(200)
def test_an_intersection_covers_what_both_cover(left, right):
    common = intersection(union(left), union(right))
    assert covered(common) == covered(left) & covered(right)
    assert length(common) == len(covered(common))
