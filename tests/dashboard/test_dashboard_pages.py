"""Every page but Timeline, as a visitor without a browser sees it."""

import io
import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from apptest import charts, show
from browser import make_run
from builders import make_plan
from lane_bars import drawn

from dashboard.data.exports import csv_bytes, parquet_bytes, saved_bytes
from dashboard.questions.decode import Changes
from kvoverlap.cli.main import main
from sim import HardwareProfile, Workload, find_hardware, find_model
from sim.graph.memory import footprint
from sim.machine.curves import Curve
from sim.machine.provenance import Samples
from sim.units import ms

PAGES = (
    "advise",
    "plan",
    "what_if",
    "restore",
    "traffic",
    "accuracy",
    "machines",
    "your_machine",
)


@pytest.fixture(scope="module")
def made_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    make_run(folder / "runs" / "here", [Workload(4, 256, 2)])
    return folder


@pytest.fixture
def runs(made_runs, monkeypatch):
    """Run folders of the current folder, and nothing shipped."""
    monkeypatch.chdir(made_runs)
    monkeypatch.setattr("dashboard.data.runs.SHIPPED_RUNS", made_runs / "shipped")
    return made_runs / "runs"


def told(app):
    """All text of a page without the marks that make Markdown inert."""
    return " ".join(block.value for block in app.markdown).replace("\\", "")


@pytest.mark.parametrize("page", PAGES)
def test_page_opens_where_nothing_was_measured(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dashboard.data.runs.SHIPPED_RUNS", tmp_path / "shipped")
    app = show(page)
    assert not app.error
    if page == "accuracy":
        assert "make run" in [block.value for block in app.code]


@pytest.mark.parametrize("page", ["timeline", *PAGES])
def test_page_opens_on_what_is_shipped(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    app = show(page)
    assert app.header
    assert not app.error
    assert not app.warning


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("page", "machine"),
    [
        *((page, "dgx-spark") for page in ("plan", "what_if", "restore", "machines")),
        ("what_if", "rtx-4090+pcie4-x16"),
        ("machines", "rtx-4090+pcie4-x16"),
    ],
)
def test_page_shows_machines_from_data_sheets(page, machine):
    name = "machine" if page == "machines" else "hardware"
    app = show(page, model="opt-1.3b", prompt="512", **{name: machine})
    assert not app.error
    assert not app.warning
    if machine == "dgx-spark" and page != "machines":
        texts = [block.value for block in (*app.header, *app.markdown)]
        assert any("there is no link to wait for" in text for text in texts)


@pytest.fixture(scope="module")
def opt_13b():
    return make_plan(find_model("opt-13b"), find_hardware("kvpr-a100"), Workload(32, 1024, 1))


@pytest.mark.usefixtures("runs")
def test_plan_page_shows_the_plan_that_the_planner_makes(opt_13b):
    app = show("plan", keep="false")
    assert ms(opt_13b.makespan_s) in app.header[0].value
    policies, memory, worth, layers, curve = charts(app)
    need, capacity = footprint(opt_13b.simulated_graph()), opt_13b.hardware.memory
    totals = [sum(shares) for shares in zip(*(bar["x"] for bar in memory["data"]), strict=True)]
    device_bytes = need.device_bytes + capacity.device_reserve_bytes
    assert totals == pytest.approx(
        [device_bytes / capacity.device_bytes, need.host_bytes / capacity.host_bytes]
    )
    assert [row["lane"] for row in drawn(app)[0]["rows"]] == ["compute", "h2d", "d2h"]
    assert policies["data"][0]["x"] == pytest.approx(
        sorted(1e3 * s for s in opt_13b.baselines.values())
    )
    assert worth["data"][1]["x"] == pytest.approx(
        [100 * one.saved_frac for one in opt_13b.sensitivities]
    )
    assert layers["data"][0]["y"] == list(opt_13b.steps[0].recomputed_tokens)
    assert curve["layout"]["yaxis"]["title"]["text"] == "predicted makespan (ms)"
    assert opt_13b.bottleneck[1:] in told(app)


@pytest.mark.usefixtures("runs")
def test_plan_page_keeps_what_fits(opt_13b):
    app = show("plan", kv_bits="8 bits")
    kept = make_plan(opt_13b.model, opt_13b.hardware, Workload(32, 1024, 1, kv_bits=8), keep=True)
    assert ms(kept.makespan_s) in app.header[0].value
    assert any("KV cache in 8 bits" in caption.value for caption in app.caption)
    assert any("In GPU memory stay" in caption.value for caption in app.caption)
    *_, worth, layers, _ = charts(app)
    assert len(worth["data"][0]["x"]) == 5, "memory is worth something too"
    resident = next(bars for bars in layers["data"] if bars["name"] == "resident")
    assert resident["y"] == list(kept.steps[0].resident_tokens)


@pytest.mark.usefixtures("runs")
def test_a_value_of_a_link_that_is_not_on_offer_is_named_until_it_is_replaced():
    app = show("plan", model="opt-125m", hardware="nope<b>", batch="333", prompt="256")
    machine, batch = [warning.value for warning in app.warning]
    assert machine == (
        "This link asks for Machine nope\\<b\\>, which is not on offer; showing kvpr-a100."
    )
    assert "333, which is not on offer; showing 32." in batch
    app.run()
    assert len(app.warning) == 2
    app.select_slider(key="batch").set_value(8).run()
    assert [warning.value for warning in app.warning] == [machine]


@pytest.mark.usefixtures("runs")
def test_split_slider_simulates_the_split_it_is_set_to():
    app = show("plan", keep="false", tokens="671")
    expected = make_plan(
        find_model("opt-13b"), find_hardware("kvpr-a100"), Workload(32, 1024, 1), "fixed:671"
    )
    told = next(block.value for block in app.markdown if "671 tokens" in block.value)
    assert f"**671 tokens: {ms(expected.makespan_s)}**" in told
    app.slider(key="tokens").set_value(0).run()
    assert any(block.value.startswith("**0 tokens:") for block in app.markdown)
    assert not app.exception


@pytest.mark.usefixtures("runs")
def test_split_slider_follows_a_shorter_prompt():
    app = show("plan", tokens="1000")
    app.select_slider(key="prompt").set_value(256).run()
    assert not app.exception
    assert app.slider(key="tokens").max == 256


@pytest.mark.usefixtures("runs")
def test_plan_of_a_measured_case():
    app = show("plan", of="a measured case", run="here", case="b4-s256-load-all")
    assert app.header[0].value.startswith("Policy load-all: ")
    ways = charts(app)[3]
    assert ways["data"][0]["z"] == [[0.0] * 12] * 2, "every layer of both steps loads all"
    assert any("policy load-all" in caption.value for caption in app.caption)


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ({"model": "opt-30b"}, "does not fit on one GPU"),
        ({"prompt": "8,192"}, "must be at most the 2048 positions of"),
    ],
)
@pytest.mark.parametrize("page", ["plan", "what_if"])
def test_what_cannot_be_planned_is_told_in_the_planners_words(page, query, sentence):
    app = show(page, **query)
    assert len(app.error) == 1
    assert sentence in app.error[0].value


