"""A graph is either valid and identified by its hash, or refused with the reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import decode_graph, examples, graph, random_graphs, task, tiny_model
from hypothesis import given

from sim.errors import BadFile, BadInput
from sim.graph.jobs import Workload
from sim.graph.tasks import TaskGraph
from sim.lanes import COMPUTE, D2H, H2D


def changed(**changes):
    return replace(task("a", H2D, 4), **changes)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (changed(lane=COMPUTE, bytes=0), "belongs to 'h2d'"),
        (changed(op="teleport"), "unknown op"),
        (changed(bytes=0), "must be > 0 for a copy"),
        (changed(bytes=-4), "must be > 0 for a copy"),
        (changed(op="mlp", lane=COMPUTE), "0 for compute"),
        (changed(op="mlp", lane=COMPUTE, bytes=0, flops=-1), "flops"),
        (changed(token_start=3, token_stop=2), "not a range"),
        (changed(token_start=-1), "not a range"),
        (changed(deps=("ghost",)), "'ghost', which does not precede"),
        (changed(deps=("a",)), "'a', which does not precede"),
    ],
)
def test_a_malformed_task_is_refused_with_its_name_and_the_rule(broken, reason):
    with pytest.raises(BadInput, match="task a") as failure:
        graph(broken)
    assert reason in str(failure.value)


def test_an_id_used_twice_is_refused():
    with pytest.raises(BadInput, match="'a' appears twice"):
        graph(task("a", H2D, 1), task("a", D2H, 1))


def test_a_dep_that_comes_later_is_refused():
    with pytest.raises(BadInput, match="'b', which does not precede"):
        graph(task("a", H2D, 1, "b"), task("b", D2H, 1))


def test_lanes_hold_positions_in_graph_order_for_each_device():
    tasks = [task("a", H2D, 1), task("b", D2H, 1), task("c", H2D, 1), task("d", H2D, 1, device=1)]
    assert graph(*tasks).lanes == {(0, H2D): [0, 2], (0, D2H): [1], (1, H2D): [3]}


def test_dep_indices_are_positions_of_the_named_tasks():
    made = graph(task("a", H2D, 1), task("b", D2H, 1), task("c", COMPUTE, 1, "b", "a"))
    assert made.dep_indices == ((), (), (1, 0))
    assert made.index == {"a": 0, "b": 1, "c": 2}


@given(random_graphs(devices=2))
@examples(50)
def test_a_graph_survives_the_round_trip_with_the_same_hash(made):
    again = TaskGraph.from_dict(made.to_dict(), "here")
    assert again == made
    assert again.sha256 == made.sha256


def test_graphs_built_alike_have_the_same_hash():
    assert decode_graph().sha256 == decode_graph().sha256
    assert len(decode_graph().sha256) == 64


TASK_CHANGES = {
    "id": "renamed",
    "op": "load_x",
    "step": 1,
    "layer": 1,
    "token_start": 1,
    "token_stop": 9,
    "slot": 1,
    "bytes": 5,
    "flops": 7,
    "deps": ("first",),
    "device": 1,
}


@pytest.mark.parametrize("field", TASK_CHANGES)
def test_every_field_of_a_task_counts_for_the_hash(field):
    first, last = task("first", D2H, 1), task("a", H2D, 4)
    other = replace(last, **{field: TASK_CHANGES[field]})
    assert graph(first, last).sha256 != graph(first, other).sha256


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": "column"},
        {"model": tiny_model(vocab_size=65)},
        {"model": tiny_model(norm_eps=1e-6)},
        {"workload": Workload(2, 8, 1)},
        {"slots": 3},
        {"tasks": ()},
    ],
)
def test_everything_beside_the_tasks_counts_for_the_hash_too(changes):
    made = graph(task("a", H2D, 4))
    assert replace(made, **changes).sha256 != made.sha256


def test_an_unknown_key_is_refused_wherever_it_stands():
    for path in ((), ("model",), ("workload",), ("tasks", 0)):
        content = decode_graph().to_dict()
        inner = content
        for key in path:
            inner = inner[key]
        inner["colour"] = "blue"
        with pytest.raises(BadFile, match=r"graph.json: key '.*colour' is unknown"):
            TaskGraph.from_dict(content, "graph.json")


def test_an_absent_key_is_named():
    content = decode_graph().to_dict()
    del content["tasks"][1]["bytes"]
    with pytest.raises(BadFile, match=r"'tasks\.1\.bytes' is missing"):
        TaskGraph.from_dict(content, "graph.json")


def test_a_value_of_the_wrong_type_is_named():
    content = decode_graph().to_dict()
    content["slots"] = "many"
    with pytest.raises(BadFile, match=r"slots\(='many'\)"):
        TaskGraph.from_dict(content, "graph.json")
