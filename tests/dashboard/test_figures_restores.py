"""The figures of a restore against timelines and tables made up by hand."""

import pandas as pd
import pytest
from builders import tiny_model
from lane_bars import times

from dashboard.figures import (
    OP_COLOUR,
    RESTORE_COLOUR,
    Meeting,
    NamedRun,
    availability_steps,
    both_ends,
    both_ends_compared,
    lanes_of,
    sources_by_layer,
    ttft_bars,
    ttft_curves,
)
from dashboard.figures import restores as restore_figures
from planner.restore.lower import compute_only_graph, split_graph, two_ended_graph
from planner.restore.split import RestoreSplit
from sim import TaskGraph, Timeline, Workload
from sim.errors import BadInput
from sim.graph.jobs import RestoreRequest
from sim.machine.availability import ALWAYS, Availability, Step

REQUEST = RestoreRequest(prompt_tokens=17, cached_tokens=16, chunk_tokens=4, io_chunk_tokens=2)
WALK = {
    "prefill.0": (0, 4),
    "prefill.4": (4, 8),
    "prefill.8": (8, 8),
    "prefill.12": (8, 8),
    "load_kv.14": (0, 2),
    "load_kv.12": (2, 4),
    "load_kv.10": (4, 6),
    "load_kv.8": (6, 8),
    "load_kv.6": (8, 8),
    "load_kv.4": (8, 8),
    "load_kv.2": (8, 8),
    "load_kv.0": (8, 8),
    "prefill.16": (8, 12),
    "head": (12, 13),
}
"""Two ends that meet at token 8 after 8 s; tasks that find nothing left are skipped."""


def timed(graph, times, factor=1.0):
    start, end = zip(*(times[task.id] for task in graph.tasks), strict=True)
    scaled = (tuple(factor * time_s for time_s in column) for column in (start, end))
    return Timeline(graph, *scaled)


@pytest.fixture(scope="module")
def graph():
    return two_ended_graph(tiny_model(), REQUEST)


@pytest.fixture(scope="module")
def walk(graph):
    return timed(graph, WALK)


def named(figure):
    return {trace.name: trace for trace in figure.data if trace.name}


def test_a_task_is_a_box_as_high_as_its_tokens_and_as_long_as_it_takes(walk):
    boxes = named(both_ends(walk))
    prefill, loads = boxes["prefill"], boxes["load_kv"]
    assert list(prefill.base) == [0, 4000, 8000]
    assert list(prefill.x) == [4000, 4000, 4000]
    assert list(prefill.y) == [2, 6, 16.5]
    assert list(prefill.width) == [4, 4, 1]
    assert list(loads.base) == [0, 2000, 4000, 6000]
    assert list(loads.y) == [15, 13, 11, 9], "from the last cached token on down"
    assert prefill.marker.color == OP_COLOUR["prefill"]
    assert "tokens 8 to 10" in loads.hovertext[-1]


def test_the_meeting_and_the_first_token_are_marked(walk):
    figure = both_ends(walk)
    assert Meeting.of(walk) == Meeting(8, 8.0)
    mark = named(figure)["the ends meet at token 8, 8,000.0 ms"]
    assert (mark.x[0], mark.y[0]) == (8000, 8)
    assert figure.layout.annotations[0].text == "meet at token 8"
    assert list(named(figure)["first token: 13,000.0 ms"].x) == [13000, 13000]
    assert list(figure.layout.yaxis.range) == [0, 17]
    assert figure.layout.xaxis.title.text == "time since the request (ms)"


def test_what_has_come_so_far_is_shaded_up_to_the_front_of_each_end(walk):
    below, above = (trace for trace in both_ends(walk).data if trace.name is None)
    assert list(below.x) == [0, 0, 4000, 8000, 13000, 13000]
    assert list(below.y) == [0, 0, 4, 8, 8, 0]
    assert list(above.y) == [16, 16, 14, 12, 10, 8, 8, 16]


def test_one_resource_alone_meets_nobody():
    graph = compute_only_graph(tiny_model(), REQUEST)
    alone = timed(graph, {task.id: (at, at + 1) for at, task in enumerate(graph.tasks)})
    assert Meeting.of(alone) is None
    figure = both_ends(alone)
    assert not figure.layout.annotations
    assert "load_kv" not in named(figure)


def test_both_legs_of_a_tier_are_boxes_of_their_own():
    request = RestoreRequest(
        prompt_tokens=5, cached_tokens=4, tier="ssd", chunk_tokens=4, io_chunk_tokens=2
    )
    graph = split_graph(tiny_model(), request, RestoreSplit.even(tiny_model(), 0))
    times = {
        "read_kv.2": (0, 3),
        "load_kv.2": (3, 4),
        "read_kv.0": (3, 6),
        "load_kv.0": (6, 7),
        "prefill.4": (7, 8),
        "head": (8, 9),
    }
    boxes = named(both_ends(timed(graph, times)))
    assert list(boxes["read_kv"].base) == [0, 3000]
    assert list(boxes["load_kv"].base) == [3000, 6000]
    assert list(boxes["read_kv"].y) == list(boxes["load_kv"].y) == [3, 1]