def run_command(command, capsys):
    """What the shown command answers; every line continues the one command."""
    words = shlex.split(command)
    assert words[0] == "kvoverlap"
    assert main([*words[1:], "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    "query",
    [
        {},
        {"link": "64 GB/s", "flops": "624 TFLOP/s", "batch": "16", "model": "opt-125m"},
        {"hbm": "3110 GB/s", "gen": "2", "memory": "80 GiB", "model": "opt-125m"},
        {"gpus": "4", "hardware": "kvpr-a100-4gpu", "model": "opt-125m", "prompt": "256"},
        {"schedule": "column", "n_batches": "2", "model": "opt-125m"},
        {"hardware": "profile of run here", "model": "opt-125m", "prompt": "300"},
        {"keep": "true", "memory": "40 GiB"},
        {"kv_bits": "4 bits", "model": "opt-125m"},
        {"schedule": "auto", "n_batches": "4", "model": "opt-125m"},
        {"hardware": "h100-sxm+pcie5-x16", "link_of_h100-sxm": "nvlink-c2c", "model": "opt-125m"},
    ],
)
def test_the_command_shown_gives_the_answer_shown(query, capsys):
    app = show("what_if", **query)
    answer = run_command(app.code[0].value, capsys)
    assert app.header[0].value.startswith(ms(answer["makespan_s"]))
    assert [card.value for card in app.metric] == [
        ms(answer["baselines"][card.label]) for card in app.metric
    ]
    if answer["gpus"] == 1:
        assert answer["bottleneck"][1:] in told(app)


@pytest.mark.usefixtures("runs")
def test_changes_without_an_option_come_as_a_profile_for_the_command(capsys):
    sliders = {"both_ways": "0.5", "memory": "80 GiB", "gpus": "2", "link": "16 GB/s"}
    app = show("what_if", model="opt-1.3b", **sliders)
    assert "what-if.json" in app.code[0].value
    assert "--set" not in app.code[0].value
    changes = Changes(link=0.5, both_ways=0.5, device_gib=80, gpus=2)
    changed = changes.apply(find_hardware("kvpr-a100"))
    assert changed.uplinks[0].h2d_bytes_per_s == 16e9, "as fast as the changed link"
    Path("what-if.json").write_bytes(saved_bytes(changed))
    answer = run_command(app.code[0].value, capsys)
    assert app.header[0].value.startswith(ms(answer["makespan_s"]))
    assert HardwareProfile.load("what-if.json") == changed
    assert "--gpus 2" in app.code[0].value


@pytest.mark.usefixtures("runs")
def test_a_moved_slider_answers_as_the_link_to_that_view_does():
    app = show("what_if", model="opt-125m")
    before = app.header[0].value
    app.select_slider(key="link").set_value(2.0).run()
    assert not app.exception
    assert app.header[0].value != before
    linked = show("what_if", model="opt-125m", link="64 GB/s")
    assert app.header[0].value == linked.header[0].value


@pytest.mark.usefixtures("runs")
def test_crossover_holds_the_lp_below_both_extremes():
    app = show("what_if", view="Crossover", model="opt-125m", batch="4", prompt="256")
    _memory, figure = charts(app)
    curves = {trace["name"]: trace["y"] for trace in figure["data"]}
    for lp, load, recompute in zip(
        curves["lp"], curves["load-all"], curves["recompute-all"], strict=True
    ):
        assert lp <= min(load, recompute) * (1 + 1e-9)
    assert any(name.startswith("load-all meets recompute-all") for name in curves)
    table = app.dataframe[0].value
    assert len(table) == 10
    assert {"link to the device (GB/s)", "lp_s", "in_range", "bottleneck"} <= set(table.columns)


@pytest.mark.usefixtures("runs")
def test_map_of_two_inputs_leaves_out_what_does_not_fit():
    app = show(
        "what_if",
        view="Map of two inputs",
        across="link",
        up="prompt",
        model="opt-125m",
    )
    _memory, figure = charts(app)
    assert figure["layout"]["xaxis"]["title"]["text"] == "link to the device (GB/s)"
    assert figure["layout"]["yaxis"]["ticktext"] == ["128", "256", "512", "1,024"]
    assert len(app.dataframe[0].value) == 7 * 4


@pytest.mark.usefixtures("runs")
def test_accuracy_page_assesses_every_case():
    app = show("accuracy")
    assert app.header[0].value.startswith("Median error ")
    cards = {card.label: card.value for card in app.metric}
    assert cards["Within tolerance"] == "2 of 2"
    assert app.dataframe[0].value["case"].tolist() == ["here/b4-s256-load-all", "here/b4-s256-lp"]
    assert app.dataframe[1].value["device"].tolist() == ["made for tests"]
    assert app.code[-1].value == "kvoverlap accuracy --recordings runs/here"
    assert len(charts(app)) == 2


def test_accuracy_page_names_cases_that_cannot_be_read(made_runs, tmp_path, monkeypatch):
    make_run(tmp_path / "runs" / "broken", [Workload(2, 64, 1)])
    (tmp_path / "runs" / "broken" / "cases" / "b2-s64-lp" / "case.json").unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dashboard.data.runs.SHIPPED_RUNS", made_runs / "shipped")
    app = show("accuracy")
    assert "case.json does not exist" in app.warning[0].value
    assert len(app.dataframe[0].value) == 1


@pytest.mark.usefixtures("runs")
def test_hardware_page_shows_residuals_of_the_run_and_compares():
    app = show("machines", against="kvpr-a100")
    assert app.selectbox(key="machine").value == "profile of run here"
    machines = app.dataframe[0].value.set_index("machine")
    assert machines.loc["profile of run here", "measured"] == "no: datasheets and papers"
    assert machines.loc["cpu-xeon-opt-125m", "measured"] == "with kvoverlap"
    assert machines.loc["kvpr-a100", ["TFLOP/s", "link GB/s"]].tolist() == [312, 32]
    assert machines["link GB/s"].isna()["dgx-spark"], "it has no link"
    figures = app.dataframe[1].value.set_index("figure")
    assert figures.loc["link, h2d", "ratio"] == 1.0
    rates, residuals = charts(app)
    assert residuals["layout"]["yaxis"]["title"]["text"] == "predicted / measured - 1 (%)"
    assert [trace["name"] for trace in rates["data"]] == [
        "49 tasks of the run",
        "profile of run here, datasheet, one rate",
        "kvpr-a100, datasheet, one rate",
    ]
    assert set(app.dataframe[2].value["operation"]) >= {"load_kv", "mlp", "head"}


@pytest.mark.usefixtures("runs")
def test_a_machine_without_a_run_has_no_residuals():
    app = show("machines", machine="kvpr-a100")
    assert len(charts(app)) == 1
    told = [caption.value for caption in app.caption]
    assert any("no residuals" in caption for caption in told)
    assert "There are no samples of this work in kvpr-a100: its spread is unknown." in told


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("work", "points"),
    [
        ("products, [rows, 8192] x [8192, 8192]", 30),
        ("products in 8 bits, [rows, 8192] x [8192, 8192]", 30),
        ("decode attention, 256 KV heads of 128", 15),
        ("prefill attention, 32 heads of 128, 1 to a KV head", 16),
    ],
)
def test_hardware_page_draws_published_timings_and_how_well_they_predict(work, points):
    chosen = {"machine": "h100-sxm+pcie5-x16", "against": "h100", "of_work": work}
    app = show("machines", **chosen)
    (rates,) = charts(app)
    assert [len(trace["x"]) for trace in rates["data"] if trace["mode"] == "markers"] == [points]
    assert rates["data"][0]["name"] == "h100-sxm+pcie5-x16, measured"
    checks = app.dataframe[1].value.set_index("table")
    assert checks.loc["gemm", "median |error| (%)"] < 5
    assert any("aiconfigurator-core" in caption.value for caption in app.caption)


