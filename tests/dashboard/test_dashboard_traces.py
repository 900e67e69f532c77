"""A profiler's trace on the Timeline page, alone and next to a prediction, and its figures."""

from __future__ import annotations

import gzip
import json
from importlib import import_module

import pytest
from apptest import show
from builders import make_plan
from kineto import d2h, gpu, h2d, kernel, step, write
from lane_bars import bars_of, drawn, times

import dashboard.data.uploads
from dashboard.data.uploads import Upload, read_upload
from dashboard.figures import paired_trace_lanes, trace_lanes
from sim import Workload, find_hardware, find_model
from sim.errors import BadFile
from sim.traces.compare import work_of
from sim.traces.measured import open_trace

TRACE = {"view": "a profiler's trace"}
EVENTS = [
    step("step[prefill bs=1 toks=512]", 0, 20_000),
    h2d(0, 8000, 400 << 20),
    kernel(4000, 10_000, name="void gemm<float>()"),
    step("step[decode bs=8]", 20_000, 20_000),
    kernel(20_000, 10_000, stream=8),
    d2h(35_000, 5000, 200 << 20, "Pageable"),
    gpu("gpu_memset", "Memset (Device)", 31_000, 1000, {"stream": 7}),
]


@pytest.fixture
def trace(tmp_path):
    return open_trace(write(tmp_path / "vllm.json", EVENTS))


@pytest.fixture(scope="module")
def plan():
    return make_plan(find_model("opt-125m"), find_hardware("kvpr-a100"), Workload(4, 256, 1))


def rows(chart):
    return [" ".join(filter(None, (row.lane, row.source))) for row in chart.rows]


def test_a_trace_has_a_row_for_each_stream_and_a_bar_for_each_event(trace):
    chart = trace_lanes(trace.events.work, trace.span_ns)
    assert rows(chart) == [
        *("kernel, stream 7", "kernel, stream 8", "h2d, stream 13"),
        *("d2h, stream 14", "memset, stream 7"),
    ]
    assert list(chart.kinds) == ["kernel", "h2d", "d2h", "memset"]
    assert times(chart, "kernel") == [[4, 20], [10, 10]]
    assert [times(chart, kind)[0] for kind in ("h2d", "d2h", "memset")] == [[0], [35], [31]]
    first, *_, _ = bars_of(chart)
    assert first["name"] == "void gemm<float>()", "the page shows names as text, not as HTML"
    store = next(bar for bar in bars_of(chart) if bar["kind"] == "d2h")
    assert store["place"].endswith("pageable host memory")
    assert store["size"] == 200 << 20


def test_a_window_starts_at_zero_and_cuts_what_reaches_out(trace):
    chart = trace_lanes(trace.events.work, (5_000_000, 22_000_000))
    assert times(chart, "kernel") == [[0, 15], [9, 2]]
    assert times(chart, "h2d")[1] == [3]


def test_many_short_events_become_few_bars(tmp_path, monkeypatch):
    module = import_module("dashboard.figures.trace_lanes")
    monkeypatch.setattr(module, "MAX_SINGLE_BARS", 100)
    monkeypatch.setattr(module, "SHORTEST_PART", 1 / 50)
    events = [kernel(10 * at, 5) for at in range(500)]
    found = open_trace(write(tmp_path / "t.json", events))
    bars = bars_of(trace_lanes(found.events.work, found.span_ns))
    assert len(bars) < 60
    assert bars[0]["name"].endswith("in a row")


def test_a_prediction_is_drawn_above_the_trace_from_the_same_zero(trace, plan):
    predicted = work_of(plan.simulate())
    chart = paired_trace_lanes(trace.events.work, (20_000_000, 40_000_000), predicted)
    assert rows(chart) == [
        f"{kind} {source}"
        for kind in ("kernel", "h2d", "d2h")
        for source in ("predicted", "measured")
    ]
    starts = {
        row: [bar["start"] for bar in bars_of(chart) if bar["row"] == row] for row in rows(chart)
    }
    assert starts["kernel measured"] == [0], "the kernel of the second step"
    assert len(starts["kernel predicted"]) == sum(one.kind == "kernel" for one in predicted)
    assert starts["d2h measured"] == [15]


def test_the_page_invites_to_upload_a_trace():
    app = show("timeline", **TRACE)
    assert app.header[0].value == "No trace to show yet"
    assert app.get("file_uploader")


def test_the_page_shows_a_trace_alone(trace):
    app = show("timeline", Upload("vllm.json", trace), **TRACE)
    assert app.header[0].value == "40.0 ms: kernels 20.0 ms, exposed copy 9.0 ms, idle 10.0 ms"
    values = {metric.label: metric.value for metric in app.metric}
    assert values["overlap, h2d"] == "50.0 %"
    assert values["overlap, d2h"] == "0.0 %"
    assert len(drawn(app)) == 1
    second = show("timeline", Upload("vllm.json", trace), **TRACE, step="1")
    assert second.header[0].value.startswith("20.0 ms: kernels 10.0 ms")
    assert {metric.label: metric.value for metric in second.metric}["overlap, h2d"] == "no copies"


def test_the_page_shows_a_trace_next_to_the_prediction_of_a_plan(trace, plan):
    app = show(
        "timeline",
        Upload("vllm.json", trace),
        Upload("plan.json", plan),
        **TRACE,
        prediction="plan.json",
    )
    (lanes,) = drawn(app)
    assert {"lane": "kernel", "source": "predicted", "unit": "B", "done": 0.0} in lanes["rows"]
    assert any("measured 40.0 ms" in one.value for one in app.markdown)


def test_a_partial_trace_says_so_on_the_page(tmp_path):
    found = open_trace(write(tmp_path / "t.json", [kernel(0, 5), kernel(9, -1)]))
    assert (
        "negative duration" in show("timeline", Upload("t.json", found), **TRACE).warning[0].value
    )


def test_traces_are_accepted_as_uploads(tmp_path, trace):
    payload = (tmp_path / "vllm.json").read_bytes()
    trace.save(tmp_path / "measured.json.gz")
    for name, content in (
        ("vllm.json", payload),
        ("vllm.json.gz", gzip.compress(payload)),
        ("measured.json.gz", (tmp_path / "measured.json.gz").read_bytes()),
        ("list.json", json.dumps(EVENTS).encode()),
    ):
        upload = read_upload(name, content)
        assert upload.kind == "trace"
        assert upload.content.measures == trace.measures
        assert "5 kernels and copies, 2 steps, 40.0 ms" in upload.summary


def test_a_trace_with_too_much_work_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(dashboard.data.uploads, "MAX_TASKS", 2)
    payload = write(tmp_path / "t.json", EVENTS).read_bytes()
    with pytest.raises(BadFile, match="5 kernels and copies; 2 is the most"):
        read_upload("t.json", payload)
