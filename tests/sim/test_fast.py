"""The fast engine gives the timelines of the reference, and refuses what it does not know."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from builders import (
    ONE_OF_EACH_FAMILY,
    both_engines,
    dispatch,
    examples,
    graph,
    machine,
    make_plan,
    random_graphs,
    slowed,
    task,
    unit_machine,
)
from hypothesis import given
from hypothesis import strategies as st
from restores import TIERS, random_restores, restores, traces

from planner.decode.lower import lower, replicate
from planner.decode.other_systems import other_system_graph
from planner.restore import RestorePlanner, behind_link
from sim import (
    Recording,
    find_hardware,
    find_model,
    hardware_names,
    simulate,
)
from sim.engine import api as engines
from sim.engine.fast.graph_arrays import arrays_of
from sim.engine.fast.job import FastJob
from sim.engine.fast.known import KNOWN_FIELDS
from sim.errors import BadInput, UnknownName
from sim.graph.jobs import RestoreRequest, Workload
from sim.graph.tasks import Task
from sim.lanes import COMPUTE, D2H, DISK, H2D, HOST, LANES, NET
from sim.machine.availability import ALWAYS, Availability, Step
from sim.machine.links import Link, Uplink
from sim.machine.prefill import Tier
from sim.machine.provenance import SourcedValue

ROOT = Path(__file__).resolve().parents[2]
RECORDINGS = sorted((ROOT / "data" / "recordings").glob("*/cases/*/measured.json.gz"))
BOTH_WAYS = (slowed(H2D, D2H, 0.81), slowed(D2H, H2D, 0.81))


@st.composite
def crowded_machines(draw, devices: int = 3):
    """Any mix of pauses, host costs, factors between lanes and uplinks of some devices."""
    seconds, rates = st.sampled_from([0.0, 0.125, 0.75]), st.sampled_from([0.25, 0.7, 1.0])
    names = ("task_s", "kernel_s", "copy_s", "gap_s", "handover_s", "head_start_s")
    pairs = st.tuples(st.sampled_from(LANES), st.sampled_from(LANES), rates)
    ports = st.sets(st.integers(0, devices), min_size=1).map(tuple)
    uplinks = draw(st.lists(st.tuples(ports, st.floats(0.2, 3), st.floats(0.2, 3)), max_size=3))
    return unit_machine(
        restore=replace(TIERS, lookup_s=SourcedValue("datasheet", draw(seconds))),
        dispatch=dispatch(**{name: draw(seconds) for name in names}),
        interference=tuple(slowed(*pair) for pair in draw(st.lists(pairs, max_size=4))),
        uplinks=tuple(Uplink(f"u{at}", *uplink) for at, uplink in enumerate(uplinks)),
    )


@st.composite
def jobs(draw):
    """A decode or a restore, any machine, a trace and some releases."""
    some = st.one_of(random_graphs(12, 3), random_restores(12, 1), random_restores(12, 2))
    made, names = draw(some), st.sampled_from
    late = st.dictionaries(names([one.id for one in made.tasks]), st.integers(1, 20), max_size=3)
    return made, draw(crowded_machines()), draw(traces()), draw(late)


@given(jobs())
@examples(250)
def test_engines_agree_on_random_graphs(job):
    """Drawing a case takes most of the time, so each is simulated under all four conditions."""
    made, hardware, trace, release_s = job
    for availability in {ALWAYS, trace}:
        both_engines(made, hardware, availability)
        if release_s:
            both_engines(made, hardware, availability, release_s)


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.parent.name)
def test_engines_agree_on_every_recorded_graph(path):
    recording = Recording.load(path)
    both_engines(recording.graph, recording.hardware)


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
@pytest.mark.parametrize("schedule", ["row", "column"])
def test_engines_agree_on_a_model_of_each_family(name, schedule):
    model, hardware = find_model(name), replace(find_hardware("kvpr-a100"), interference=BOTH_WAYS)
    if model.layer_kinds and schedule == "column":
        pytest.skip("layers of several kinds have different weights")
    job = Workload(4, 300, 2, n_batches=1 if schedule == "row" else 2)
    split = [100 * model.splits(layer) for layer in range(model.n_layers)]
    both_engines(lower(schedule, model, job, [split] * 2), hardware)


@pytest.mark.parametrize("name", hardware_names())
@pytest.mark.parametrize("gpus", [1, 2, 3])
def test_engines_agree_on_every_shipped_machine(name, gpus):
    hardware = replace(find_hardware(name), dispatch=dispatch(task_s=1e-6, gap_s=1e-6))
    model, job = find_model("opt-125m"), Workload(4, 300, 2)
    one = lower("row", model, job, [[100] * model.n_layers] * 2)
    both_engines(replicate(one, gpus), hardware)


@given(restores(), traces((COMPUTE, H2D)))
@examples(15)
def test_a_restore_is_planned_the_same_whichever_engine_simulates(case, trace):
    one, other = (make_plan(*case, availability=trace, engine=engine) for engine in engines.ENGINES)
    assert other.baselines == pytest.approx(one.baselines, rel=1e-9)
    assert other.split == one.split


@pytest.mark.parametrize("tier", ["dram", "ssd", "net"])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_engines_agree_on_restores_of_a_shipped_model(tier, share):
    model = find_model("longalpaca-13b")
    hardware = behind_link(find_hardware("a100-80g"), 4 * 2.0**30)
    block = hardware.restore.with_tier(Tier(DISK, SourcedValue("datasheet", 3e9), chunk_s=1e-4))
    hardware = replace(hardware, restore=block)
    job = RestoreRequest(prompt_tokens=5000, cached_tokens=4700, tier=tier, gpu_share=share)
    trace = Availability((Step(0.1, ((COMPUTE, 0.5), (H2D, 0.0))), Step(0.2, ((NET, 0.3),))))
    for policy in ("two-ended", "layer-wise"):
        made = RestorePlanner(model, hardware, job).choice(policy).timeline.graph
        both_engines(made, hardware)
        both_engines(made, hardware, trace)


def test_engines_agree_on_copies_of_the_same_bytes_in_other_numbers_of_layers():
    """A CUDA device copies layer by layer, so two layers wait for the latency twice."""
    link = replace(machine().links, h2d=Link("measured", 4.0, latency_s=1.0))
    hardware = replace(unit_machine(), links=link, device_kind="cuda")
    one, two = task("one", H2D, 8), replace(task("two", H2D, 8), layers=2)
    job = RestoreRequest(prompt_tokens=8, cached_tokens=7)
    found = both_engines(replace(graph(one, two), workload=job), hardware)
    assert found.end_s == (3.0, 7.0)


def test_engines_agree_where_the_host_copies():
    model, job = find_model("opt-125m"), Workload(4, 300, 2)
    hardware = machine(interference=(*BOTH_WAYS, slowed(HOST, COMPUTE, 0.5)))
    both_engines(other_system_graph("flexgen", model, job), hardware)


def test_a_copy_inside_the_host_crosses_no_uplink():
    hardware = unit_machine(uplinks=(Uplink("switch", (0,), 0.5, 0.5),))
    found = both_engines(graph(task("inside", HOST, 4), task("in", H2D, 4)), hardware)
    assert found.end_s == (4, 8)


def test_a_task_of_no_length_slows_nobody():
    hardware = unit_machine(interference=(slowed(H2D, COMPUTE, 0.5),), dispatch=dispatch(gap_s=0.5))
    tasks = (task("in", H2D, 4), task("none", COMPUTE, 0), task("work", COMPUTE, 1, "none"))
    assert both_engines(graph(*tasks), hardware).end_s == (4.5, 0, 1.5)


def test_a_plan_is_the_same_whichever_engine_simulates():
    model, hardware = find_model("opt-1.3b"), replace(find_hardware("kvpr-a100"))
    hardware = replace(hardware, interference=BOTH_WAYS)
    plan = [make_plan(model, hardware, Workload(32, 512, 2), engine=e) for e in engines.ENGINES]
    assert plan[0].steps == plan[1].steps
    assert plan[0].makespan_s == pytest.approx(plan[1].makespan_s, rel=1e-9)


def test_a_graph_is_turned_into_arrays_once_for_all_machines():
    made = graph(task("a", H2D, 2), task("b", COMPUTE, 1, "a"))
    slow, quick = unit_machine(), unit_machine().with_faster("h2d", 2.0)
    assert simulate(made, slow, "fast").makespan_s == 3
    before = arrays_of(made)
    assert simulate(made, quick, "fast").makespan_s == 2
    assert arrays_of(made) is before


@pytest.mark.parametrize(
    ("kind", "field", "made", "hardware"),
    [
        ("Task", "batch", graph(replace(task("a", H2D, 1), batch=1)), machine()),
        ("HardwareProfile", "interference", graph(), machine(interference=BOTH_WAYS)),
        ("Dispatch", "gap_s", graph(), machine(dispatch=dispatch(gap_s=0.5))),
    ],
)
def test_what_the_fast_engine_does_not_know_is_refused(monkeypatch, kind, field, made, hardware):
    (known,) = (one for one in KNOWN_FIELDS if one.__name__ == kind)
    rest = KNOWN_FIELDS[known].replace(field, "")
    monkeypatch.setitem(KNOWN_FIELDS, known, rest)
    with pytest.raises(BadInput, match=f"engine 'fast' does not know {kind}.{field}"):
        simulate(made, hardware, "fast")
    assert simulate(graph(task("plain", H2D, 1)), unit_machine(), "fast").end_s == (1,)


@pytest.fixture
def fast_calls(monkeypatch):
    """Simulate the smallest graphs by `auto` as if they were large; counts the fast runs."""
    calls, run = [], FastJob.timeline
    monkeypatch.setattr(engines, "FAST_FROM_TASKS", 2)
    monkeypatch.setattr(FastJob, "timeline", lambda job: calls.append(job) or run(job))
    return calls


ONE_WAY = graph(task("a", H2D, 1), task("b", H2D, 2))
TWO_WAYS = graph(task("a", H2D, 1), replace(task("b", D2H, 2), batch=1))
"""On a machine with `BOTH_WAYS`, only here does one task slow another down."""


def test_auto_chooses_the_fast_engine_by_size(fast_calls):
    shared = unit_machine(interference=BOTH_WAYS)
    small = graph(task("a", H2D, 1))
    assert simulate(small, shared).end_s == (1,)
    assert not fast_calls
    assert simulate(TWO_WAYS, shared) == simulate(TWO_WAYS, shared, "fast")
    assert len(fast_calls) == 2


def test_auto_is_simpy_where_the_fast_engine_cannot_run(fast_calls, monkeypatch):
    shared, made = unit_machine(interference=BOTH_WAYS), replace(TWO_WAYS)
    expected = simulate(made, shared, "simpy")
    monkeypatch.setitem(KNOWN_FIELDS, Task, KNOWN_FIELDS[Task].replace("batch", ""))
    assert simulate(made, shared, "auto") == expected
    monkeypatch.undo()
    monkeypatch.setattr(engines, "FAST_FROM_TASKS", 2)
    monkeypatch.setattr(engines, "find_spec", lambda name: None)  # noqa: ARG005
    assert simulate(made, shared, "auto") == expected
    assert not fast_calls


def test_auto_needs_no_engine_where_no_task_slows_another_down(fast_calls, monkeypatch):
    monkeypatch.setattr("sim.engine.reference.ReferenceRun.timeline", None)
    assert simulate(ONE_WAY, unit_machine(interference=BOTH_WAYS)).end_s == (1, 3)
    assert simulate(TWO_WAYS, unit_machine()).end_s == (1, 2)
    assert not fast_calls


@given(random_graphs(devices=2), crowded_machines(devices=2))
@examples(60)
def test_auto_gives_the_times_of_the_reference(made, hardware):
    found, expected = simulate(made, hardware), simulate(made, hardware, "simpy")
    assert found.start_s == expected.start_s
    assert found.end_s == expected.end_s


@pytest.mark.parametrize("engine", engines.ENGINES)
def test_a_release_of_a_task_that_is_not_there_is_refused(engine):
    with pytest.raises(BadInput, match="names task 'b', which the graph does not have"):
        simulate(graph(task("a", H2D, 1)), machine(), engine, release_s={"b": 1.0})


def test_an_engine_that_does_not_exist_is_refused():
    with pytest.raises(UnknownName, match="known: auto, fast, simpy"):
        simulate(graph(), machine(), "turbo")


@pytest.fixture
def no_numba(monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)  # noqa: ARG005


@pytest.mark.usefixtures("no_numba")
def test_without_numba_the_library_says_what_to_install():
    with pytest.raises(BadInput, match=r"pip install 'kvoverlap\[fast\]'"):
        simulate(graph(), machine(), "fast")


ASK = [
    *("plan", "--model", "opt-125m", "--hardware", "kvpr-a100"),
    *("--batch", "4", "--prompt", "64", "--policy", "kvpr"),
]


@pytest.mark.usefixtures("no_numba")
def test_without_numba_the_command_says_so_and_takes_simpy(call):
    status, answer, notes = call(*ASK, "--engine", "fast", "--json")
    assert (status, answer) == call(*ASK, "--json")[:2]
    assert "kvoverlap[fast]" in notes
    assert "Simulating with SimPy." in notes


def test_the_command_simulates_with_either_engine(call, tmp_path):
    call(*ASK, "--engine", "fast", "-o", tmp_path / "plan.json")
    answers = [call("simulate", tmp_path / "plan.json", "--engine", e) for e in engines.ENGINES]
    assert answers[0] == answers[1]
    assert answers[0][0] == 0
    status, _, words = call(*ASK, "--engine", "turbo")
    assert status == 2
    assert "known: auto, fast, simpy" in words


def test_a_second_process_compiles_nothing():
    here, there = unit_machine(), unit_machine(interference=BOTH_WAYS)
    simulate(graph(), here, "fast")
    simulate(graph(), there, "fast")
    check = (
        "from sim import *; from sim.engine.fast import loops as f;"
        "from sim.machine.availability import *;"
        "made = TaskGraph('row', find_model('opt-125m'), Workload(1, 8, 1), 2, ());"
        "machine = find_hardware('kvpr-a100');"
        "simulate(made, machine, 'fast');"
        "simulate(made, machine, 'fast', Availability((Step(1.0, ()),)));"
        "loops = f.prepare, f.run_uncontended, f.begin, f.run_events;"
        "counts = [(one.stats.cache_hits, one.stats.cache_misses) for one in loops];"
        "print([(sum(hits.values()), sum(misses.values())) for hits, misses in counts])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, check=True, cwd=ROOT)
    assert done.stdout == b"[(1, 0), (1, 0), (1, 0), (1, 0)]\n"
