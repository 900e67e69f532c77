"""Measured restores, and restore plans brought along, on the pages of the dashboard."""

import json
from dataclasses import replace

import pytest
from apptest import charts, show
from browser import make_restore_run, make_run
from lane_bars import drawn

from dashboard.data.runs import case_of, load_case, plan_of
from dashboard.data.uploads import Upload, read_upload
from dashboard.text.comparison import comparison_summary
from planner.restore import RestorePlan
from sim import Recording, Workload
from sim.errors import BadFile, BadInput
from sim.machine.availability import Availability, Step
from sim.units import ms

RESTORED = "s2048-dram-8000MBps"


@pytest.fixture(autouse=True)
def nothing_shipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dashboard.data.runs.SHIPPED_RUNS", tmp_path / "shipped")


def names_of(figure):
    return [trace.get("name", "") for trace in figure["data"]]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return make_restore_run(tmp_path_factory.mktemp("made") / "runs" / "restores")


@pytest.fixture
def runs(measured, monkeypatch):
    """A run of restores as the only one of the current folder."""
    monkeypatch.chdir(measured.parent.parent)
    return measured


def test_without_a_measured_restore_the_page_says_how_to_make_one(tmp_path):
    app = show("restore", of="a measured case")
    assert [block.value for block in app.code] == [
        "kvoverlap validate --scenario restore --out runs/restores"
    ]
    make_run(tmp_path / "runs" / "decodes", [Workload(2, 64, 1)])
    assert "No run to show yet" in show("restore", of="a measured case").header[0].value


def test_a_measured_walk_is_held_against_its_prediction(runs):
    case = load_case(runs / "cases" / f"{RESTORED}-two-ended")
    app = show("restore", of="a measured case", case=f"{RESTORED}-two-ended")
    assert app.header[0].value == comparison_summary(case)
    told = " ".join(block.value for block in app.markdown)
    assert "The ends met at token 1,664, as predicted." in told
    assert "Compute works longest." in told
    assert any("2,000 of 2,048 tokens cached (dram)" in one.value for one in app.caption)
    ends, memory, scatter, errors = charts(app)
    request, model = case.graph.workload, case.graph.model
    capacity = case.measured.hardware.memory
    parts = {bar["name"]: bar["x"] for bar in memory["data"]}
    assert parts["weights"][0] == pytest.approx(model.weight_bytes / capacity.device_bytes)
    assert parts["KV"][1] == pytest.approx(request.kv_bytes(model) / capacity.host_bytes)
    assert {"predicted compute", "predicted loads"} <= set(names_of(ends))
    assert {"two-ended", "lp", "joint"} <= set(names_of(scatter))
    assert len(errors["layout"]["yaxis"]["ticktext"]) == 3
    table = app.dataframe[0].value
    assert table["run"].tolist() == ["predicted", "measured"]
    assert table["TTFT (ms)"].tolist() == pytest.approx(
        [1e3 * case.comparison.predicted_makespan_s, 1e3 * case.comparison.measured_makespan_s]
    )
    assert (table[["computed", "projected", "loaded"]].sum(axis=1) == 2048).all()
    assert "kvoverlap compare predicted.json" in app.code[0].value


@pytest.mark.usefixtures("runs")
def test_a_measured_restore_by_layers_is_shown_lane_by_lane():
    app = show("restore", of="a measured case", case=f"{RESTORED}-joint")
    lanes = [f"{row['lane']} {row['source']}" for row in drawn(app)[0]["rows"]]
    assert lanes == ["compute predicted", "compute measured", "h2d predicted", "h2d measured"]
    told = " ".join(block.value for block in app.markdown)
    assert "All layers of 1,024 cached tokens were computed, as predicted." in told