@pytest.fixture
def sampled_run(made_runs, tmp_path, monkeypatch):
    """A run whose profile keeps three samples of one copy."""
    hardware = find_hardware("kvpr-a100")
    curve = Curve((1e6, 1e7), (1e-3, 8e-3))
    link = replace(hardware.links.h2d, source="measured", curve=curve)
    samples = (Samples(("link", "h2d", 10**7), (6e-3, 8e-3, 9e-3)),)
    hardware = replace(hardware, links=replace(hardware.links, h2d=link), samples=samples)
    shutil.copytree(made_runs / "runs" / "here", tmp_path / "runs" / "sampled")
    hardware.save(tmp_path / "runs" / "sampled" / "profile.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dashboard.data.runs.SHIPPED_RUNS", tmp_path / "shipped")
    return "profile of run sampled"


def test_samples_of_a_profile_lie_under_its_curve_and_their_spread_beside_another(sampled_run):
    app = show("machines", machine=sampled_run, against="kvpr-a100")
    rates, residuals, of_tasks = charts(app)
    assert [trace["name"] for trace in rates["data"][1:3]] == [
        f"{sampled_run}, 3 samples",
        f"{sampled_run}, measured",
    ]
    assert of_tasks["layout"]["yaxis"]["title"]["text"] == "predicted / measured - 1 (%)"
    assert residuals["data"][1]["y"] == pytest.approx([-25, 0, 12.5])
    (spread,) = [one.value for one in app.dataframe if "widest at" in one.value]
    assert spread[["machine", "samples", "widest at"]].values.tolist() == [
        [sampled_run, 3, "10,000,000 bytes"]
    ]
    told = [caption.value for caption in app.caption]
    assert "There are no samples of this work in kvpr-a100: its spread is unknown." in told


