"""Claims: tasks that are alternatives for the same tokens, against timelines drawn by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import both_engines, examples, task, times, tiny_model, unit_machine
from hypothesis import given
from hypothesis import strategies as st

from sim.engine.api import replay
from sim.graph.claims import claimed
from sim.graph.jobs import RestoreRequest
from sim.graph.tasks import Task, TaskGraph
from sim.lanes import COMPUTE, DISK, H2D
from sim.machine.links import Uplink
from sim.machine.prefill import Restore, Tier
from sim.machine.provenance import SourcedValue

TOKENS = 100


def side(name: str, lane: str, start: int, stop: int, *deps: str, claim: str = "kv") -> Task:
    """A task over tokens [start, stop) that takes as many seconds as it has tokens."""
    one = task(name, lane, stop - start, *deps)
    return replace(one, token_start=start, token_stop=stop, claim=claim)


def graph(*tasks: Task) -> TaskGraph:
    model = tiny_model(rotary=True)
    request = RestoreRequest(prompt_tokens=TOKENS, cached_tokens=TOKENS - 1)
    return TaskGraph("restore", model, request, 2, tasks)


def two_ends(front: list[int], back: list[int], n_tokens: int) -> list[Task]:
    """Steps of these lengths from the front on compute, and from the back on h2d."""
    tasks, at = [], 0
    for length in front:
        if at == n_tokens:
            break
        stop = min(at + length, n_tokens)
        tasks.append(side(f"c{at}", COMPUTE, at, stop))
        at = stop
    at = n_tokens
    for length in back:
        if at == 0:
            break
        start = max(at - length, 0)
        tasks.append(side(f"l{start}", H2D, start, at))
        at = start
    return tasks


def test_whoever_starts_first_does_a_range_and_the_other_skips_it():
    timeline = both_engines(graph(*two_ends([4, 4, 4], [2, 2, 2, 2, 2, 2], 12)), unit_machine())
    assert times(timeline) == {
        "c0": (0, 4),
        "c4": (4, 8),  # at second 4 the loads have 8..12, and want 6..8 too
        "c8": (8, 8),
        "l10": (0, 2),
        "l8": (2, 4),
        **{f"l{start}": (4, 4) for start in (6, 4, 2, 0)},
    }


def test_at_the_same_moment_the_task_that_comes_first_in_the_graph_claims_first():
    one, other = side("compute", COMPUTE, 0, 3), side("load", H2D, 0, 3)
    assert times(both_engines(graph(one, other), unit_machine()))["load"] == (0, 0)
    assert times(both_engines(graph(other, one), unit_machine()))["compute"] == (0, 0)


def test_a_later_task_does_what_is_left_of_its_range():
    load = side("load", H2D, 6, 10)
    hold = side("hold", COMPUTE, 0, 1, claim="")
    compute = side("compute", COMPUTE, 2, 8)
    timeline = both_engines(graph(load, hold, compute), unit_machine())
    assert times(timeline)["compute"] == (1, 5)  # tokens 2..6 of 2..8
    done = claimed(timeline.graph, timeline.start_s)
    assert [(one.token_start, one.token_stop) for one in done] == [(6, 10), (0, 1), (2, 6)]


def test_the_second_leg_of_a_load_goes_on_with_what_the_first_got():
    tasks = [
        side("compute.0", COMPUTE, 0, 3),
        side("read.3", DISK, 3, 6),
        side("load.3", H2D, 3, 6, "read.3"),
        side("read.0", DISK, 0, 3),
        side("load.0", H2D, 0, 3, "read.0"),
    ]
    disk = Restore(tiers=(Tier(DISK, SourcedValue("datasheet", 1.0)),))
    timeline = both_engines(graph(*tasks), unit_machine(restore=disk))
    assert times(timeline)["load.3"] == (3, 6)
    assert times(timeline)["read.0"] == (3, 3)
    assert times(timeline)["load.0"] == (6, 6)


@examples(60)
@given(
    front=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    back=st.lists(st.integers(1, 9), min_size=1, max_size=12),
)
def test_every_token_is_done_exactly_once(front, back):
    n_tokens = min(sum(front), sum(back))
    timeline = both_engines(graph(*two_ends(front, back, n_tokens)), unit_machine())
    done = claimed(timeline.graph, timeline.start_s)
    tokens = [token for one in done for token in range(one.token_start, one.token_stop)]
    assert sorted(tokens) == list(range(n_tokens))
    for one, span in zip(done, timeline.spans, strict=True):
        assert span.duration_s == pytest.approx(one.n_tokens)


def test_a_part_of_a_copy_is_bound_by_its_uplink_too():
    """Tokens 0 to 2 of 0 to 8 are left to the load: 2 bytes, at half a byte a second."""
    hold, rest = side("hold", COMPUTE, 0, 1, claim=""), side("load", H2D, 0, 8, "hold")
    compute = side("compute", COMPUTE, 2, 8, "hold")
    switch = Uplink("switch", (0,), 0.5, 0.5)
    timeline = both_engines(graph(hold, compute, rest), unit_machine(uplinks=(switch,)))
    assert times(timeline)["load"] == (1, 5)


def test_a_part_of_a_copy_takes_its_share_of_an_uplink():
    """What is left of load 0 is 2 bytes, beside 6 of load 1 over one byte a second for both."""
    hold, compute = side("hold", COMPUTE, 0, 1, claim=""), side("compute", COMPUTE, 2, 8, "hold")
    left = side("load.0", H2D, 0, 8, "hold")
    other = replace(side("load.1", H2D, 0, 6, "hold", claim=""), device=1)
    switch = Uplink("switch", (0, 1), 1.0, 1.0)
    timeline = both_engines(graph(hold, compute, left, other), unit_machine(uplinks=(switch,)))
    assert times(timeline)["load.0"] == (1, 5)
    assert times(timeline)["load.1"] == (1, 9)


def test_devices_that_claim_from_each_other_do_not_stand_for_each_other():
    one = side("one", COMPUTE, 0, 4)
    timeline = both_engines(graph(one, replace(one, id="other", device=1)), unit_machine())
    assert times(timeline) == {"one": (0, 4), "other": (0, 0)}


def test_a_replay_settles_claims_as_they_were():
    """The load is measured late, after the front has done what the simulation let it load."""
    tasks = (*two_ends([4, 4], [4, 4], 8),)
    timeline = replay(graph(*tasks), [4.0, 3.0, 6.0, 0.0], unit_machine())
    assert times(timeline) == {"c0": (0, 4), "c4": (4, 7), "l4": (0, 6), "l0": (6, 6)}


def test_a_claim_is_part_of_the_graphs_identity():
    free, bound = side("a", COMPUTE, 0, 3, claim=""), side("a", COMPUTE, 0, 3)
    assert graph(free).sha256 != graph(bound).sha256
    assert graph(free).sha256 != graph(replace(free, layers=2)).sha256
    assert "claim" not in graph(free).to_dict()["tasks"][0]