def test_many_tasks_are_merged_with_their_neighbours(walk, monkeypatch):
    monkeypatch.setattr(restore_figures, "MAX_BOXES", 6)
    monkeypatch.setattr(restore_figures, "SHORTEST_PART", 0.7)
    loads = named(both_ends(walk))["load_kv"]
    assert list(loads.base) == [0]
    assert (list(loads.y), list(loads.width)) == ([12], [8]), "all that moved, in one box"
    assert "4 tasks" in loads.hovertext[0]


def test_a_measured_walk_lies_under_the_predicted_fronts(graph, walk):
    measured = timed(graph, WALK, 1.5)
    figure = both_ends_compared(walk, measured)
    traces = named(figure)
    assert list(traces["prefill"].x) == [6000, 6000, 6000]
    assert list(traces["predicted compute"].x) == [0, 4000, 8000]
    assert list(traces["predicted compute"].y) == [0, 4, 8]
    assert list(traces["predicted loads"].y) == [16, 14, 12, 10, 8]
    assert "predicted to meet at token 8, 8,000.0 ms" in traces
    assert "first token, predicted: 13,000.0 ms" in traces
    assert "first token: 19,500.0 ms" in traces


def test_a_decode_has_no_two_ends():
    empty = TaskGraph("row", tiny_model(), Workload(1, 8, 1), 0, ())
    with pytest.raises(BadInput, match="a decode, not a restore"):
        both_ends(Timeline(empty, (), ()))


def test_every_token_of_every_layer_has_one_way():
    request = RestoreRequest(prompt_tokens=20, cached_tokens=16)
    figure = sources_by_layer(RestoreSplit((8, 4), (4, 12), True), tiny_model(), request)
    columns = [
        sorted((trace.base[layer], trace.base[layer] + trace.y[layer]) for trace in figure.data)
        for layer in (0, 1)
    ]
    assert columns == [[(0, 8), (8, 12), (12, 16), (16, 20)], [(0, 4), (4, 16), (16, 16), (16, 20)]]
    legend = [trace.name for trace in figure.data if trace.showlegend]
    assert legend == ["computed", "projected from X", "loaded"]


def test_lanes_of_one_run_have_one_row_each(walk):
    chart = lanes_of([NamedRun("", walk)])
    assert [row.lane for row in chart.rows] == ["compute", "h2d"]
    assert times(chart, "load_kv")[0] == [0, 2000, 4000, 6000], "skipped tasks are not drawn"


@pytest.fixture
def sweep():
    """Loading takes 8 / x, computing 2, both at once as long as each alone or 1."""
    nan = float("nan")
    return pd.DataFrame(
        {
            "gib_per_s": [1.0, 2.0, 4.0, 8.0],
            "compute-only_s": [2.0] * 4,
            "load-only_s": [8.0, 4.0, 2.0, 1.0],
            "two-ended_s": [1.5, 1.5, 1.5, 1.5],
            "lp_s": [1.5, 1.4, 1.3, 1.0],
            "layer-wise_s": [3.0, nan, nan, 0.5],
            "joint_s": [1.5, nan, nan, 0.5],
        }
    )


def test_curves_of_all_policies_with_crossings_and_losses(sweep):
    figure = ttft_curves(sweep, "rate (GiB/s)", 2.0)
    traces = named(figure)
    assert set(RESTORE_COLOUR) <= set(traces)
    assert list(traces["joint"].x) == [1, 8], "only where it was planned"
    assert list(traces["joint"].y) == [1500, 500]
    met = traces["load-only meets compute-only"]
    assert (list(met.x), list(met.y)) == (pytest.approx([4]), pytest.approx([2000]))
    lost = traces["two-ended loses to one resource alone"]
    assert list(lost.x[:2]) == pytest.approx([16 / 3, 8])
    assert list(traces["set now: 2 GiB/s"].x) == [2, 2]
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"
    assert 10 ** figure.layout.yaxis.range[1] < 8000, "loading alone leaves the top"


def test_curves_are_drawn_before_all_policies_are_planned(sweep):
    traces = named(ttft_curves(sweep.drop(columns=["layer-wise_s", "joint_s"]), "x", 1.0))
    assert "joint" not in traces
    assert "two-ended" in traces


def test_bars_tell_times_and_ratios():
    (bars,) = ttft_bars({"kept": 0.4, "planned again": 0.1}, "kept").data
    assert list(bars.x) == pytest.approx([400, 100])
    assert list(bars.text) == ["400.0 ms · 1.00 x", "100.0 ms · 4.00 x"]


def test_availability_is_drawn_until_the_end_of_the_run():
    trace = Availability((Step(1.0, (("net", 0.25),)), Step(3.0, ())))
    compute, net = availability_steps(trace, ("compute", "net"), 5.0).data
    assert list(net.x) == [0, 1000, 3000, 5000]
    assert list(net.y) == [100, 25, 100, 100]
    assert set(compute.y) == {100}
    assert availability_steps(ALWAYS, ("net",), 5.0).data[0].x == (0, 5000)
