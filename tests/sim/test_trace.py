"""Traces come back as timelines, follow the Trace Event Format, and open in other tools."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise

import pytest
from builders import decode_graph, graph, machine, task, tiny_model, unit_machine
from kineto import call, h2d, host, kernel

from sim.engine.api import simulate
from sim.errors import BadFile, Mismatch
from sim.graph.jobs import Workload
from sim.graph.timeline import Timeline
from sim.lanes import COMPUTE, D2H, H2D, HOST
from sim.results.trace import read_trace, trace_document, write_trace
from sim.traces.measured import holds_trace, open_trace

# Tasks of milliseconds: readers that round to microseconds lose less than a thousandth.
SLOW = machine(flops_per_s=3e5, memory_bytes_per_s=1e6, h2d=3e4, d2h=1e4)
GRAPH = decode_graph(recomputed=5, model=tiny_model(n_layers=4))
PREDICTED = simulate(GRAPH, SLOW)


def perturbed(timeline, late_s=0.003, stretch=1.2):
    """What a run on a real device might show: later, slower, in the same order."""
    return Timeline(
        timeline.graph,
        tuple(late_s + stretch * start for start in timeline.start_s),
        tuple(
            late_s + stretch * (start + (0.6 + 0.05 * (number % 8)) * (end - start))
            for number, (start, end) in enumerate(
                zip(timeline.start_s, timeline.end_s, strict=True)
            )
        ),
    )


MEASURED = perturbed(PREDICTED)


def device_events(document):
    return [event for event in document["traceEvents"] if "task_id" in event.get("args", {})]


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
@pytest.mark.parametrize("timeline", [PREDICTED, MEASURED], ids=["predicted", "measured"])
def test_a_trace_read_back_is_the_timeline(tmp_path, name, timeline):
    write_trace(timeline, tmp_path / name, "any")
    assert read_trace(tmp_path / name, GRAPH, "any") == timeline
    assert holds_trace(tmp_path / name)


def test_a_name_in_gz_is_compressed(tmp_path):
    write_trace(PREDICTED, tmp_path / "a.json.gz", "any")
    write_trace(PREDICTED, tmp_path / "a.json", "any")
    packed = gzip.decompress((tmp_path / "a.json.gz").read_bytes())
    assert packed == (tmp_path / "a.json").read_bytes()


@pytest.mark.parametrize("timeline", [PREDICTED, MEASURED], ids=["predicted", "measured"])
def test_every_event_has_the_fields_of_the_format(timeline):
    document = json.loads(json.dumps(trace_document(timeline, "any"), allow_nan=False))
    for event in document["traceEvents"]:
        assert event["ph"] in ("X", "M")
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert isinstance(event["name"], str)
        assert event["ts"] >= 0
        if event["ph"] == "X":
            assert event["dur"] >= 0


def test_times_are_microseconds():
    for event, span in zip(
        device_events(trace_document(MEASURED, "any")), MEASURED.spans, strict=True
    ):
        assert event["ts"] == pytest.approx(1e6 * span.start_s)
        assert event["dur"] == pytest.approx(1e6 * span.duration_s)


def test_every_lane_is_one_named_thread_and_its_events_do_not_overlap():
    document = trace_document(PREDICTED, "any")
    threads = {}
    for event, one in zip(device_events(document), GRAPH.tasks, strict=True):
        threads.setdefault(one.lane, set()).add((event["pid"], event["tid"]))
    assert set(threads) == {COMPUTE, H2D, D2H}
    assert all(len(found) == 1 for found in threads.values())
    assert len(set.union(*threads.values())) == 3
    names = {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in document["traceEvents"]
        if event["name"] == "thread_name"
    }
    for lane, ((pid, tid),) in ((lane, tuple(found)) for lane, found in threads.items()):
        assert names[pid, tid].endswith(lane)
        spans = [
            (event["ts"], event["ts"] + event["dur"])
            for event in device_events(document)
            if (event["pid"], event["tid"]) == (pid, tid)
        ]
        for before, after in pairwise(sorted(spans)):
            assert before[1] <= after[0] + 1e-6


def test_each_device_is_a_process_of_its_own():
    made = graph(task("a", H2D, 2), task("b", H2D, 2, device=1), task("c", COMPUTE, 1))
    document = trace_document(simulate(made, unit_machine()), "any")
    assert [event["pid"] for event in device_events(document)] == [0, 1, 0]
    assert document["deviceProperties"] == [{"id": 0}, {"id": 1}]


def test_copies_within_the_host_are_events_of_a_host_thread():
    made = graph(task("a", HOST, 2), task("b", H2D, 1, "a"), task("c", HOST, 3, device=1))
    timeline = simulate(made, unit_machine())
    document = trace_document(timeline, "any")
    staged, loaded, other = device_events(document)
    assert staged["cat"] == other["cat"] == "cpu_op"
    assert "stream" not in staged["args"]
    assert staged["args"]["bytes"] == 2
    assert loaded["cat"] == "gpu_memcpy"
    assert len({staged["pid"], other["pid"], loaded["pid"]}) == 2
    assert staged["tid"] != other["tid"]
    named = {event["tid"] for event in document["traceEvents"] if event["pid"] == staged["pid"]}
    assert {staged["tid"], other["tid"]} <= named


def test_a_copy_states_its_bytes_and_rate_and_a_kernel_its_flops():
    for event, span in zip(
        device_events(trace_document(PREDICTED, "any")), PREDICTED.spans, strict=True
    ):
        if span.task.lane == COMPUTE:
            assert event["cat"] == "kernel"
            assert event["name"] == span.task.op
            rate = event["args"].get("TFLOP/s", 0) * 1e12
            assert rate * span.duration_s == pytest.approx(span.task.flops)
        else:
            assert event["cat"] == "gpu_memcpy"
            assert event["args"]["bytes"] == span.task.bytes
            rate = event["args"]["memory bandwidth (GB/s)"] * 1e9
            assert rate * span.duration_s == pytest.approx(span.task.bytes)


def test_a_trace_of_another_graph_is_refused(tmp_path):
    write_trace(PREDICTED, tmp_path / "a.json", "any")
    with pytest.raises(Mismatch, match=GRAPH.sha256[:12]):
        read_trace(tmp_path / "a.json", decode_graph(), "any")


def test_a_predicted_trace_does_not_pass_for_a_measured_one(tmp_path):
    write_trace(PREDICTED, tmp_path / "a.json", "predicted")
    with pytest.raises(Mismatch, match="predicted, not measured"):
        read_trace(tmp_path / "a.json", GRAPH, "measured")


def test_a_trace_that_lacks_a_task_is_refused(tmp_path):
    document = trace_document(PREDICTED, "any")
    document["traceEvents"].remove(device_events(document)[3])
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(BadFile, match=rf"{GRAPH.tasks[3].id} is missing"):
        read_trace(tmp_path / "a.json", GRAPH, "any")


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"otherData": 1, "traceEvents": []}'])
def test_a_file_that_is_no_trace_of_ours_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(BadFile, match="not a trace written by kvoverlap"):
        read_trace(tmp_path / "a.json", GRAPH, "any")
    assert holds_trace(tmp_path / "a.json") == ("traceEvents" in text)


def test_a_step_without_compute_can_still_be_written(tmp_path):
    made = graph(task("a", H2D, 2), workload=Workload(1, 8, 2))
    timeline = simulate(made, unit_machine())
    write_trace(timeline, tmp_path / "a.json", "any")
    assert read_trace(tmp_path / "a.json", made, "any") == timeline


@pytest.mark.filterwarnings("ignore:The inplace keyword")
@pytest.mark.parametrize("gen_tokens", [1, 3])
@pytest.mark.parametrize("change", [None, perturbed], ids=["predicted", "measured"])
def test_holistic_trace_analysis_finds_the_same_breakdown(tmp_path, gen_tokens, change):
    analysis = pytest.importorskip("hta.trace_analysis")
    made = decode_graph(5, tiny_model(n_layers=4), prompt_tokens=30, gen_tokens=gen_tokens)
    timeline = simulate(made, SLOW)
    if change is not None:
        timeline = change(timeline)
    write_trace(timeline, tmp_path / "rank-0.json.gz", "any")
    opened = analysis.TraceAnalysis(trace_dir=str(tmp_path))
    (found,) = opened.get_temporal_breakdown(visualize=False).to_dict("records")
    parts = timeline.breakdown
    first_s = min(timeline.start_s)
    wall_s = timeline.makespan_s - first_s
    assert parts.exposed_copy_s > 0.05 * wall_s
    assert found["kernel_time(us)"] == pytest.approx(1e6 * wall_s, rel=1e-3)
    shares = [parts.compute_s, parts.exposed_copy_s, parts.idle_s - first_s]
    columns = ["compute_time_pctg", "non_compute_time_pctg", "idle_time_pctg"]
    assert [found[column] for column in columns] == pytest.approx(
        [100 * share / wall_s for share in shares], abs=0.3
    )


@pytest.mark.filterwarnings("ignore:The inplace keyword")
def test_holistic_trace_analysis_finds_the_same_overlap_in_a_foreign_trace(tmp_path):
    """Its overlap is that of collectives; its non-compute time is exposed copies and other work."""
    analysis = pytest.importorskip("hta.trace_analysis")
    events = [host("cpu_op", "aten::mm", 0, 5, {"External id": 1})]
    for number in range(40):
        start, number_of = 1000 + 700 * number, 1000 + 3 * number
        events += [
            call(start - 40, 5, number_of + 1),
            kernel(start, 300 + 7 * number, correlation=number_of + 1),
            call(start - 30, 5, number_of + 2, "cudaMemcpyAsync"),
            h2d(start + 200, 350, 10_000_000, correlation=number_of + 2),
            call(start - 20, 5, number_of + 3),
            kernel(
                start + 150,
                260,
                stream=20,
                name="ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgs)",
                correlation=number_of + 3,
            ),
        ]
    distributed = {"backend": "nccl", "rank": 0, "world_size": 1}
    document = {"schemaVersion": 1, "distributedInfo": distributed, "traceEvents": events}
    (tmp_path / "rank-0.json.gz").write_bytes(gzip.compress(json.dumps(document).encode()))
    ours = open_trace(tmp_path / "rank-0.json.gz").measures
    opened = analysis.TraceAnalysis(trace_dir=str(tmp_path))
    (overlap,) = opened.get_comm_comp_overlap(visualize=False).to_dict("records")
    assert 0.3 < ours.collective_overlap_frac < 0.95
    assert 100 * ours.collective_overlap_frac == pytest.approx(
        overlap["comp_comm_overlap_pctg"], abs=0.1
    )
    (parts,) = opened.get_temporal_breakdown(visualize=False).to_dict("records")
    assert 100 * ours.idle_s / ours.span_s == pytest.approx(parts["idle_time_pctg"], abs=0.1)
    assert parts["kernel_time(us)"] == pytest.approx(1e6 * ours.span_s, rel=1e-6)
