"""Errors are predicted minus measured, and only for one and the same graph."""

from __future__ import annotations

import json

import pytest
from builders import decode_graph, dispatch, graph, machine, slowed, task, unit_machine

from sim.engine.api import simulate
from sim.errors import Mismatch
from sim.graph.timeline import Timeline
from sim.lanes import COMPUTE, D2H, H2D
from sim.results.compare import WORST_TASKS, compare
from sim.results.recording import Recording

HARDWARE = unit_machine()
# Predicted: x 0-4, a 4-6, z 6-7.
GRAPH = graph(task("x", H2D, 4), task("a", COMPUTE, 2, "x"), task("z", D2H, 1, "a"))


def predicted(made=GRAPH, hardware=HARDWARE):
    return Recording("predicted", hardware, (simulate(made, hardware),))


def measured(*runs, made=GRAPH, hardware=HARDWARE):
    timelines = tuple(Timeline(made, *zip(*run, strict=True)) for run in runs)
    return Recording("measured", hardware, timelines)


SLOWER = measured([(0, 5), (5, 8), (9, 10)])


def test_a_prediction_compared_with_itself_has_no_error():
    found = compare(predicted(), predicted())
    assert found.makespan_error_frac == 0
    assert found.teacher_forced_error_frac == 0
    assert found.lane_busy_error_frac == {COMPUTE: 0, H2D: 0, D2H: 0}
    assert {entry.error_s for entry in found.worst_tasks} == {0}


def test_a_prediction_that_is_too_short_has_negative_errors():
    found = compare(predicted(), SLOWER)
    assert (found.predicted_makespan_s, found.measured_makespan_s) == (7, 10)
    assert found.makespan_error_frac == pytest.approx(-0.3)
    assert found.lane_busy_error_frac == pytest.approx({COMPUTE: -1 / 3, H2D: -0.2, D2H: 0})


def test_a_prediction_that_is_too_long_has_positive_errors():
    found = compare(predicted(), measured([(0, 2), (2, 3), (3, 4)]))
    assert found.makespan_error_frac == pytest.approx(0.75)
    assert found.lane_busy_error_frac == pytest.approx({COMPUTE: 1, H2D: 1, D2H: 0})
    assert {entry.task_id: entry.error_s for entry in found.worst_tasks} == {"x": 2, "a": 1, "z": 0}


def test_given_the_measured_times_only_the_error_of_waiting_is_left():
    # Measured durations 5, 3 and 1 chain to 9 s; the tenth second was spent between the lanes.
    assert compare(predicted(), SLOWER).teacher_forced_error_frac == pytest.approx(-0.1)


def test_the_naive_error_takes_only_the_busiest_lane():
    assert compare(predicted(), SLOWER).naive_error_frac == pytest.approx(4 / 10 - 1)


def test_overlap_and_exposed_copies_stand_side_by_side():
    overlapped = measured([(0, 4), (3, 6), (5, 6)])
    found = compare(predicted(), overlapped)
    assert (found.overlap_predicted_frac, found.overlap_measured_frac) == (0, pytest.approx(0.4))
    assert (found.exposed_copy_predicted_s, found.exposed_copy_measured_s) == (5, 3)


def test_the_worst_tasks_come_first_whatever_the_sign():
    found = compare(predicted(), measured([(0, 1), (1, 5), (5, 6)]))
    worst = [(entry.task_id, entry.error_s, entry.error_frac) for entry in found.worst_tasks]
    assert worst == [("x", 3, 3.0), ("a", -2, -0.5), ("z", 0, 0)]
    assert (found.worst_tasks[0].op, found.worst_tasks[0].lane) == ("load_kv", H2D)


def test_only_the_worst_tasks_are_listed():
    hardware = machine()
    made = decode_graph()
    guess = predicted(made, hardware)
    late = [(2 * span.start_s, 2 * span.end_s) for span in guess.typical.spans]
    found = compare(guess, measured(late, made=made, hardware=hardware))
    errors = [abs(entry.error_s) for entry in found.worst_tasks]
    assert len(errors) == WORST_TASKS < len(made.tasks)
    assert errors == sorted(errors, reverse=True)
    all_errors = sorted((span.duration_s for span in guess.typical.spans), reverse=True)
    assert errors == pytest.approx(all_errors[:WORST_TASKS])
    assert found.makespan_error_frac == pytest.approx(-0.5)


def test_the_median_repeat_is_compared_and_its_spread_stated():
    runs = [[(0, 4), (4, 6), (6, end)] for end in (8.0, 7.0, 9.0)]
    found = compare(predicted(), measured(*runs))
    assert found.measured_makespan_s == 8
    assert found.measured_spread_frac == pytest.approx(1 / 8)
    assert found.makespan_error_frac == pytest.approx(7 / 8 - 1)


def test_a_task_that_took_no_measurable_time_has_no_relative_error():
    found = compare(predicted(), measured([(0, 4), (4, 6), (6, 6)]))
    (entry,) = [entry for entry in found.worst_tasks if entry.task_id == "z"]
    assert (entry.error_s, entry.error_frac) == (1, 0)
    assert D2H not in found.lane_busy_error_frac


def test_timelines_of_different_graphs_are_not_compared():
    other = graph(task("x", H2D, 4), task("a", COMPUTE, 2), task("z", D2H, 1, "a"))
    with pytest.raises(Mismatch, match="different graphs") as failure:
        compare(predicted(), predicted(other))
    assert GRAPH.sha256[:12] in str(failure.value)
    assert other.sha256[:12] in str(failure.value)


def test_what_the_engine_knows_about_sharing_is_not_an_error_of_waiting():
    made = graph(task("x", H2D, 4), task("z", D2H, 2))
    truth_machine = unit_machine(
        interference=(slowed(H2D, D2H, 0.5),), dispatch=dispatch(gap_s=0.5)
    )
    truth = simulate(made, truth_machine)
    recording = Recording("measured", truth_machine, (truth,))
    found = compare(predicted(made, unit_machine()), recording)
    assert found.makespan_error_frac == pytest.approx(4 / 5 - 1)
    assert found.teacher_forced_error_frac == 0


def test_a_comparison_can_be_written_as_json():
    found = compare(predicted(), SLOWER)
    again = json.loads(json.dumps(found.to_dict()))
    assert again["graph_sha256"] == GRAPH.sha256
    assert again["makespan_error_frac"] == found.makespan_error_frac
    assert [entry["task_id"] for entry in again["worst_tasks"]] == ["x", "a", "z"]
