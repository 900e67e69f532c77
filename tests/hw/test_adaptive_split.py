"""A meeting point that changes while a restore runs, and who decides where to."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from builders import machine, tiny_model
from run_restores import RestoreCase, request
from tiny import OPT

from hw import AdaptiveSplit, open_backend
from planner.restore import Replanner
from planner.restore.lower import split_graph, two_ended_graph
from planner.restore.split import RestoreSplit
from sim.errors import Mismatch
from sim.graph.claims import RestoreProgress
from sim.lanes import COMPUTE, H2D
from sim.machine.availability import Availability, Step
from sim.machine.prefill import Prefill, Restore
from sim.machine.provenance import SourcedValue

CACHED = 40


def never(*_: object) -> None:
    """The plan stays as it is."""


def moving(meeting: int, replan=never) -> AdaptiveSplit:
    return AdaptiveSplit(two_ended_graph(OPT, request(41, CACHED)), meeting, replan)


def at(split: AdaptiveSplit, name: str) -> int:
    return split.graph.index[name]


def test_each_end_does_its_side_of_the_meeting_point():
    split = moving(16)
    assert split.take(at(split, "prefill.0")) == (0, 8)
    assert split.take(at(split, "load_kv.36")) == (36, 40)
    assert split.take(at(split, "prefill.8")) == (8, 16)
    assert split.take(at(split, "prefill.40")) == (40, 41)
    assert split.take(at(split, "head")) == (40, 41)


def test_an_end_waits_at_the_meeting_point_for_the_other():
    split = moving(8)
    split.take(at(split, "prefill.0"))
    assert split.take(at(split, "prefill.8")) is None
    for start in range(36, 4, -4):
        assert split.take(at(split, f"load_kv.{start}")) == (start, start + 4)
    assert split.take(at(split, "prefill.8")) == (8, 8)
    assert split.take(at(split, "load_kv.4")) == (8, 8)


def test_a_task_that_is_cut_settles_the_meeting_point():
    asked = []
    split = moving(12, lambda *state: asked.append(state) or 24)
    split.take(at(split, "prefill.0"))
    assert split.take(at(split, "prefill.8")) == (8, 12)
    split.ended(at(split, "prefill.8"), 1.0)
    assert (asked, split.meeting) == ([], 12)


def test_a_new_meeting_point_undoes_nothing_that_has_begun():
    split = moving(16, lambda *_: 0)
    split.take(at(split, "prefill.0"))
    split.take(at(split, "prefill.8"))
    split.ended(at(split, "prefill.0"), 1.0)
    assert split.meeting == 16
    split = moving(16, lambda *_: 40)
    split.take(at(split, "load_kv.36"))
    split.take(at(split, "load_kv.32"))
    split.ended(at(split, "load_kv.36"), 1.0)
    assert (split.meeting, split.changes[0].lane) == (32, H2D)


def test_who_replans_is_told_what_ended_and_what_still_runs():
    seen: list[tuple] = []
    split = moving(16, lambda *state: seen.append(state))
    split.take(at(split, "prefill.0"))
    split.take(at(split, "load_kv.36"))
    split.ended(at(split, "load_kv.36"), 0.25)
    ((task, seconds, standing),) = seen
    assert (task.id, seconds) == ("load_kv.36", 0.25)
    assert (standing.computed_to, standing.loaded_from) == (8, 36)
    assert [one.id for one, _ in standing.running] == ["prefill.0"]


def planner() -> Replanner:
    """A step of 8 tokens takes a second, as does a load of 4 tokens."""
    model, job = tiny_model(), request(41, CACHED)
    hardware = machine(
        flops_per_s=1e30,
        memory_bytes_per_s=1e30,
        h2d=4.0 * model.n_layers * model.kv_token_bytes,
        restore=Restore(Prefill(SourcedValue("datasheet", 1e30), SourcedValue("datasheet", 1.0))),
    )
    return Replanner(model, hardware, job)


def standing(now_s: float, computed: int, loaded: int, *running) -> RestoreProgress:
    return RestoreProgress(now_s, computed, loaded, running)


def test_a_task_as_fast_as_assumed_or_of_few_tokens_changes_nothing():
    one, graph = planner(), two_ended_graph(tiny_model(), request(41, CACHED))
    load = graph.tasks[graph.index["load_kv.36"]]
    assert one.after(load, 1.05, standing(1.0, 8, 36)) is None
    short = replace(load, token_start=38, bytes=load.bytes // 2)
    assert one.after(short, 5.0, standing(1.0, 8, 36)) is None
    assert one.changes == []


@pytest.mark.parametrize(
    ("name", "seconds", "meeting"),
    [
        ("load_kv.36", 2.0, 32),  # three steps against one load, which end at 3 and 2
        ("prefill.0", 4.0, 16),  # one step against five loads: 4 and 5
        ("load_kv.36", 0.25, 16),  # one step against five loads: 1 and 1.25
    ],
)
def test_the_new_meeting_point_is_where_both_ends_come_first(name, seconds, meeting):
    one, graph = planner(), two_ended_graph(tiny_model(), request(41, CACHED))
    task = graph.tasks[graph.index[name]]
    assert one.after(task, seconds, standing(seconds, 8, 36)) == meeting
    (change,) = one.changes
    assert (change.lane, change.computed_tokens) == (task.lane, meeting)
    assert change.rate_frac == pytest.approx(1.0 / seconds)


def test_what_is_running_counts_with_what_is_left_of_it():
    one, graph = planner(), two_ended_graph(tiny_model(), request(41, CACHED))
    load, step = (graph.tasks[graph.index[name]] for name in ("load_kv.36", "prefill.8"))
    busy = one.after(load, 3.0, standing(3.0, 16, 36, (step, 3.0)))
    idle = planner().after(load, 3.0, standing(3.0, 16, 36))
    assert busy <= idle


def run_with(move_to: int | None, trace=None, model=OPT):
    """A restore whose plan is changed when its first load has ended, told as its last split."""
    with open_backend("cpu", 2e6) as backend:
        case = RestoreCase.of(backend, model, request(41, CACHED))
        graph = two_ended_graph(model, case.job)
        split = AdaptiveSplit(graph, 16, lambda task, *_: move_to if task.lane == H2D else None)
        executor = case.executor(graph)
        ran = executor.run(trace or Availability(), split)
        executor.check()
    return case, split, ran


@pytest.mark.parametrize("move_to", [None, 8, 16, 24, 40, 0])
@pytest.mark.parametrize("full_layers", [None, (), (1,)])
def test_a_run_whose_plan_moves_is_right_and_is_the_graph_of_its_last_split(move_to, full_layers):
    """Without windows, and where those of all layers or of two begin at token 28."""
    model = OPT
    if full_layers is not None:
        model = replace(OPT, sliding_window=11, full_attention_layers=full_layers)
    case, split, ran = run_with(move_to, model=model)
    final = split_graph(model, case.job, RestoreSplit.even(model, split.meeting))
    timeline = split.on_final_graph(ran, final)
    assert timeline.graph is final
    assert timeline.makespan_s == ran.makespan_s
    assert all(span.duration_s > 0 for span in timeline.spans)
    other = split_graph(model, case.job, RestoreSplit.even(model, (split.meeting + 8) % CACHED))
    with pytest.raises(Mismatch, match="last split"):
        split.on_final_graph(ran, other)


def test_a_competing_load_leaves_the_compute_lane_a_share_and_ends():
    trace = Availability((Step(0.0, ((COMPUTE, 0.5),)),))
    before = threading.active_count()
    with open_backend("cpu") as backend:
        case = RestoreCase.of(backend, OPT, request())
        executor = case.executor(two_ended_graph(OPT, case.job))
        executor.run(trace)
        executor.check()
        (share,) = executor.shares(trace)
        assert (share.start_s, share.stated_frac) == (0.0, 0.5)
        assert 0 < share.measured_frac <= 1.01
    assert threading.active_count() == before
