"""`kvoverlap trace`, traces in `compare`, and --link-from."""

from __future__ import annotations

import json

import pytest
from golden.freeze import call
from kineto import call as launch
from kineto import d2h, h2d, kernel, step, write

import kvoverlap
from planner.sweep.machines import machine_of
from planner.sweep.study import Study
from sim.catalog import find_hardware

PLAN = "plan --model opt-125m --hardware h100 --batch 4 --prompt 256 --no-keep"
LOADS = [h2d(10_000 * number, 8000, 400 << 20) for number in range(4)]
"""Loads of 400 MiB in 8 ms: 52 GB/s."""
EVENTS = [
    step("execute_context_0(0)_generation_8(8)", 0, 20_000),
    step("execute_context_0(0)_generation_9(9)", 20_000, 20_000),
    *LOADS,
    kernel(4000, 10_000),
    launch(15_000, 5, 7),
    kernel(16_000, 10_000, correlation=7, name="void gemm<float>()\n[with T = float]"),
    d2h(39_000, 1000, 64, "Pageable"),
]


@pytest.fixture
def trace_file(tmp_path):
    return write(tmp_path / "vllm.json", EVENTS)


def answer(command, folder):
    status, out, err = call(f"{command} --json", folder)
    assert status == 0, err
    return json.loads(out)


def refusal(command, folder):
    status, out, err = call(command, folder)
    assert (status, out) == (2, "")
    assert "Traceback" not in err
    (line,) = [one for one in err.splitlines() if one.startswith("error:")]
    return line


def test_the_text_leads_with_the_parts_of_the_span(trace_file, tmp_path):
    status, out, _ = call(f"trace {trace_file.name}", tmp_path)
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == "vllm.json (Kineto): 10 events"
    assert lines[1] == (
        "40.0 ms: kernels 20.0 ms, exposed copy 17.0 ms, other GPU work 0.0 us, idle 3.0 ms"
    )
    for text in ("Overlap with kernels", "Idle time by cause", "Copies", "52.43 GB/s", "Steps"):
        assert text in out, text
    assert "0: execute_context_0(0)_generation_8(8)" in out
    assert "void gemm<float>() [with T = float]" in out


def test_json_and_python_give_the_same(trace_file, tmp_path):
    found = answer(f"trace {trace_file.name} -o measured.json", tmp_path)
    assert found == json.loads(json.dumps(kvoverlap.trace(trace_file).to_dict()))
    assert found["h2d_overlap_frac"] == pytest.approx(16 / 32)
    stored = kvoverlap.load(tmp_path / "measured.json")
    assert isinstance(stored, kvoverlap.MeasuredTrace)
    assert answer("trace measured.json", tmp_path) == found


def test_names_cannot_harm_a_terminal(tmp_path):
    text = json.dumps([kernel(0, 5, name="NAME")])
    (tmp_path / "a.json").write_text(text.replace("NAME", r"\u001b[31m[bold]\ud800\u0007x"))
    status, out, _ = call("trace a.json", tmp_path)
    assert status == 0
    assert "?[31m[bold]??x" in out
    assert "\x1b" not in out


def test_a_partial_answer_says_so_on_stderr(trace_file, tmp_path):
    (tmp_path / "cut.json").write_text(trace_file.read_text()[:-200])
    status, out, err = call("trace cut.json", tmp_path)
    assert status == 0
    assert "kernels" in out
    assert "breaks off after 8 events (the file ends early)" in " ".join(err.split())


@pytest.mark.parametrize("text", ["", "nonsense", "{}", '{"traceEvents": []}'])
def test_what_is_no_trace_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    assert "a.json" in refusal("trace a.json", tmp_path)
    assert "absent.json does not exist" in refusal("trace absent.json", tmp_path)


