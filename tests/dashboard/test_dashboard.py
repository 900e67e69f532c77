"""The Timeline page and its run folders: the measurement is a stretched prediction."""

import gzip
import json
import os
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from apptest import charts, shares, show
from builders import make_plan
from lane_bars import drawn

from dashboard.data.exports import trace_bytes
from dashboard.data.runs import Run, case_of, case_stamp, find_runs, load_case, plan_of, split_of
from dashboard.perfetto import MEASURED_PID_SHIFT, joint_trace
from dashboard.text.comparison import (
    compare_command,
    comparison_summary,
    describe_case,
    metrics,
    sentence,
    task_errors,
)
from sim import Recording, Timeline, Workload, find_hardware, find_model, simulate
from sim.errors import BadFile, BadInput
from sim.files import write_json
from sim.graph.memory import footprint
from sim.results.accuracy import RecordedCase

LARGE, SMALL = "b8-s512-lp", "b4-s512-lp"


def stretched(timeline, factor):
    """The timeline a machine slower by `factor` would show."""
    start, end = (tuple(t * factor for t in times) for times in (timeline.start_s, timeline.end_s))
    return Timeline(timeline.graph, start, end)


@pytest.fixture(scope="session")
def made_run(tmp_path_factory):
    """A run folder of two cases; measured is 3 % slower, three repeats 1 % apart."""
    folder = tmp_path_factory.mktemp("made") / "latest"
    hardware = find_hardware("kvpr-a100")
    hardware.save(folder / "profile.json")
    for name, batch in ((LARGE, 8), (SMALL, 4)):
        plan = make_plan(find_model("opt-125m"), hardware, Workload(batch, 512, 2))
        timeline = simulate(plan.simulated_graph(), hardware)
        repeats = tuple(stretched(timeline, 1.03 * part) for part in (1.005, 1.0, 0.995))
        plan.save(folder / "cases" / name / "plan.json")
        Recording("measured", hardware, repeats).save(folder / "cases" / name / "measured.json.gz")
        RecordedCase("lp", 0.1).save(folder / "cases" / name)
    write_json(folder / "report.json", "validation", {"cases": []})
    return folder