def test_a_run_under_a_trace_is_predicted_under_it_and_losses_are_told(tmp_path):
    folder = make_restore_run(tmp_path / "runs" / "slow", ["two-ended"])
    case = folder / "cases" / f"{RESTORED}-two-ended"
    plan = RestorePlan.load(case / "plan.json")
    usual = load_case(case)
    trace = Availability((Step(5e-4, (("h2d", 0.25),)),))
    replace(plan, availability=trace).save(case / "plan.json")
    lost = [{"tokens": [1920, 2000], "layers": [0, 1], "why": "checksum differs"}]
    checks = {"recomputed_instead": lost, "compute_shares": [{}]}
    replace(usual.measured, checks=checks).save(case / "measured.json.gz")
    traced = load_case(case)
    assert traced.availability == trace
    assert traced.predicted.makespan_s > usual.predicted.makespan_s
    app = show("restore", of="a measured case")
    assert [block.value for block in app.warning] == [
        "Tokens 1,920 to 2,000 were computed instead of loaded in 2 layers\\: checksum differs"
    ]
    (case / "plan.json").unlink()
    assert "its file does not contain" in show("restore", of="a measured case").warning[1].value


def test_an_unreadable_restore_is_told_in_one_sentence(tmp_path):
    folder = make_restore_run(tmp_path / "runs" / "broken", ["lp"])
    (folder / "cases" / f"{RESTORED}-lp" / "plan.json").write_text("{")
    app = show("restore", of="a measured case")
    assert len(app.error) == 1
    assert "plan.json" in app.error[0].value


@pytest.mark.parametrize("policy", ["two-ended", "lp", "joint"])
@pytest.mark.usefixtures("runs")
def test_other_pages_know_a_restore(policy):
    timeline = show("timeline", case=f"{RESTORED}-{policy}", layers=["2", "5"])
    assert timeline.header[0].value.startswith("Predicted ")
    assert any("works longest" in block.value for block in timeline.markdown)
    assert not timeline.warning
    ops = {kind["name"] for kind in drawn(timeline)[0]["kinds"]}
    assert {"prefill", "load_x" if policy == "joint" else "load_kv"} <= ops


@pytest.mark.usefixtures("runs")
def test_pages_over_many_cases_know_restores():
    accuracy = show("accuracy")
    assert len(accuracy.dataframe[0].value) == 3
    assert "fixed split" not in names_of(charts(accuracy)[0])
    plan = show("plan", of="a measured case")
    assert "No run to show yet" in plan.header[0].value, "there is no decode"
    residuals = show("machines", machine="profile of run restores").dataframe[-1].value
    assert {"prefill", "load_kv"} <= set(residuals["operation"])
    assert residuals["median error (%)"].abs().max() < 5, "tasks done in part do not count"


def test_the_plan_of_a_restore_is_not_asked_of_the_linear_program(runs):
    case = load_case(runs / "cases" / f"{RESTORED}-lp")
    with pytest.raises(BadInput, match="is a restore"):
        plan_of(case.graph, case.measured.hardware, case.policy)


def test_an_uploaded_restore_is_shown(runs):
    measured = Recording.load(runs / "cases" / f"{RESTORED}-two-ended" / "measured.json.gz")
    upload = Upload("mine.json.gz", measured)
    assert upload.summary.startswith("opt-125m, 2,000 of 2,048 tokens cached (dram)")
    app = show("restore", upload, of="a measured case")
    assert app.selectbox(key="run").value == "mine.json.gz (uploaded)"
    assert app.header[0].value == comparison_summary(case_of(measured))


@pytest.mark.parametrize("policy", ["two-ended", "joint"])
def test_an_uploaded_restore_plan_is_shown(runs, policy):
    payload = (runs / "cases" / f"{RESTORED}-{policy}" / "plan.json").read_bytes()
    upload = read_upload("mine.json", payload)
    assert upload.kind == "restore plan"
    assert upload.summary.endswith(f"policy {policy}, on kvpr-a100")
    app = show("restore", upload, of="an uploaded plan")
    assert f": first token after {ms(upload.content.ttft_s)}" in app.header[0].value
    times = charts(app)[-1]["data"][0]["x"]
    assert times == pytest.approx([1e3 * s for s in upload.content.baselines.values()])
    for key, value, sentence in (
        ("graph_sha256", "0" * 64, "it was edited"),
        ("baselines", {}, "compute-only is missing"),
        ("ttft_s", 0.0, "must be above 0"),
    ):
        edited = json.dumps({**json.loads(payload), key: value}).encode()
        with pytest.raises(BadFile, match=sentence):
            read_upload("mine.json", edited)
