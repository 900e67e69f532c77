"""The figures of plans and sweeps against numbers made up by hand."""

from dataclasses import replace

import pandas as pd
import pytest

from dashboard.figures import (
    MEASURES,
    POLICY_COLOUR,
    MemoryUse,
    crossover_curves,
    heat_map,
    memory_bars,
    policy_bars,
    sensitivity_bars,
    split_by_layer,
    split_curve,
    split_map,
)
from dashboard.figures.memory import BEYOND
from planner import StepSplit
from planner.decode.plan import Sensitivity
from sim.machine.profile import Memory

STEPS = (
    StepSplit(0, 100, (25, 50, 0), (75, 50, 100), (0, 0, 0)),
    StepSplit(1, 200, (50, 200, 0), (150, 0, 200), (0, 0, 0)),
)


def names_of(figure):
    return [trace.name for trace in figure.data]


def test_map_shows_the_recomputed_share_of_every_layer_and_step():
    figure = split_map(STEPS)
    (cells,) = figure.data
    assert [list(row) for row in cells.z] == [[25, 50, 0], [25, 100, 0]]
    assert list(cells.x) == [0, 1, 2]
    assert list(cells.y) == [0, 1]
    assert list(cells.customdata[1][0]) == [50, 150, 0, 200], "all three ways in the hover"
    assert cells.colorbar.title.text == "recomputed (%)"
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == (
        "layer",
        "decode step",
    )


def test_ways_of_a_step_add_up_to_its_past_tokens():
    figure = split_by_layer(STEPS[1])
    assert names_of(figure) == ["recomputed", "loaded"], "nothing is resident here"
    assert [sum(counts) for counts in zip(*(bar.y for bar in figure.data), strict=True)] == [
        200
    ] * 3
    assert figure.layout.barmode == "stack"
    assert figure.layout.yaxis.title.text == "past tokens in step 1"


def test_a_layer_without_past_tokens_is_blank_in_the_map():
    (cells,) = split_map([StepSplit(0, 100, (0, 50), (0, 50), (0, 0))]).data
    assert cells.z[0][0] is None or cells.z[0][0] != cells.z[0][0]
    assert cells.z[0][1] == 50


def test_policies_come_fastest_first_with_their_ratio_and_the_bound():
    makespans = {"load-all": 0.2, "lp": 0.1, "kvpr": 0.15}
    figure = policy_bars(makespans, 0.09, "lp")
    bars, bound = figure.data
    assert list(figure.layout.yaxis.ticktext) == ["<b>lp</b>", "kvpr", "load-all"]
    assert list(bars.x) == pytest.approx([100, 150, 200])
    assert bars.text[1] == "150.0 ms · 1.33 x"
    assert figure.layout.xaxis.title.text.endswith("x: times as fast as load-all")
    assert bars.marker.color[0] == POLICY_COLOUR["lp"]
    assert [x for x in bound.x if x is not None] == pytest.approx([90] * 8)
    drawn = [y for y in bound.y if y is not None]
    assert [min(abs(y - row) for row in range(3)) for y in drawn[1:-1]] == pytest.approx([0.36] * 6)
    assert bound.name == "no split is faster than 90.0 ms"


def test_savings_stand_in_per_cent_by_the_duals_and_solved_again():
    figure = sensitivity_bars((Sensitivity("h2d", 0.05, 0.04), Sensitivity("flops", 0.0, 0.001)))
    duals, again = figure.data
    assert list(duals.x) == pytest.approx([5, 0])
    assert list(again.x) == pytest.approx([4, 0.1])
    assert list(duals.text) == ["5.0 %", "0.0 %"]
    assert list(figure.layout.yaxis.ticktext) == ["h2d link bandwidth", "compute FLOP/s"]
    assert figure.layout.xaxis.title.text == "part of the makespan saved (%)"


@pytest.fixture
def points():
    return pd.DataFrame(
        {"tokens": [0, 50, 100], "makespan_s": [0.3, 0.1, 0.2], "in_range": [True, True, False]}
    )


def test_split_curve_marks_points_and_levels_in_milliseconds(points):
    figure = split_curve(points, {"kvpr": (50.0, 0.1)}, {"lp": 0.08})
    by_name = {trace.name: trace for trace in figure.data}
    assert list(by_name["same split in every layer"].y) == pytest.approx([300, 100, 200])
    assert list(by_name["lp: 80.0 ms"].y) == pytest.approx([80, 80])
    assert list(by_name["kvpr: 50 tokens, 100.0 ms"].x) == [50]
    assert figure.layout.xaxis.title.text == "past tokens recomputed in every layer"
    assert figure.layout.yaxis.title.text == "predicted makespan (ms)"