@pytest.fixture
def run_folder(made_run, tmp_path, monkeypatch):
    """A copy of it as `runs/latest` of the current folder, and no shipped runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dashboard.data.runs.SHIPPED_RUNS", tmp_path / "shipped")
    return Path(shutil.copytree(made_run, tmp_path / "runs" / "latest"))


def plan_again(case):
    return plan_of(case.graph, case.measured.hardware, case.policy)


def test_page_shows_the_answer_and_its_figures(run_folder):
    case = load_case(run_folder / "cases" / SMALL)
    app = show("timeline")
    assert app.selectbox(key="run").options == ["latest"]
    assert app.selectbox(key="case").options == [SMALL, LARGE]
    assert app.header[0].value == comparison_summary(case)
    assert [shown.label for shown in app.metric] == [m.label for m in metrics(case.comparison)]
    _, _, memory = charts(app)
    need, capacity = footprint(case.graph), case.measured.hardware.memory
    assert shares(memory) == pytest.approx(
        [
            (need.device_bytes + capacity.device_reserve_bytes) / capacity.device_bytes,
            need.host_bytes / capacity.host_bytes,
        ]
    )
    (lanes,) = drawn(app)
    assert [end["ms"] for end in lanes["ends"]] == pytest.approx(
        [1e3 * run.makespan_s for run in (case.predicted, case.measured)]
    )
    assert app.dataframe[0].value["task"].tolist() == task_errors(case)["task"].tolist()[:100]
    assert [block.value for block in app.markdown] == [
        f"**{sentence(plan_again(case).bottleneck)}** All 2 cases of this run: median error 2.9 %, "
        "nine of ten within 2.9 %."
    ]
    assert app.code[0].value == compare_command(Path("runs/latest/cases") / SMALL)
    assert len(app.get("download_button")) == 4
    assert not app.error
    assert not app.warning


def test_another_case_gives_another_answer(run_folder):
    app = show("timeline")
    before = app.header[0].value
    app.selectbox(key="case").select(LARGE).run()
    assert not app.exception
    assert app.header[0].value != before
    assert app.header[0].value == comparison_summary(load_case(run_folder / "cases" / LARGE))


def test_another_run_brings_its_own_cases(run_folder):
    other = shutil.copytree(run_folder, run_folder.with_name("other"))
    (other / "cases" / LARGE).rename(other / "cases" / "renamed")
    app = show("timeline", run="latest", case=LARGE)
    app.selectbox(key="run").select("other").run()
    assert not app.exception
    assert app.selectbox(key="case").options == [SMALL, "renamed"]
    assert app.header[0].value == comparison_summary(load_case(other / "cases" / SMALL))


def test_a_link_opens_the_view_it_was_copied_from(run_folder):
    app = show("timeline", case=LARGE, step="1", path="true", layers=["2", "5"])
    assert app.selectbox(key="case").value == LARGE
    assert app.selectbox(key="step").value == "1"
    assert app.toggle(key="path").value is True
    assert app.slider(key="layers").value == (2, 5)
    assert app.header[0].value == comparison_summary(load_case(run_folder / "cases" / LARGE))
    assert drawn(app)[0]["axis"] == "time since the first task of step 1, layers 2 to 5 (ms)"


@pytest.mark.usefixtures("run_folder")
def test_every_step_can_be_shown_alone():
    app = show("timeline")
    assert app.selectbox(key="step").options == ["all", "0", "1"]
    app.selectbox(key="step").select("1").run()
    assert not app.exception
    assert drawn(app)[0]["axis"] == "time since the first task of step 1 (ms)"


def test_new_files_replace_what_was_cached(run_folder):
    app = show("timeline")
    before = app.header[0].value
    path = run_folder / "cases" / SMALL / "measured.json.gz"
    measured = Recording.load(path)
    replace(measured, runs=tuple(stretched(run, 2.0) for run in measured.runs)).save(path)
    app.run()
    assert app.header[0].value != before
    assert "51.5 % too short" in app.header[0].value


def test_without_runs_the_page_says_how_to_make_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dashboard.data.runs.SHIPPED_RUNS", tmp_path / "shipped")
    app = show("timeline")
    assert [block.value for block in app.code] == [
        "make run",
        "kvoverlap validate --out runs/latest",
    ]
    assert not app.error


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("case.json", b"{"),
        ("measured.json.gz", b"not a timeline"),
        ("measured.json.gz", gzip.compress(b'{"kind": "timeline"}', mtime=0)[:-9]),
        ("measured.json.gz", None),
    ],
)
def test_an_unusable_file_is_told_in_one_sentence(run_folder, name, content):
    path = run_folder / "cases" / SMALL / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    app = show("timeline")
    assert len(app.error) == 1
    assert name in app.error[0].value
    assert "\n" not in app.error[0].value
    assert not app.header
    app.selectbox(key="case").select(LARGE).run()
    assert not app.error
    assert app.header[0].value.startswith("Predicted ")


def test_policy_of_a_case_comes_from_what_stands_beside_the_measurement(run_folder):
    folder = run_folder / "cases" / SMALL
    RecordedCase("kvpr", 0.2).save(folder)
    case = load_case(folder)
    assert (case.policy, case.tolerance_frac) == ("kvpr", 0.2)
    (folder / "case.json").unlink()
    assert load_case(folder).policy == "lp", "the plan says it too"
    (folder / "plan.json").unlink()
    assert load_case(folder).policy == "unknown"
    assert show("timeline").header[0].value == comparison_summary(case)


def test_the_plan_of_a_case_is_found_again_with_or_without_its_policy(run_folder):
    folder = run_folder / "cases" / SMALL
    case = load_case(folder)
    plan = make_plan(find_model("opt-125m"), find_hardware("kvpr-a100"), Workload(4, 512, 2))
    assert plan_again(case) == plan
    assert split_of(case.graph) == [list(step.recomputed_tokens) for step in plan.steps]
    nameless = plan_again(replace(case, policy="unknown"))
    assert (nameless.steps, nameless.policy) == (plan.steps, "unknown, as recorded")
    assert plan_again(replace(case, policy="kvpr")).steps == plan.steps, "what ran counts"


def test_a_prediction_is_no_measurement(run_folder):
    case = load_case(run_folder / "cases" / SMALL)
    with pytest.raises(BadInput, match="predicted, not measured"):
        case_of(case.predicted)


def test_a_run_without_cases_or_report_says_so(run_folder):
    (run_folder / "report.json").unlink()
    assert "has no report" in show("timeline").warning[0].value
    (run_folder / "recording.json").touch()
    assert not show("timeline").warning, "a shipped recording is finished"
    shutil.rmtree(run_folder / "cases")
    (run_folder / "cases").mkdir()
    assert "is empty" in show("timeline").error[0].value


def test_own_runs_come_newest_first_and_shipped_ones_last(tmp_path):
    for number, name in enumerate(["own/old", "own/new", "shipped/h100", "own/no-run"]):
        (tmp_path / name / ("" if name == "own/no-run" else "cases")).mkdir(parents=True)
        os.utime(tmp_path / name, (number, number))
    (tmp_path / "own" / "file").write_text("not a folder")
    found = find_runs(tmp_path / "own", tmp_path / "shipped")
    assert [run.label for run in found] == ["new", "old", "h100 (shipped)"]
    assert find_runs(tmp_path / "absent", tmp_path / "absent") == []


def test_cases_come_shape_by_shape_with_the_lp_plan_first(tmp_path):
    names = ["b4-s300-fixed75", "b4-s300-load-all", "b4-s300-lp", "b10-s300-lp", "b4-s300-kvpr"]
    for name in names:
        (tmp_path / "cases" / name).mkdir(parents=True)
    assert Run("any", tmp_path).case_names() == [
        "b10-s300-lp",
        "b4-s300-lp",
        "b4-s300-kvpr",
        "b4-s300-load-all",
        "b4-s300-fixed75",
    ]


def test_a_run_that_cannot_be_listed_is_a_known_failure(tmp_path):
    with pytest.raises(BadFile, match="cannot be read"):
        Run("gone", tmp_path / "gone").case_names()


def test_answer_line_and_figures_in_words(run_folder):
    case = load_case(run_folder / "cases" / LARGE)
    first = case.predicted.makespan_s * 1e3
    assert comparison_summary(case) == (
        f"Predicted {first:,.1f} ms, took {1.03 * first:,.1f} ms: 2.9 % too short "
        f"(repeats differ by {100 * case.measured.spread_frac:.1f} %)"
    )
    once = replace(case, measured=replace(case.measured, runs=case.measured.runs[:1]))
    assert comparison_summary(once).endswith("(one run, so that its spread is unknown)")
    assert "opt-125m (float16), batch 8, prompt 512, 2 steps, policy lp" in describe_case(case)
    assert "measured 3 times" in describe_case(case)


def test_table_of_task_errors_holds_every_task_worst_first(run_folder):
    case = load_case(run_folder / "cases" / LARGE)
    table = task_errors(case)
    assert len(table) == len(case.graph.tasks)
    assert table["error (%)"].to_numpy() == pytest.approx([100 / 1.03 - 100] * len(table))
    assert table["error (ms)"].abs().is_monotonic_decreasing
    assert table["task"][0] == case.comparison.worst_tasks[0].task_id


def test_the_command_shown_names_files_that_exist(run_folder):
    folder = run_folder.rename(run_folder.with_name("a name; with spaces")) / "cases" / LARGE
    first, second = map(shlex.split, compare_command(folder).splitlines())
    assert first[:2] == ["kvoverlap", "simulate"]
    assert second[:2] == ["kvoverlap", "compare"]
    assert Path(first[2]).is_file()
    assert Path(second[3]).is_file()
    assert first[-1] == second[2]
    (folder / "plan.json").unlink()
    (only,) = map(shlex.split, compare_command(folder).splitlines())
    assert only[:3] == ["kvoverlap", "accuracy", "--recordings"]
    assert (Path(only[3]) / "cases").is_dir()


def test_traces_for_download_hold_every_task(run_folder):
    case = load_case(run_folder / "cases" / SMALL)
    document = json.loads(gzip.decompress(trace_bytes(case.measured.typical, "measured")))
    names = {event["args"].get("task_id") for event in document["traceEvents"]} - {None}
    assert names == {task.id for task in case.measured.graph.tasks}


def test_joint_trace_keeps_the_runs_in_processes_of_their_own(run_folder):
    case = load_case(run_folder / "cases" / SMALL)
    payload = joint_trace(case.predicted.typical, case.measured.typical)
    events = json.loads(gzip.decompress(payload))["traceEvents"]
    tasks = [event for event in events if "task_id" in event["args"]]
    assert len(tasks) == 2 * len(case.graph.tasks)
    starts = {pid: [e["ts"] for e in tasks if e["pid"] == pid] for pid in (0, MEASURED_PID_SHIFT)}
    assert starts[0] == pytest.approx([1e6 * t for t in case.predicted.typical.start_s])
    assert starts[MEASURED_PID_SHIFT] == pytest.approx(
        [1e6 * t for t in case.measured.typical.start_s]
    )


def test_stamp_of_a_case_follows_its_files(run_folder):
    folder = run_folder / "cases" / SMALL
    before = case_stamp(folder)
    (folder / "plan.json").unlink()
    assert case_stamp(folder) != before
    (folder / "measured.json.gz").unlink()
    with pytest.raises(BadFile, match=r"measured\.json\.gz does not exist"):
        load_case(folder)