def test_a_prediction_is_compared_with_the_sums_of_a_trace(trace_file, tmp_path):
    call(f"{PLAN} -o plan.json", tmp_path)
    predicted = answer("simulate plan.json -o predicted.json", tmp_path)
    call(f"trace {trace_file.name} -o measured.json", tmp_path)
    for measured in (trace_file.name, "measured.json"):
        found = answer(f"compare predicted.json {measured}", tmp_path)
        assert found["measured_makespan_s"] == pytest.approx(40e-3)
        assert found["predicted_makespan_s"] == pytest.approx(predicted["makespan_s"])
        assert found["overlap_predicted_frac"] == pytest.approx(predicted["overlap_frac"], abs=1e-6)
        assert found["predicted"]["kernel_s"] == pytest.approx(
            predicted["breakdown"]["compute_s"], rel=1e-4
        )
        assert found["measured"]["h2d_overlap_frac"] == pytest.approx(0.5)
    second = answer(f"compare predicted.json {trace_file.name} --step 1", tmp_path)
    assert second["measured_makespan_s"] == pytest.approx(20e-3)
    assert second["measured"]["kernel_s"] == 0, "its kernel was launched by the first step"
    status, out, err = call(f"compare predicted.json {trace_file.name} --gate 1", tmp_path)
    assert (status, "gate 1 %: FAILED" in out) == (1, True)
    assert "marks 2 steps" in " ".join(err.split())
    assert "marks 2 steps, counted from 0" in refusal(
        "compare predicted.json measured.json --step 2", tmp_path
    )
    assert "leave it out" in refusal("compare predicted.json predicted.json --step 0", tmp_path)


def test_link_from_changes_the_link_of_the_machine(trace_file, tmp_path):
    load_all = f"{PLAN} --policy load-all"
    status, _, err = call(f"{load_all} --link-from {trace_file.name} -o p.json", tmp_path)
    assert status == 0
    told = " ".join(err.split())
    assert "h2d: 52.4 GB/s from 4 copies (pinned) of up to 419,430,400 bytes in trace" in told
    assert "d2h: no copy of at least 64 KiB in vllm.json: the rate of h100" in told
    links = kvoverlap.load(tmp_path / "p.json").hardware.links
    assert links.h2d.copy_s(400 << 20) == (pytest.approx(8e-3), True)
    assert links.d2h == find_hardware("h100").links.d2h
    fast = answer(f"{load_all} --set link.bandwidth=100GB/s", tmp_path)
    slow = answer(
        f"{load_all} --link-from {trace_file.name} --set link.bandwidth=20GB/s",
        tmp_path,
    )
    assert slow["makespan_s"] > fast["makespan_s"]
    restore = "restore --model opt-125m --hardware h100 --prompt 1K --policy load-only"
    with_trace = answer(f"{restore} --link-from {trace_file.name}", tmp_path)
    assert with_trace["ttft_s"] > answer(restore, tmp_path)["ttft_s"]


def test_link_from_refuses_what_has_no_rate(tmp_path):
    write(tmp_path / "small.json", [h2d(0, 5, 4096), kernel(0, 5)])
    assert "no copy between host and device of at least 64 KiB" in refusal(
        f"{PLAN} --link-from small.json", tmp_path
    )
    assert "share one memory" in refusal(
        f"{PLAN.replace('h100', 'dgx-spark')} --link-from small.json", tmp_path
    )
    assert "does not exist" in refusal(f"{PLAN} --link-from absent.json", tmp_path)
    write(tmp_path / "large.json", LOADS)
    assert "leave one out" in refusal(f"{PLAN} --link-from large.json --copies pageable", tmp_path)


STUDY = """
[fixed]
model = "opt-125m"
hardware = "h100"
prompt = 256
batch = 4
policy = "load-all"
[grid]
link_from = ["a.json", "b.json"]
"""


def test_a_study_takes_links_from_traces(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.json", LOADS)
    write(tmp_path / "b.json", [h2d(0, 1600, 4 << 20)])
    (tmp_path / "study.toml").write_text(STUDY)
    study = Study.load(tmp_path / "study.toml")
    rates = [
        machine_of(dict(zip(study.inputs, point, strict=True))).hardware.links.h2d.bytes_per_s
        for point in study.points()
    ]
    assert rates == pytest.approx([(400 << 20) / 8e-3, (4 << 20) / 1.6e-3])
    before = study.sha256
    write(tmp_path / "b.json", [h2d(0, 1700, 4 << 20)])
    assert Study.load(tmp_path / "study.toml").sha256 != before
    (tmp_path / "b.json").write_text("nonsense")
    assert "link_from: b.json is not a trace" in refusal("sweep study.toml --dry-run", tmp_path)
