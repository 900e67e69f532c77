"""One of several devices that are alike stands for all, and only where they are alike."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import (
    both_engines,
    dispatch,
    examples,
    machine,
    make_plan,
    models,
    slowed,
    splits,
    times,
    tiny_model,
    workloads,
)
from hypothesis import given
from hypothesis import strategies as st

from planner.decode.lower import lower, replicate
from sim.engine.sharing import representative_device
from sim.graph.jobs import Workload
from sim.graph.tasks import TaskGraph
from sim.lanes import D2H, H2D
from sim.machine.links import Uplink


def switches(*devices: tuple[int, ...]) -> tuple[Uplink, ...]:
    return tuple(Uplink(f"switch-{at}", ports, 3e6, 3e6) for at, ports in enumerate(devices))


PAIRS = switches((0, 1), (2, 3))
DRAM = Uplink("dram", (0, 1, 2, 3), 5e6, 2e6)


def interleaved(graph: TaskGraph) -> TaskGraph:
    """The same lanes in an order of tasks that takes turns, in which no device's part is seen."""
    size = len(graph.tasks) // graph.n_devices
    turns = sorted(range(len(graph.tasks)), key=lambda at: (at % size, at))
    return replace(graph, tasks=tuple(graph.tasks[at] for at in turns))


def spans(graph, hardware):
    return times(both_engines(graph, hardware))


@st.composite
def replicas(draw) -> TaskGraph:
    model, job = draw(models(3)), draw(workloads())
    one = lower("row", model, job, draw(splits(model, job)))
    return replicate(one, draw(st.sampled_from([2, 4])))


@given(replicas(), st.sampled_from([(), PAIRS, (DRAM,), (*PAIRS, DRAM)]))
@examples(30)
def test_one_device_shows_what_simulating_all_of_them_shows(graph, uplinks):
    hardware = machine(
        h2d=2e6,
        d2h=2e6,
        uplinks=uplinks,
        interference=(slowed(H2D, D2H, 0.8), slowed("compute", H2D, 0.9)),
        dispatch=dispatch(task_s=1e-6, gap_s=1e-6, handover_s=2e-6),
    )
    assert representative_device(graph, hardware)[0].n_devices == 1
    mixed = interleaved(graph)
    assert representative_device(mixed, hardware) == (mixed, hardware)
    alone, together = spans(graph, hardware), spans(mixed, hardware)
    assert alone.keys() == together.keys()
    for name, spanned in alone.items():
        assert spanned == pytest.approx(together[name], rel=1e-9, abs=1e-12), name


def test_a_device_keeps_its_equal_part_of_every_uplink_on_its_path():
    job = Workload(1, 8, 1)
    graph = replicate(lower("row", tiny_model(), job, [[3, 3]]), 4)
    one, seen = representative_device(graph, machine(uplinks=(*PAIRS, DRAM)))
    assert one == lower("row", tiny_model(), job, [[3, 3]])
    assert [(uplink.h2d_bytes_per_s, uplink.d2h_bytes_per_s) for uplink in seen.uplinks] == [
        (1.5e6, 1.5e6),
        (1.25e6, 0.5e6),
    ]


@pytest.mark.parametrize(
    ("devices", "uplinks"),
    [
        pytest.param(3, PAIRS, id="one of three has a switch to itself"),
        pytest.param(2, switches((0,)), id="one has no switch"),
        pytest.param(2, (*switches((0,)), Uplink("slow", (1,), 1e6, 1e6)), id="other rates"),
    ],
)
def test_devices_behind_unlike_uplinks_are_simulated_one_by_one(devices, uplinks):
    graph = replicate(lower("row", tiny_model(), Workload(1, 8, 1), [[3, 3]]), devices)
    hardware = machine(uplinks=uplinks)
    assert representative_device(graph, hardware) == (graph, hardware)


def test_a_plan_for_unlike_devices_is_of_all_of_them():
    hardware = machine(flops_per_s=3e7, h2d=2e6, d2h=2e6, uplinks=PAIRS)
    three, four = (make_plan(tiny_model(), hardware, Workload(2, 64, 1), gpus=n) for n in (3, 4))
    ends = {name: end for name, (_, end) in spans(interleaved(three.lower()), hardware).items()}
    assert three.makespan_s == pytest.approx(max(ends.values()))
    assert ends["g2.s0.head"] < ends["s0.head"] == pytest.approx(ends["g1.s0.head"])
    assert four.makespan_s == pytest.approx(three.makespan_s, rel=0.01), "the pair decides"


@pytest.mark.parametrize(
    "changes",
    [{"token_start": 1}, {"bytes": 7}, {"deps": ()}],
    ids=["other tokens", "other bytes", "other deps"],
)
def test_devices_with_unlike_tasks_are_simulated_one_by_one(changes):
    graph = replicate(lower("row", tiny_model(), Workload(1, 8, 1), [[3, 3]]), 2)
    at = graph.index["g1.s0.L1.store_kv"]
    tasks = (*graph.tasks[:at], replace(graph.tasks[at], **changes), *graph.tasks[at + 1 :])
    edited = replace(graph, tasks=tasks)
    assert representative_device(edited, machine()) == (edited, machine())