def test_split_curve_is_hatched_where_it_left_the_calibrated_range(points):
    hatch = split_curve(points, {}, {}).data[0]
    assert hatch.name == "outside the calibrated range"
    assert list(hatch.x[:4]) == [75, 100, 100, 75]
    points["in_range"] = True
    assert names_of(split_curve(points, {}, {})) == ["same split in every layer"]


@pytest.fixture
def sweep():
    """Load-all 8 / x and recompute-all 2: equal at 4."""
    x = [1.0, 2.0, 8.0]
    return pd.DataFrame(
        {
            "x": x,
            "lp_s": [1.0, 1.0, 0.5],
            "kvpr_s": [2.0, 2.0, 2.0],
            "load-all_s": [8 / at for at in x],
            "recompute-all_s": [2.0] * 3,
            "in_range": [False, True, True],
        }
    )


def test_crossover_marks_where_loading_meets_recomputing(sweep):
    figure = crossover_curves(sweep, "link (GB/s)", here=2.0)
    by_name = {trace.name: trace for trace in figure.data}
    assert list(by_name["load-all"].y) == pytest.approx([8000, 4000, 1000])
    meeting = by_name["load-all meets recompute-all at 4 GB/s"]
    assert (meeting.x[0], meeting.y[0]) == pytest.approx((4.0, 2000.0))
    assert list(by_name["set now: 2 GB/s"].x) == [2.0, 2.0]
    assert list(by_name["outside the calibrated range"].x[:2]) == pytest.approx([1.0, 2**0.5])
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"
    assert figure.layout.xaxis.title.text == "link (GB/s)"


def test_crossover_without_a_meeting_says_nothing_of_one(sweep):
    sweep["recompute-all_s"] = 100.0
    sweep["in_range"] = True
    assert names_of(crossover_curves(sweep, "x", None)) == list(POLICY_COLOUR)


def test_heat_map_places_cells_by_their_inputs_and_hatches_what_is_uncalibrated():
    measure = next(one for one in MEASURES if one.column == "lp_s")
    points = pd.DataFrame(
        {
            "x": [32.0, 64.0, 32.0],
            "y": [1.0, 1.0, 8.0],
            "lp_s": [0.1, 0.05, 0.8],
            "in_range": [True, True, False],
        }
    )
    figure = heat_map(points, measure, "link (GB/s)", "batch")
    cells, hatch = figure.data
    assert [list(row) for row in cells.z] == [
        pytest.approx([100, 50]),
        [pytest.approx(800), None],
    ], "what does not fit is an empty cell"
    assert list(figure.layout.xaxis.ticktext) == ["32", "64"]
    assert list(figure.layout.yaxis.ticktext) == ["1", "8"]
    assert list(hatch.x[:4]) == [-0.5, 0.5, 0.5, -0.5]
    assert list(hatch.y[:4]) == [0.5, 0.5, 1.5, 1.5]
    assert cells.colorbar.title.text == "makespan of lp (ms)"


def test_what_exceeds_a_memory_is_red_and_the_rest_fills_it():
    """40 GB with a reserve of 4: 30 of weights and 20 of KV are 14 too many."""
    memory = Memory("datasheet", 40e9, 100e9, 4e9)
    use = MemoryUse({"weights": 30e9, "KV": 20e9}, {"KV": 50e9})
    found = {bar.name: list(bar.x) for bar in memory_bars({"": (use, memory)}).data}
    assert list(found) == ["weights", "KV", BEYOND]
    assert found["weights"] == pytest.approx([0.75, 0])
    assert found["KV"] == pytest.approx([0.25, 0.5])
    assert found[BEYOND] == pytest.approx([14 / 40, 0])
    fitting = memory_bars({"": (replace(use, device={"weights": 30e9}), memory)}).data
    assert {bar.name: bar.x[0] for bar in fitting} == pytest.approx(
        {"weights": 0.75, "KV": 0, "reserve": 0.1}
    )


def test_memories_of_two_plans_have_one_chart_and_one_legend():
    memory, half = Memory("datasheet", 2**35, 2**36), Memory("datasheet", 2**34, 2**36)
    use = MemoryUse({"KV": 2**33}, {})
    figure = memory_bars({"A": (use, memory), "B": (use, half)})
    assert [bar.name for bar in figure.data] == ["KV"]
    assert list(figure.data[0].x) == pytest.approx([0.25, 0.5, 0, 0])
    assert [name.replace("\N{NO-BREAK SPACE}", " ") for name in figure.layout.yaxis.ticktext] == [
        "A GPU: 8.0 of 32.0 GiB",
        "B GPU: 8.0 of 16.0 GiB",
        "A host: 0.0 of 64.0 GiB",
        "B host: 0.0 of 64.0 GiB",
    ]
