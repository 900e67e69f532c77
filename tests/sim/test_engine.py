"""Exact timelines of tiny graphs, computed by hand, then the engine against the longest path."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import (
    both_engines,
    decode_graph,
    dispatch,
    examples,
    graph,
    machine,
    random_graphs,
    slowed,
    task,
    times,
    unit_machine,
)
from hypothesis import given
from hypothesis import strategies as st

from sim.cost.model import CostModel
from sim.engine.api import replay, simulate
from sim.engine.launch import launch_times
from sim.errors import BadInput
from sim.graph.timeline import earliest_schedule
from sim.lanes import COMPUTE, D2H, H2D
from sim.machine.links import Link, Uplink


def run(*tasks, **machine_changes):
    return times(both_engines(graph(*tasks), unit_machine(**machine_changes)))


def uplink(name, devices, bytes_per_s):
    return Uplink(name, devices, bytes_per_s, bytes_per_s)


def test_a_lane_runs_its_tasks_one_after_another_in_graph_order():
    assert run(task("a", H2D, 2), task("b", H2D, 3), task("c", H2D, 1)) == {
        "a": (0, 2),
        "b": (2, 5),
        "c": (5, 6),
    }


def test_lanes_work_at_the_same_time():
    assert run(task("a", H2D, 2), task("b", D2H, 3), task("c", COMPUTE, 4)) == {
        "a": (0, 2),
        "b": (0, 3),
        "c": (0, 4),
    }


def test_a_task_waits_for_all_its_deps_on_other_lanes():
    assert run(task("a", H2D, 2), task("b", D2H, 5), task("c", COMPUTE, 1, "a", "b")) == {
        "a": (0, 2),
        "b": (0, 5),
        "c": (5, 6),
    }


def test_a_waiting_task_blocks_its_lane_even_when_the_next_could_run():
    assert run(task("a", H2D, 4), task("b", COMPUTE, 1, "a"), task("c", COMPUTE, 1)) == {
        "a": (0, 4),
        "b": (4, 5),
        "c": (5, 6),
    }


def test_a_load_waits_until_its_staging_slot_has_been_read():
    def through_slots(count):
        tasks = []
        for layer in range(4):
            reader = [f"use{layer - count}"] if layer >= count else []
            tasks.append(task(f"load{layer}", H2D, 1, *reader))
            tasks.append(task(f"use{layer}", COMPUTE, 3, f"load{layer}"))
        return run(*tasks)

    double = through_slots(2)
    assert [double[f"load{layer}"] for layer in range(4)] == [(0, 1), (1, 2), (4, 5), (7, 8)]
    assert [double[f"use{layer}"][0] for layer in range(4)] == [1, 4, 7, 10]
    single = through_slots(1)
    assert [single[f"load{layer}"] for layer in range(4)] == [(0, 1), (4, 5), (8, 9), (12, 13)]


def test_the_host_issues_in_graph_order_and_late_issue_delays_a_lane():
    costs = dispatch(task_s=0.5, copy_s=0.25, kernel_s=0.125)
    done = run(task("a", H2D, 1), task("b", COMPUTE, 1), task("c", D2H, 1), dispatch=costs)
    # `embed` launches two kernels.
    assert done == {"a": (0.75, 1.75), "b": (1.5, 2.5), "c": (2.25, 3.25)}


def test_lanes_that_are_held_give_the_host_a_head_start():
    costs = dispatch(task_s=0.5, copy_s=0.25, head_start_s=0.875)
    done = run(task("a", H2D, 1), task("c", D2H, 1), dispatch=costs)
    assert done == {"a": (0.0, 1.0), "c": (0.625, 1.625)}


def test_issue_costs_vanish_behind_a_busy_lane():
    costs = dispatch(task_s=0.5, copy_s=0.25)
    done = run(task("a", H2D, 4), task("b", H2D, 4), dispatch=costs)
    assert done == {"a": (0.75, 4.75), "b": (4.75, 8.75)}


def test_a_lane_pauses_between_its_tasks_but_not_before_the_first():
    done = run(task("a", H2D, 1), task("b", H2D, 1), dispatch=dispatch(gap_s=0.5))
    assert done == {"a": (0, 1), "b": (1.5, 2.5)}


def test_a_hand_over_delays_only_the_lane_that_waited():
    costs = dispatch(handover_s=0.25, gap_s=0.125)
    done = run(
        task("a", H2D, 2),
        task("b", COMPUTE, 3),
        task("late", COMPUTE, 1, "a"),
        task("c", D2H, 1, "a"),
        task("d", H2D, 1, "a"),
        dispatch=costs,
    )
    assert done["late"] == (3.125, 4.125)
    assert done["c"] == (2.25, 3.25)
    assert done["d"] == (2.125, 3.125)


def test_gap_and_hand_over_run_at_the_same_time():
    costs = dispatch(handover_s=0.75, gap_s=0.5)
    tasks = [task("a", H2D, 2), task("b", COMPUTE, 2), task("c", COMPUTE, 1, "a")]
    assert run(*tasks, dispatch=costs)["c"] == (2.75, 3.75)


def test_a_load_at_half_pace_beside_a_store_ends_later_by_half_the_store():
    done = run(task("in", H2D, 4), task("out", D2H, 2), interference=(slowed(H2D, D2H, 0.5),))
    assert done == {"out": (0, 2), "in": (0, 5)}


def test_both_directions_at_half_pace_while_both_are_busy():
    both = (slowed(H2D, D2H, 0.5), slowed(D2H, H2D, 0.5))
    done = run(task("in", H2D, 4), task("out", D2H, 2), interference=both)
    assert done == {"out": (0, 4), "in": (0, 6)}


def test_slowing_lasts_only_as_long_as_the_other_lane_is_busy():
    tasks = [
        task("first", COMPUTE, 1),
        task("out", D2H, 2, "first"),
        task("second", COMPUTE, 4, "out"),
        task("out2", D2H, 1, "second"),
        task("in", H2D, 8),
    ]
    done = run(*tasks, interference=(slowed(H2D, D2H, 0.5),))
    assert done["out2"] == (7, 8)
    assert done["in"] == (0, 9.5)


def test_factors_of_two_busy_lanes_multiply():
    factors = (slowed(H2D, D2H, 0.5), slowed(H2D, COMPUTE, 0.5))
    done = run(
        task("in", H2D, 3), task("out", D2H, 4), task("work", COMPUTE, 4), interference=factors
    )
    assert done["in"] == (0, 6)


def test_devices_do_not_slow_each_other_without_a_shared_path():
    tasks = [task("in", H2D, 4), task("out", D2H, 2, device=1)]
    assert run(*tasks, interference=(slowed(H2D, D2H, 0.5),))["in"] == (0, 4)


def test_two_devices_share_an_uplink_and_the_last_gets_all_of_it():
    tasks = [task("a", H2D, 4), task("b", H2D, 2, device=1)]
    done = run(*tasks, uplinks=(uplink("switch", (0, 1), 1.0),))
    assert done == {"b": (0, 4), "a": (0, 6)}


def test_an_uplink_with_room_for_all_slows_nobody():
    tasks = [task("a", H2D, 4), task("b", H2D, 2, device=1)]
    done = run(*tasks, uplinks=(uplink("switch", (0, 1), 2.0),))
    assert done == {"a": (0, 4), "b": (0, 2)}


def test_each_direction_of_an_uplink_is_shared_on_its_own():
    tasks = [task("a", H2D, 4), task("b", D2H, 2, device=1)]
    assert run(*tasks, uplinks=(uplink("switch", (0, 1), 1.0),))["a"] == (0, 4)


def test_a_transfer_that_starts_later_takes_its_share_from_then_on():
    tasks = [
        task("wait", COMPUTE, 2, device=1),
        task("a", H2D, 4),
        task("b", H2D, 4, "wait", device=1),
    ]
    done = run(*tasks, uplinks=(uplink("switch", (0, 1), 1.0),))
    # a: 2 s alone, then its other 2 bytes at half pace until 6; b has 2 left and is alone.
    assert done["a"] == (0, 6)
    assert done["b"] == (2, 8)


def test_the_tighter_of_two_uplinks_decides_and_frees_room_on_the_other():
    # left: devices 0 and 1, 1 byte/s; right: devices 1 and 2, 1/2 byte/s.
    # b and c get 1/4 each on the right, which leaves 3/4 of the left to a.
    tasks = [task("a", H2D, 3), task("b", H2D, 2, device=1), task("c", H2D, 1, device=2)]
    uplinks = (uplink("left", (0, 1), 1.0), uplink("right", (1, 2), 0.5))
    done = run(*tasks, uplinks=uplinks)
    assert {name: end for name, (_, end) in done.items()} == {"a": 4, "c": 4, "b": 6}


def test_a_copy_slower_than_its_share_leaves_the_rest_to_the_other():
    # With 4 s latency the 4-byte copy alone asks for 1/2 byte/s; the 12-byte copy for 3/4.
    link = Link("datasheet", 1.0, latency_s=4.0)
    hardware = replace(machine(h2d=link), uplinks=(uplink("switch", (0, 1), 1.0),))
    tasks = [task("small", H2D, 4), task("large", H2D, 12, device=1)]
    done = times(both_engines(graph(*tasks), hardware))
    assert done["small"] == (0, 8)
    # large: 8 s at 1/2 byte/s, its last 8 bytes at 3/4.
    assert done["large"] == (0, pytest.approx(8 + 8 / 0.75))


def test_bytes_over_a_saturated_uplink_take_exactly_their_time():
    loads = [task(f"t{number}", H2D, 5, device=number % 3) for number in range(9)]
    hardware = unit_machine(uplinks=(uplink("switch", (0, 1, 2), 0.5),))
    assert both_engines(graph(*loads), hardware).makespan_s == pytest.approx(45 / 0.5)


@given(random_graphs(devices=2))
@examples(60)
def test_sharing_loses_no_task_and_makes_none_faster(made):
    hardware = unit_machine(uplinks=(uplink("switch", (0, 1), 1.0),))
    timeline = simulate(made, hardware)
    assert [span.task for span in timeline.spans] == list(made.tasks)
    for span in timeline.spans:
        assert span.duration_s >= span.task.n_tokens * (1 - 1e-12)


@given(random_graphs(), st.sampled_from([{}, {"task_s": 0.5}, {"gap_s": 0.5, "handover_s": 0.75}]))
@examples(100)
def test_without_sharing_the_engine_is_the_longest_path(made, pauses):
    hardware = unit_machine(dispatch=dispatch(**pauses))
    costs = CostModel(hardware, made.model, made.workload)
    durations = [costs.estimate(one).seconds for one in made.tasks]
    launched, pause = launch_times(made, costs), hardware.dispatch
    path = earliest_schedule(made, durations, launched, pause.gap_s, pause.handover_s)
    timeline = simulate(made, hardware, "simpy")
    assert (timeline.start_s, timeline.end_s) == (path.start_s, path.end_s)


@pytest.mark.parametrize("lane", [H2D, D2H])
def test_a_dep_on_the_same_lane_of_another_device_is_handed_over_alike(lane):
    made = graph(task("a", H2D, 2), task("b", lane, 1, "a", device=1))
    hardware = unit_machine(dispatch=dispatch(handover_s=0.5))
    path = earliest_schedule(made, [2.0, 1.0], [0.0, 0.0], handover_s=0.5)
    assert path.start_s == both_engines(made, hardware).start_s == (0.0, 2.5)


@given(random_graphs(devices=2))
@examples(60)
def test_replaying_a_timeline_with_its_own_durations_gives_it_back(made):
    hardware = unit_machine(dispatch=dispatch(gap_s=0.25, task_s=0.125))
    timeline = simulate(made, hardware)
    again = replay(made, timeline.duration_s, hardware)
    assert again.makespan_s == pytest.approx(timeline.makespan_s, rel=1e-12)
    assert again.end_s == pytest.approx(timeline.end_s, rel=1e-12)


def test_replay_does_not_slow_measured_times_down_again():
    made = graph(task("in", H2D, 4), task("out", D2H, 2))
    hardware = unit_machine(interference=(slowed(H2D, D2H, 0.5),))
    timeline = simulate(made, hardware)
    assert timeline.makespan_s == 5
    assert replay(made, timeline.duration_s, hardware).makespan_s == 5


def test_replay_refuses_the_wrong_number_of_durations():
    with pytest.raises(BadInput, match="1 durations for 2 tasks"):
        replay(graph(task("a", H2D, 1), task("b", H2D, 1)), [1.0], unit_machine())


def test_the_same_graph_gives_the_same_timeline_every_time():
    made = decode_graph()
    hardware = machine(interference=(slowed(H2D, D2H, 0.7), slowed(D2H, H2D, 0.7)))
    assert simulate(made, hardware) == simulate(made, hardware)
