"""Published figures: their schema, the errors of their predictions, and the verb that says so."""

from __future__ import annotations

import json

import pytest

from planner.published import GROUPS, Cell, Errors, Predicted, assess_published, load_cells
from sim.catalog import find_hardware
from sim.errors import BadFile, UnknownName

HEADER = "id,source,group,scenario,inputs,quantity,value,uncertainty,calibrates,explanation\n"
COPY = "hardware=h100 lane=h2d bytes=50MB"
SOURCE = """[post]
title = "A post"
date = 2026-01-08
address = "https://example.org"
confidence = "high"
"""


def folder(tmp_path, *rows: str, sources: str = SOURCE):
    (tmp_path / "sources.toml").write_text(sources)
    (tmp_path / "measurements.csv").write_text(HEADER + "".join(f"{row}\n" for row in rows))
    return tmp_path


def row(name: str, value: str, inputs: str = COPY, calibrates: str = "", why: str = "") -> str:
    return f"{name},post,copy,copy,{inputs},copy_s,{value},,{calibrates},{why}"


def test_every_shipped_figure_has_a_source_a_group_and_either_inputs_or_a_reason():
    sources, cells = load_cells()
    assert len(cells) > 150
    assert {cell.source for cell in cells} == set(sources)
    assert {cell.group for cell in cells} <= set(GROUPS)
    assert all(cell.is_predicted or cell.explanation for cell in cells)
    for source in sources:
        constants = [one for one in cells if one.source == source and one.calibrates]
        assert len(constants) <= 2, f"{source} may give two constants at most"


@pytest.mark.accuracy
def test_the_gate_passes_and_every_group_is_within_its_target(call):
    status, stdout, _ = call("accuracy", "--published", "--gate", "--json")
    answer = json.loads(stdout)
    assert status == 0, answer["faults"]
    assert answer["passed"]
    groups = answer["by_group"]
    for name in ("computed-ttft", "loaded-ttft", "host-decode", "resident-decode", "two-ended"):
        assert groups[name]["mean_abs_error_frac"] <= groups[name]["target_frac"]
        assert groups[name]["explained_misses"] == 0
        assert groups[name]["order_frac"] > 0.99
    assert groups["two-ended"]["cells"] == 60
    assert abs(groups["two-ended"]["worst_error_frac"]) <= 0.10
    assert groups["copy-curve"]["mean_abs_error_without_explained_frac"] <= 0.03


def test_the_error_is_of_the_link_and_leaves_out_figures_that_gave_a_constant(tmp_path):
    # h100's link takes 1 ms for 50 MB: 50 GB/s and no latency.
    rows = [row("one", "0.001"), row("two", "0.00125", why="noise"), row("three", "9", "", "", "-")]
    rows.append(row("four", "0.002", calibrates="the rate"))
    found = assess_published(folder(tmp_path, *rows))
    one, two, three, four = found.figures
    assert one.predicted == pytest.approx(find_hardware("h100").links.h2d.copy_s(50e6)[0])
    assert [one.verdict, two.verdict, three.verdict, four.verdict] == [
        "ok",
        "missed",
        "not predicted",
        "calibrated",
    ]
    errors = found.of_source("post")
    assert (errors.cells, errors.calibrated, errors.explained) == (2, 1, 1)
    assert errors.mean_abs_frac == pytest.approx(0.1)
    assert errors.unexplained_mean_frac == pytest.approx(0.0)
    assert errors.worst_frac == pytest.approx(-0.2)
    assert found.passed


def test_a_miss_without_an_explanation_fails(tmp_path):
    found = assess_published(folder(tmp_path, row("one", "0.002")))
    assert not found.passed
    assert "one: predicted 0.001, published 0.002 (copy_s), error -50.0 %" in found.faults[0]
    assert found.faults[1] == "group copy: mean |error| 50.0 %, at most 6 %"


def test_recordings_and_published_figures_are_not_mixed(call, tmp_path):
    status, _, stderr = call("accuracy", "--published", "--recordings", tmp_path)
    assert status == 2
    assert "give one of them" in " ".join(stderr.split())


def figure(name: str, value: float, predicted: float, uncertainty: float = 0.0) -> Predicted:
    cell = Cell(name, "post", "copy", "copy", "copy_s", value, {"x": 1}, uncertainty)
    return Predicted(cell, predicted)


def test_order_counts_pairs_that_differ_by_more_than_their_uncertainty():
    found = [figure("a", 1.0, 1.0), figure("b", 2.0, 3.0), figure("c", 3.0, 2.5)]
    assert Errors.of(found).order_frac == pytest.approx(2 / 3)
    blurred = [figure("a", 1.0, 1.0, 0.6), figure("b", 2.0, 0.9, 0.6)]
    assert Errors.of(blurred).order_frac is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["one,post,copy"], "has 3 values for 10 columns"),
        ([row("one", "fast")], "value(='fast') must be a number above 0"),
        ([row("one", "1"), row("one", "1")], "id 'one' appears twice"),
        ([row("one", "1").replace("post", "blog")], "source 'blog' is not in sources.toml"),
        ([row("one", "1").replace("copy,copy", "copy,move")], "scenario 'move' is unknown"),
        ([row("one", "1", "hardware=h100 size=3")], "input 'size' is unknown"),
        ([row("one", "1", "hardware=h100")], "the inputs lack 'bytes'"),
        ([row("one", "1", "bytes=4KiB hardware=h10")], "hardware 'h10' is unknown"),
        ([row("one", "1", "")], "a figure without inputs needs an explanation"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, rows, message):
    with pytest.raises(BadFile) as caught:
        load_cells(folder(tmp_path, *rows))
    assert message in str(caught.value)


def test_an_unknown_group_or_confidence_is_refused(tmp_path):
    with pytest.raises(UnknownName, match="group 'loads'"):
        assess_published(folder(tmp_path, row("one", "1").replace("copy,copy", "loads,copy")))
    with pytest.raises(BadFile, match="confidence"):
        load_cells(folder(tmp_path, row("one", "1"), sources=SOURCE.replace("high", "sure")))


def test_a_prediction_that_is_refused_is_a_fault(tmp_path):
    found = assess_published(folder(tmp_path, row("one", "1").replace("copy_s", "ttft_s")))
    assert found.faults == ["one: quantity(='ttft_s') is no output of copy."]
