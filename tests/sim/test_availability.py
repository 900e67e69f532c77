"""Lanes that slow down for a while: timelines drawn by hand, and the files that say so."""

from __future__ import annotations

import pytest
from builders import both_engines, graph, task, times, unit_machine

from sim.errors import BadFile, BadInput
from sim.lanes import COMPUTE, H2D
from sim.machine.availability import Availability, Step


def drop(*rows: tuple[float, dict[str, float]]) -> Availability:
    return Availability(tuple(Step(start_s, tuple(parts.items())) for start_s, parts in rows))


@pytest.mark.parametrize(
    ("trace", "load", "compute"),
    [
        (drop(), (0, 8), (8, 12)),
        # 3 s at full speed, the other 5 at half: 3 + 10
        (drop((3, {H2D: 0.5})), (0, 13), (13, 17)),
        # half speed for 4 s only: 3 + 4 + 3
        (drop((3, {H2D: 0.5}), (7, {H2D: 1.0})), (0, 10), (10, 14)),
        # nothing at all moves from 2 to 6
        (drop((2, {H2D: 0.0}), (6, {})), (0, 12), (12, 16)),
        # the device's share drops while it computes: 1 s, then 3 at a quarter
        (drop((9, {COMPUTE: 0.25})), (0, 8), (8, 21)),
    ],
)
def test_a_task_takes_longer_by_what_it_misses(trace, load, compute):
    drawn = graph(task("load", H2D, 8), task("compute", COMPUTE, 4, "load"))
    assert times(both_engines(drawn, unit_machine(), trace)) == {
        "load": load,
        "compute": compute,
    }


CSV = "start_s,h2d,compute\n1,0.5,1\n2.5,1,0.25\n"
TOML = """
[[at]]
start_s = 1
h2d = 0.5
compute = 1.0
[[at]]
start_s = 2.5
h2d = 1
compute = 0.25
"""


@pytest.mark.parametrize(("name", "text"), [("trace.csv", CSV), ("trace.toml", TOML)])
def test_a_trace_is_read_from_csv_and_toml(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    trace = Availability.load(tmp_path / name)
    assert trace.changes_s == (1.0, 2.5)
    lanes = (H2D, COMPUTE, "net")
    seen = [tuple(trace.at(time_s, lane) for lane in lanes) for time_s in (0, 1, 3)]
    assert seen == [(1.0, 1.0, 1.0), (0.5, 1.0, 1.0), (1.0, 0.25, 1.0)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "h2d\n0.5\n", "has no start_s"),
        ("a.csv", "start_s,h2d\n", "has no rows"),
        ("a.csv", "start_s,h2d\n0,half\n", "numbers only"),
        ("a.csv", "start_s,h2d\n1,0.5\n1,1\n", "must be later"),
        ("a.csv", "start_s,link\n1,0.5\n", "lane 'link' is unknown"),
        ("a.csv", "start_s,h2d\n1,-1\n", "at least 0"),
        ("a.csv", "start_s,h2d\n1,1.5\n", "between 0 and 1"),
        ("a.csv", "start_s,h2d\n1,0\n", "above 0 in the last row"),
        ("a.toml", "start_s = 1\n", r"must hold \[\[at\]\] tables"),
        ("a.toml", "start_s 1\n", "not valid TOML"),
    ],
)
def test_a_wrong_trace_is_refused_in_one_sentence(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises((BadFile, BadInput), match=message):
        Availability.load(tmp_path / name)
