"""The first page: its answer is that of `kvoverlap advise`, its links and files say the same."""

import json
import shlex
from urllib.parse import parse_qs

import pytest
from apptest import charts, shares, show
from lane_bars import drawn

from dashboard.data.uploads import read_upload
from dashboard.text.machine import machine_card
from kvoverlap.cli.main import main
from planner.advice import advise
from sim import Workload, find_hardware, find_model
from sim.catalog import DATA
from sim.graph.memory import footprint


@pytest.fixture(autouse=True)
def nothing_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def command_of(app):
    return app.code[0].value


SETTINGS = [
    {"model": "opt-125m", "hardware": "kvpr-a100", "batch": "96", "prompt": "1,024"},
    {"model": "opt-1.3b", "hardware": "dgx-spark", "prompt": "256", "slo_ms": "20"},
    {"model": "opt-125m", "hardware": "rtx-4090+pcie4-x16", "kv_bits": "8 bits", "slo_ms": "0.3"},
    {"model": "gpt-oss-120b", "hardware": "rtx-4090+pcie4-x16"},
]


@pytest.mark.parametrize("query", SETTINGS, ids=lambda query: "-".join(query.values()))
def test_the_page_says_what_its_command_says(query, capsys):
    app = show("advise", **query)
    if not app.header:
        words = ["--batch", "32", "--prompt", "1024"]
        for key in ("model", "hardware"):
            words += [f"--{key}", query[key]]
        assert main(["advise", *words]) == 2
        said = " ".join(capsys.readouterr().err.split())
        reason, _, gpus = app.error[0].value.replace("\\", "").partition(" (")
        assert reason in said
        assert gpus == "4 GPUs hold them)."
        return
    assert main([*shlex.split(command_of(app))[1:], "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert app.header[0].value == said["headline"]
    if "slo_ms" in query:
        met = "meets" if said["slo"]["met"] else "misses"
        assert any(f" {met} the limit of " in block.value for block in app.markdown)


def test_memory_lanes_and_policies_follow_the_plan_that_is_shown():
    query = {"model": "opt-125m", "hardware": "kvpr-a100", "batch": "256", "prompt": "2,000"}
    job = Workload(256, 2000, 1)
    found = advise(find_model("opt-125m"), find_hardware("kvpr-a100"), job, DATA)
    for shown, plan in (("", found.resident), ("All of the cache is in host memory", found.plan)):
        app = show("advise", **query, **({"shown": shown} if shown else {}))
        (memory, policies), (lanes,) = charts(app), drawn(app)
        need, capacity = footprint(plan.simulated_graph()), plan.hardware.memory
        device_bytes = need.device_bytes + capacity.device_reserve_bytes
        assert shares(memory) == pytest.approx(
            [device_bytes / capacity.device_bytes, need.host_bytes / capacity.host_bytes]
        )
        assert lanes["ends"][0]["ms"] == pytest.approx(plan.makespan_s * 1e3)
        times = found.step_s_by_policy.values()
        assert policies["data"][0]["x"] == pytest.approx(sorted(1e3 * s for s in times))


def test_every_link_to_begin_with_names_values_that_are_on_offer():
    app = show("advise", model="opt-125m")
    links = [link.proto for link in app.get("page_link")]
    presets = [parse_qs(link.query_string) for link in links if link.query_string]
    assert len(presets) == 4
    for query in presets:
        page = app if "batch" in query else show("restore", model="opt-125m", tier=query["tier"][0])
        for key, (value,) in query.items():
            menus = [one for one in (*page.selectbox, *page.select_slider) if one.key == key]
            assert value in menus[0].options, key


def test_an_uploaded_config_is_a_model_of_the_menu():
    payload = (DATA / "models" / "qwen3-0.6b.json").read_bytes()
    upload = read_upload("my-model.json", payload)
    assert upload.kind == "model config"
    assert upload.summary.startswith("28 layers, 0.6 billion parameters")
    app = show("advise", upload)
    assert app.header[0].value.startswith("Keep the cache in GPU memory: ")
    assert "--model my-model.json" in command_of(app)


@pytest.mark.parametrize("runtime", ["vllm", "llama.cpp"])
def test_a_runtime_is_compared_as_its_command_does(runtime, capsys):
    app = show("advise", model="llama-3.1-8b", prompt="4,096", batch="4", runtime=runtime)
    command = app.code[-1].value
    assert main([*shlex.split(command)[1:], "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["runtime"]
    assert said["runtime"] == runtime
    assert said["sentence"] in "".join(one.value for one in app.markdown).replace("\\", "")


@pytest.mark.parametrize(
    ("machine", "lines"),
    [
        ("h100-sxm+pcie5-x16", ("**GPU memory:** 80 GiB, ", "**Measured:** operators, by ")),
        ("kvpr-a100", ("**Link:** 32 GB/s", "**Measured:** no\\: datasheets and papers")),
        ("dgx-spark", ("**Link:** none: CPU and GPU share one memory",)),
    ],
)
def test_the_card_of_a_machine_has_its_rates_and_its_source(machine, lines):
    card = machine_card(find_hardware(machine))
    for line in lines:
        assert line in card


def test_a_card_sets_the_menu_of_machines_and_the_link():
    app = show("advise", model="opt-125m", batch="4", prompt="256")
    assert not [one for one in app.button if (one.key or "").startswith("card ")], "until asked for"
    app.button(key="machine_cards").click().run()
    cards = [one.key for one in app.button if (one.key or "").startswith("card ")]
    assert len(cards) == len(app.selectbox(key="hardware").options)
    shown = " ".join(one.value for one in app.caption)
    assert all(one in shown for one in ("TFLOP/s", "GB/s", "GiB", "**Link:**", "**Source:**"))
    app.button(key="card rtx-4090+pcie4-x16").click().run()
    assert app.selectbox(key="hardware").value == "rtx-4090+pcie4-x16"
    assert app.query_params["hardware"] == "rtx-4090+pcie4-x16"
    assert "--hardware rtx-4090+pcie4-x16" in app.code[-1].value
