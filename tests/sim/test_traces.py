"""Traces of any program: exact values of hand-written ones, and the answer of another tool."""

from __future__ import annotations

import gzip
import json

import pytest
from builders import decode_graph, machine, tiny_model
from kineto import call, d2h, gpu, h2d, kernel, step, write

from sim.engine.api import simulate
from sim.errors import BadFile
from sim.results.trace import write_trace
from sim.traces.events import copy_kind, memory_in_name
from sim.traces.measured import CPU_ONLY, MeasuredTrace, open_trace

STEPS = [
    step("ProfilerStep#4", 1000, 100),
    h2d(1000, 40, 4_000_000),
    kernel(1010, 20),
    kernel(1020, 30, stream=8),
    d2h(1060, 20, 2_000_000, "Pageable"),
    step("ProfilerStep#5", 1100, 100),
    kernel(1100, 50),
    h2d(1120, 60, 6_000_000),
    gpu("gpu_memset", "Memset (Device)", 1180, 10, {"stream": 7}),
]
"""Two steps of 100 us. In the first 40 us of load under kernels from 10 to 50, and 20 us of store
with nothing; in the second 60 us of load, the first 30 under a kernel, and a memset."""


def measured(tmp_path, events, name="trace.json", **header):
    return open_trace(write(tmp_path / name, events, **header))


def seconds(us):
    return pytest.approx(us / 1e6, rel=1e-12)


def test_every_second_of_a_trace_by_hand(tmp_path):
    answer = measured(tmp_path, STEPS).to_dict()
    assert answer["span_s"] == seconds(190)
    assert answer["kernel_s"] == seconds(90)
    assert answer["h2d_copy_s"] == seconds(100)
    assert answer["h2d_hidden_s"] == seconds(60)
    assert answer["h2d_overlap_frac"] == pytest.approx(0.6)
    assert answer["d2h_copy_s"] == seconds(20)
    assert answer["d2h_hidden_s"] == 0
    assert answer["d2h_overlap_frac"] == 0
    assert answer["exposed_copy_s"] == seconds(60)
    assert answer["other_s"] == seconds(10)
    assert answer["idle_s"] == seconds(30)
    assert answer["complete"]
    assert answer["notes"] == []


def test_every_second_of_a_step_by_hand(tmp_path):
    first, second = measured(tmp_path, STEPS).to_dict()["steps"]
    assert (first["name"], second["name"]) == ("ProfilerStep#4", "ProfilerStep#5")
    assert (first["start_s"], second["start_s"]) == (0, seconds(100))
    assert [first[key] for key in ("span_s", "kernel_s", "h2d_copy_s", "h2d_hidden_s")] == [
        seconds(us) for us in (100, 40, 40, 30)
    ]
    assert (first["h2d_overlap_frac"], first["d2h_overlap_frac"]) == (0.75, 0)
    assert (first["exposed_copy_s"], first["idle_s"]) == (seconds(30), seconds(30))
    assert [second[key] for key in ("span_s", "kernel_s", "h2d_copy_s", "h2d_hidden_s")] == [
        seconds(us) for us in (100, 50, 60, 30)
    ]
    assert second["d2h_overlap_frac"] is None
    assert (second["exposed_copy_s"], second["other_s"]) == (seconds(30), seconds(10))


def test_copies_by_direction_memory_and_stream(tmp_path):
    found = measured(tmp_path, STEPS)
    assert [(row.direction, row.memory, row.stream, row.copies, row.bytes) for row in found.copies]
    loads, stores = found.copies
    assert (loads.direction, loads.memory, loads.stream, loads.copies) == ("h2d", "pinned", "13", 2)
    assert (loads.bytes, loads.seconds) == (10_000_000, seconds(100))
    assert loads.bytes_per_s == pytest.approx(1e11)
    assert (stores.direction, stores.memory, stores.stream) == ("d2h", "pageable", "14")
    streams = {row.name: (row.kernels, row.seconds) for row in found.kernel_streams}
    assert streams == {
        "GPU 0, stream 7": (2, seconds(70)),
        "GPU 0, stream 8": (1, seconds(30)),
    }


def test_the_file_that_is_written_holds_the_answer_and_gives_it_again(tmp_path):
    found = measured(tmp_path, [*STEPS, call(990, 5, 1), kernel(1190, 1, correlation=1)])
    for name in ("measured.json", "measured.json.gz"):
        found.save(tmp_path / name)
        assert open_trace(tmp_path / name).to_dict() == found.to_dict()
    content = json.loads((tmp_path / "measured.json").read_text())
    assert content["source"] == "measured"
    assert content["h2d_overlap_frac"] == found.measures.h2d_overlap_frac


