"""A profiler's trace on the Timeline page, alone and next to a prediction, and its figures."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from builders import make_plan
from kineto import d2h, gpu, h2d, kernel, step, write
from streamlit.testing.v1 import AppTest

import dashboard
import dashboard.data.uploads
from dashboard.data.uploads import Upload, read_upload
from dashboard.figures import paired_trace_lanes, trace_lanes
from dashboard.figures.lanes import MAX_SINGLE_BARS
from sim import Workload, find_hardware, find_model
from sim.errors import BadFile
from sim.traces.compare import work_of
from sim.traces.measured import open_trace

APP = Path(dashboard.__file__).parent / "streamlit_app.py"
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


def labels(figure):
    return list(figure.layout.yaxis.ticktext)


def test_a_trace_has_a_row_for_each_stream_and_a_bar_for_each_event(trace):
    figure = trace_lanes(trace.events.work, trace.span_ns)
    assert labels(figure) == [
        *("kernel, stream 7", "kernel, stream 8", "h2d, stream 13"),
        *("d2h, stream 14", "memset, stream 7"),
    ]
    kernels, loads, stores, sets = figure.data
    assert [one.name for one in figure.data] == ["kernel", "h2d", "d2h", "memset"]
    assert list(kernels.base) == pytest.approx([4, 20])
    assert list(kernels.x) == pytest.approx([10, 10])
    assert list(kernels.y) == [0, 1]
    assert (loads.x[0], stores.x[0], sets.base[0]) == pytest.approx((8, 5, 31))
    assert "52.4 GB/s, pinned" in loads.hovertext[0]
    assert "&lt;float&gt;" in kernels.hovertext[0], "a name is no markup"


def test_a_window_starts_at_zero_and_cuts_what_reaches_out(trace):
    figure = trace_lanes(trace.events.work, (5_000_000, 22_000_000))
    kernels, loads = figure.data
    assert list(kernels.base) == pytest.approx([0, 15])
    assert list(kernels.x) == pytest.approx([9, 2])
    assert list(loads.x) == pytest.approx([3])


def test_many_short_events_become_few_bars(tmp_path):
    events = [kernel(10 * at, 5) for at in range(MAX_SINGLE_BARS + 500)]
    found = open_trace(write(tmp_path / "t.json", events))
    (bars,) = trace_lanes(found.events.work, found.span_ns).data
    assert len(bars.x) < 800
    assert "in a row" in bars.hovertext[0]


def test_a_prediction_is_drawn_above_the_trace_from_the_same_zero(trace, plan):
    predicted = work_of(plan.simulate())
    figure = paired_trace_lanes(trace.events.work, (20_000_000, 40_000_000), predicted)
    assert labels(figure) == [
        f"{kind} {source}"
        for kind in ("kernel", "h2d", "d2h")
        for source in ("predicted", "measured")
    ]
    rows = list(figure.layout.yaxis.tickvals)
    by_row = {
        row: [
            base for one in figure.data for base, y in zip(one.base, one.y, strict=True) if y == row
        ]
        for row in rows
    }
    assert by_row[rows[1]] == pytest.approx([0]), "the kernel of the second step"
    assert len(by_row[rows[0]]) == sum(one.kind == "kernel" for one in predicted)
    assert by_row[rows[5]] == pytest.approx([15])


def show(*uploaded, **query):
    app = AppTest.from_file(APP, default_timeout=60)
    app.session_state["uploads"] = {one.name: one for one in uploaded}
    app.switch_page("app_pages/timeline.py")
    app.query_params["view"] = "a profiler's trace"
    for key, value in query.items():
        app.query_params[key] = value
    app.run()
    assert not app.exception, app.exception
    return app


def test_the_page_invites_to_upload_a_trace():
    app = show()
    assert app.header[0].value == "No trace to show yet"
    assert app.get("file_uploader")


def test_the_page_shows_a_trace_alone(trace):
    app = show(Upload("vllm.json", trace))
    assert app.header[0].value == "40.0 ms: kernels 20.0 ms, exposed copy 9.0 ms, idle 10.0 ms"
    values = {metric.label: metric.value for metric in app.metric}
    assert values["overlap, h2d"] == "50.0 %"
    assert values["overlap, d2h"] == "0.0 %"
    assert len(app.get("plotly_chart")) == 1
    second = show(Upload("vllm.json", trace), step="1")
    assert second.header[0].value.startswith("20.0 ms: kernels 10.0 ms")
    assert {metric.label: metric.value for metric in second.metric}["overlap, h2d"] == "no copies"


def test_the_page_shows_a_trace_next_to_the_prediction_of_a_plan(trace, plan):
    app = show(Upload("vllm.json", trace), Upload("plan.json", plan), prediction="plan.json")
    (spec,) = (json.loads(chart.proto.spec) for chart in app.get("plotly_chart"))
    assert "kernel predicted" in spec["layout"]["yaxis"]["ticktext"]
    assert any("measured 40.0 ms" in one.value for one in app.markdown)


def test_a_partial_trace_says_so_on_the_page(tmp_path):
    found = open_trace(write(tmp_path / "t.json", [kernel(0, 5), kernel(9, -1)]))
    assert "negative duration" in show(Upload("t.json", found)).warning[0].value


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