@pytest.mark.usefixtures("runs")
def test_gpus_behind_one_switch_share_its_rate_and_the_page_says_so():
    app = show("what_if", gpus="2", model="opt-125m", batch="64", link="16 GB/s")
    assert any("shared uplink is the bottleneck" in block.value for block in app.markdown)
    alone = show("what_if", model="opt-125m", batch="64", link="8 GB/s")
    times = [float(page.metric[2].value.split()[0]) for page in (app, alone)]
    assert times[0] == pytest.approx(times[1], rel=0.02), "half of the rate each"


def test_tables_for_download_read_back_as_they_were():
    table = pd.DataFrame({"lp_s": [0.25, 1e-9], "in_range": [True, False], "model": ["a", "b"]})
    pd.testing.assert_frame_equal(pd.read_csv(io.BytesIO(csv_bytes(table))), table)
    pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(parquet_bytes(table))), table)


@pytest.mark.usefixtures("runs")
def test_the_plan_page_asks_how_many_gpus_share_the_model(capsys):
    app = show("plan", tp="2", hardware="h100-sxm+pcie5-x16", model="opt-6.7b")
    assert "--tp 2" in app.code[0].value
    answer = run_command(app.code[0].value, capsys)
    assert answer["gpus"] == 2
    assert ms(answer["makespan_s"]) in app.header[0].value