@pytest.mark.parametrize(
    ("key", "value"),
    [("start_ns", [1]), ("name", [99] * 9), ("end_ns", [-1] * 9), ("kinds", ["?"] * 4)],
)
def test_a_file_whose_columns_were_edited_is_refused(tmp_path, key, value):
    path = tmp_path / "measured.json"
    measured(tmp_path, STEPS).save(path)
    content = json.loads(path.read_text())
    content["timeline"][key] = value
    path.write_text(json.dumps(content))
    with pytest.raises(BadFile, match=r"measured\.json"):
        MeasuredTrace.load(path)


def test_work_belongs_to_the_step_that_launched_it(tmp_path):
    """The host launches the second step's load before the kernel of the first step ends."""
    events = [
        step("execute_context_1(512)_generation_0(0)", 0, 50),
        call(10, 5, 1),
        kernel(20, 100, correlation=1),
        step("execute_context_0(0)_generation_8(8)", 60, 50),
        call(70, 5, 2, "cudaMemcpyAsync"),
        h2d(80, 80, correlation=2),
    ]
    first, second = measured(tmp_path, events).steps
    assert first.measures.span_s == seconds(120)
    assert (first.measures.kernel_s, first.measures.h2d_copy_s) == (seconds(100), 0)
    assert second.measures.span_s == seconds(100)
    assert (second.measures.kernel_s, second.measures.h2d_copy_s) == (0, seconds(80))
    assert second.measures.h2d_hidden_s == seconds(40), "hidden by the first step's kernel"
    assert second.measures.exposed_copy_s == seconds(40)
    assert second.measures.idle_s == 0


def test_work_without_a_number_has_no_launch(tmp_path):
    """A call whose number is null launched nothing in particular: the kernel is of its own time."""
    events = [
        step("ProfilerStep#0", 0, 50),
        {**call(10, 5, 1), "args": {"correlation": None}},
        step("ProfilerStep#1", 60, 50),
        kernel(70, 20),
    ]
    first, second = measured(tmp_path, events).steps
    assert (first.measures.kernel_s, second.measures.kernel_s) == (0, seconds(20))


def test_steps_of_vllm_sglang_and_torch_and_which_of_them_count(tmp_path):
    profiler = [step(f"ProfilerStep#{number}", 100 * number, 100) for number in range(2)]
    assert [one.name for one in measured(tmp_path, [kernel(0, 9), *profiler]).steps] == [
        "ProfilerStep#0",
        "ProfilerStep#1",
    ]
    for name in ("execute_new_1_cached_3", "step[decode bs=8]", "step[prefill bs=1 toks=512]"):
        events = [kernel(0, 9), *profiler, step(name, 10, 30), step(name, 10, 30)]
        assert [one.name for one in measured(tmp_path, events).steps] == [name]
    on_gpu = [kernel(0, 9), step("ProfilerStep#3", 0, 20, "gpu_user_annotation")]
    assert [one.name for one in measured(tmp_path, on_gpu).steps] == ["ProfilerStep#3"]
    old = [kernel(0, 9), step("ProfilerStep#7", 0, 20, "Operator")]
    assert [one.name for one in measured(tmp_path, old).steps] == ["ProfilerStep#7"]


def test_idle_time_by_cause(tmp_path):
    """Gaps of 20 us (launched late, 8 of them in a synchronisation), 10 (launched early), 5."""
    events = [
        kernel(100, 10, correlation=1),
        call(111, 8, 99, "cudaStreamSynchronize"),
        call(125, 2, 2),
        kernel(130, 10, correlation=2),
        call(126, 2, 3),
        kernel(150, 10, correlation=3),
        kernel(165, 5),
    ]
    idle = measured(tmp_path, events).idle
    assert idle.host_sync_s == seconds(8)
    assert idle.host_s == seconds(7)
    assert idle.waiting_s == seconds(5 + 10)
    assert idle.unknown_s == seconds(5)


def test_two_gpus_hide_only_their_own_copies(tmp_path):
    events = [h2d(0, 10, device=0), kernel(0, 30, device=1), kernel(5, 5, device=0)]
    found = measured(tmp_path, events, deviceProperties=[{"id": 1, "name": "A100"}])
    assert found.devices[0].h2d_hidden_s == seconds(5)
    assert found.devices[0].idle_s == seconds(20)
    assert found.devices[1].kernel_s == seconds(30)
    assert found.measures.kernel_s == seconds(35)
    assert found.measures.span_s == seconds(30)
    assert found.to_dict()["devices"][1]["name"] == "A100"


def test_kernels_that_copy_kv_are_named(tmp_path):
    names = (
        "void lmc::load_and_reshape_multi_layer_kernel<long, false>(long*, long**)",
        "void transfer_kernel_impl<&get_global_offset_lf<char>, false>(void const*, void*)",
        "gemm",
    )
    events = [kernel(10 * at, 4, name=name) for at, name in enumerate(names)]
    found = measured(tmp_path, [*events, h2d(2, 10)])
    assert found.copying_kernel_s == seconds(8)
    assert found.measures.kernel_s == seconds(12), "they are kernels, too"
    assert found.measures.h2d_hidden_s == seconds(4)


@pytest.mark.parametrize(
    ("name", "kind", "memory"),
    [
        ("Memcpy HtoD (Pinned -> Device)", "h2d", "pinned"),
        ("Memcpy HtoD (Pageable -> Device)", "h2d", "pageable"),
        ("Memcpy DtoH (Device -> Pinned)", "d2h", "pinned"),
        ("Memcpy DtoH (Device -> Pageable)", "d2h", "pageable"),
        ("Memcpy HtoD (Unknown -> Device)", "h2d", "unknown"),
        ("Memcpy DtoD (Device -> Device)", "d2d", ""),
        ("Memcpy PtoP (Device -> Device)", "p2p", ""),
        ("[CUDA memcpy Host-to-Device]", "h2d", "unknown"),
        ("[CUDA memcpy DtoH]", "d2h", "unknown"),
        ("MemcpyH2D", "h2d", "unknown"),
        ("CopyDeviceToHost", "d2h", "unknown"),
        ("Memcpy HtoH (Pageable -> Pinned)", "copy", ""),
        ("Memcpy", "copy", ""),
    ],
)
def test_the_direction_and_the_memory_are_in_the_name_of_a_copy(name, kind, memory):
    assert copy_kind(name) == kind
    assert memory_in_name(kind, name) == memory


def test_our_own_traces_are_traces_too(tmp_path):
    slow = machine(flops_per_s=3e5, memory_bytes_per_s=1e6, h2d=3e4, d2h=1e4)
    timeline = simulate(decode_graph(recomputed=5, model=tiny_model(n_layers=4)), slow)
    write_trace(timeline, tmp_path / "ours.json.gz", "predicted")
    found = open_trace(tmp_path / "ours.json.gz").measures
    assert found.kernel_s == pytest.approx(timeline.busy_s("compute"), rel=1e-6)
    assert found.h2d_copy_s == pytest.approx(timeline.busy_s("h2d"), rel=1e-6)
    assert found.exposed_copy_s == pytest.approx(timeline.exposed_copy_s, rel=1e-6)


def test_compression_order_and_layout_change_nothing(tmp_path):
    answer = measured(tmp_path, STEPS).to_dict()
    document = {"traceEvents": STEPS[::-1], "schemaVersion": 1, "traceName": "x"}
    text = json.dumps(document, indent=2)
    (tmp_path / "other.json").write_text(f"\ufeff{text}\n")
    (tmp_path / "two.json.gz").write_bytes(
        gzip.compress(text[:500].encode()) + gzip.compress(text[500:].encode())
    )
    (tmp_path / "list.json").write_text(json.dumps(STEPS)[:-1])
    for name in ("other.json", "two.json.gz", "list.json"):
        other = open_trace(tmp_path / name).to_dict()
        for key in ("file", "complete", "notes"):
            other[key] = answer[key]
        assert other == answer, name


def test_a_profile_recorded_on_a_cpu_gives_its_steps_and_says_what_is_missing(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "cpu.json.gz"
    schedule = torch.profiler.schedule(wait=0, warmup=1, active=2, repeat=1)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, schedule=schedule) as profiler:
        for _ in range(3):
            torch.ones(32, 32) @ torch.ones(32, 32)
            profiler.step()
    profiler.export_chrome_trace(str(path))
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    marks = [one for one in events if one["name"].startswith("ProfilerStep#")]
    found = open_trace(path)
    assert found.events.n_events == len(events)
    assert found.notes == (CPU_ONLY,)
    assert found.measures.kernel_s == 0
    assert [step.name for step in found.steps] == [one["name"] for one in marks]
    for one, mark in zip(found.steps, marks, strict=True):
        assert one.measures.span_s == pytest.approx(mark["dur"] / 1e6, abs=2e-9)
