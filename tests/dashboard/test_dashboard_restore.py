"""The Restore page as a visitor without a browser sees it."""

import json
import shlex
from pathlib import Path

import pandas as pd
import pytest
from apptest import charts, show
from builders import make_plan
from lane_bars import drawn

from dashboard.controls.traces import (
    describe_trace,
    example_trace,
    read_trace_text,
    trace_csv,
    trace_of_table,
    trace_table,
    trace_text,
)
from dashboard.questions.restore import GIB, POLICIES, RateSweep, RestoreQuestion
from kvoverlap.cli.main import main
from sim import find_hardware, find_model
from sim.errors import BadInput
from sim.graph.jobs import RestoreRequest
from sim.machine.availability import ALWAYS, Availability, Step
from sim.units import ms

SMALL = {"model": "longalpaca-7b", "prompt": "4,096"}
DROP = "0.1:net=0.25;0.4:compute=0.5"


@pytest.fixture(autouse=True)
def nothing_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dashboard.data.runs.SHIPPED_RUNS", tmp_path / "shipped")


def names_of(figure):
    return [trace.get("name", "") for trace in figure["data"]]


def test_page_opens_with_the_answer_of_the_shipped_machine():
    request = RestoreRequest(prompt_tokens=16384, cached_tokens=16383, tier="net")
    question = RestoreQuestion(
        find_model("longalpaca-13b"), find_hardware("a100-80g"), "a100-80g", request, 4 * GIB
    )
    plan = make_plan(question.model, question.machine, request)
    app = show("restore")
    assert f": first token after {ms(plan.ttft_s)}" in app.header[0].value
    assert any("Fastest is joint" in block.value for block in app.markdown)
    assert not app.warning
    memory, layers, ends = charts(app)
    assert names_of(memory) == ["weights", "KV", "reserve"]
    assert set(names_of(layers)) == {"computed", "projected from X", "loaded"}
    assert [row["lane"] for row in drawn(app)[0]["rows"]] == ["compute", "h2d", "net"]
    assert any(name.startswith("the ends meet at token 9,088") for name in names_of(ends))
    table = app.dataframe[0].value
    assert table["policy"].tolist()[0] == "joint"
    assert set(table["policy"]) == set(POLICIES)
    assert table["TTFT (ms)"].min() == pytest.approx(1e3 * plan.ttft_s)


QUERIES = [
    {"policy": "two-ended", "share": "50.0%", "rate": "16 GiB/s"},
    {"cached": "50%", "kv_bits": "8 bits", "policy": "lp", "chunk": "1,024"},
    {"tier": "in host memory", "policy": "layer-wise", "io_chunk": "256"},
    {"tier": "on the machine's SSD", "hardware": "h100", "model": "llama-3.1-8b"},
    {"tier": "behind the machine's network", "kv_bits": "3 bits", "policy": "load-only"},
    {"model": "opt-125m", "hardware": "cpu-xeon-opt-125m", "prompt": "1,024", "policy": "joint"},
    {
        "tp": "2",
        "hardware": "h100-sxm+pcie5-x16",
        "model": "llama-3.1-8b",
        "tier": "in host memory",
    },
    {"view": "Availability", "trace": DROP, "policy": "two-ended"},
    {"view": "Availability", "trace": DROP, "policy": "lp", "foresight": "true"},
]


@pytest.mark.parametrize("query", QUERIES)
def test_the_command_shown_gives_the_answer_shown(query, capsys):
    app = show("restore", **{**SMALL, **query})
    words = shlex.split(app.code[-1].value)
    assert words[0] == "kvoverlap"
    if "--availability" in words:
        trace = trace_of_table(app.dataframe[0].value)
        Path("availability.csv").write_bytes(trace_csv(trace, ("compute", "h2d", "net")))
        assert len(app.get("download_button")) == 5, "plan, trace, table twice, availability"
    assert main([*words[1:], "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert f": first token after {ms(answer['ttft_s'])}" in app.header[0].value
    told = app.dataframe[-1].value.set_index("policy")["TTFT (ms)"]
    for policy, seconds in answer["baselines"].items():
        assert told[policy] == pytest.approx(1e3 * seconds)
    cards = {card.label: card.value for card in app.metric}
    assert cards["Tokens computed"] == f"{answer['computed_tokens']:,}"
    assert cards["Tokens loaded"] == f"{answer['loaded_tokens']:,}"
    if query.get("view") == "Availability":
        shown = " ".join(block.value for block in app.markdown)
        assert ms(answer["adaptation"]["stale_s"]) in shown
        assert ms(answer["adaptation"]["replanned_s"]) in shown


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ({"model": "opt-13b"}, "must be at most the 2048 positions of opt-13b"),
        ({"model": "llama-3.1-70b"}, "weights take 131.4 of 79.0 GiB"),
    ],
)
def test_what_cannot_be_restored_is_told_in_the_planners_words(query, sentence):
    app = show("restore", **query)
    assert len(app.error) == 1
    assert sentence in app.error[0].value
    assert not app.header


def test_a_link_that_asks_for_what_is_not_offered_opens_as_usual():
    odd = {"rate": "7 parsecs", "prompt": "-3", "cached": "250%", "policy": "magic"}
    odd |= {"tier": "on the moon", "share": "", "kv_bits": "17 bits", "view": "nonsense"}
    assert (
        show("restore", **odd).header[0].value
        == show("restore", trace="0.1:net=0.5").header[0].value
    )


@pytest.mark.parametrize(
    ("trace", "sentence"),
    [
        ("half of it", "must be spelt as in"),
        ("0.1:net=x", "must be spelt as in"),
        ("0.5:net=1;0.1:net=0.5", "must be later than"),
        ("0.1:warp=0.5", "'warp' is unknown"),
        ("0.1:net=0", "or nothing ever ends"),
        ("nan:net=1", "must be at least 0 and finite"),
        (";".join(f"{at}:net=0.5" for at in range(40)), "is too long here"),
    ],
)
def test_what_is_no_trace_is_refused_in_one_sentence(trace, sentence):
    with pytest.raises(BadInput, match=sentence):
        read_trace_text(trace)


def test_a_link_with_no_trace_in_it_says_so_and_shows_the_example():
    app = show("restore", view="Availability", trace="half of it", **SMALL)
    assert not app.error
    assert any("must be spelt as in" in one.value for one in app.warning)
    assert app.header
    assert "--availability" in app.code[-1].value


def test_moved_controls_answer_as_the_link_to_that_view_does():
    app = show("restore", **SMALL)
    app.select_slider(key="rate").set_value(16.0).run()
    app.selectbox(key="policy").select("two-ended").run()
    assert not app.exception
    linked = show("restore", **SMALL, rate="16 GiB/s", policy="two-ended")
    assert app.header[0].value == linked.header[0].value
    assert "--tier 16GiB/s" in app.code[-1].value


def test_every_rate_is_planned_and_the_crossings_are_told():
    app = show("restore", **SMALL, view="Against bandwidth", rate="6 GiB/s")
    figure = charts(app)[-1]
    assert set(POLICIES) <= set(names_of(figure))
    assert "set now: 6 GiB/s" in names_of(figure)
    told = " ".join(block.value for block in app.markdown)
    assert "load-only is faster than compute-only above" in told
    points = app.dataframe[0].value
    joint = points.dropna(subset="joint_s")
    assert joint["gib_per_s"].tolist() == [0.5, 1, 2, 4, 6, 8, 16, 32, 64]
    others = joint[[f"{policy}_s" for policy in POLICIES if policy != "joint"]].min(axis=1)
    assert (joint["joint_s"] <= others * 1.01).all()
    at_six = show("restore", **SMALL, rate="6 GiB/s", policy="lp")
    here = points.set_index("gib_per_s").loc[6.0]
    assert f": first token after {ms(here['lp_s'])}" in at_six.header[0].value


def test_a_drop_makes_the_plan_stale_and_claims_do_without_one():
    app = show("restore", view="Availability", trace="0.1:net=0.25", **SMALL)
    told = " ".join(block.value for block in app.markdown)
    assert "From 0.1 s on 25 % of net: " in told
    available, adapting = charts(app)[1:3]
    net = next(trace for trace in available["data"] if trace["name"] == "net")
    assert net["y"] == [100, 25, 25]
    kept, again, claims, foreseen = adapting["data"][0]["x"]
    assert kept > again >= foreseen
    assert kept > claims
    assert app.query_params["trace"] == "0.1:net=0.25"


def test_buttons_fill_in_a_trace_and_take_it_away():
    app = show("restore", view="Availability", **SMALL)
    assert "trace" not in app.query_params, "the example is no part of the link"
    app.button(key="trace compute drops").click().run()
    assert not app.exception
    assert app.query_params["trace"].endswith(":compute=0.25")
    app.button(key="trace Whole machine").click().run()
    assert "whole machine is available" in app.info[0].value
    assert "--availability" not in app.code[-1].value


def request(**changes):
    usual = {"prompt_tokens": 4096, "cached_tokens": 4095, "tier": "net"}
    return RestoreRequest(**{**usual, **changes})


@pytest.mark.parametrize(("tier", "link"), [("dram", None), ("ssd", None), ("net", 2 * GIB)])
def test_a_sweep_goes_through_what_is_set(tier, link):
    """At the rate that is set the swept machine answers as the one that was asked about."""
    hardware = find_hardware("a100-80g")
    asked = RestoreQuestion(
        find_model("longalpaca-7b"), hardware, "a100-80g", request(tier=tier), link
    )
    again = asked.at_rate(asked.bytes_per_s)
    assert again.planner().choice("lp").ttft_s == pytest.approx(asked.planner().choice("lp").ttft_s)
    fast = asked.at_rate(asked.bytes_per_s * 4)
    assert fast.bytes_per_s == pytest.approx(4 * asked.bytes_per_s)
    assert fast.planner().choice("load-only").ttft_s < asked.planner().choice("load-only").ttft_s
    assert RateSweep(asked).here in RateSweep(asked).rates


def test_a_sweep_of_a_long_request_takes_fewer_rates():
    hardware = find_hardware("h100")
    sweeps = [
        RateSweep(RestoreQuestion(find_model("llama-3.1-8b"), hardware, "h100", asked, GIB))
        for asked in (
            request(),
            request(prompt_tokens=131072, cached_tokens=131071, io_chunk_tokens=64),
        )
    ]
    assert [len(sweep.rates) for sweep in sweeps] == [29, 8]


def test_a_trace_reads_back_from_address_table_and_file(tmp_path):
    trace = Availability((Step(0.25, (("net", 0.5),)), Step(1.5, (("compute", 1 / 3),))))
    lanes = ("compute", "h2d", "net")
    assert trace_of_table(trace_table(trace, lanes)) == trace
    assert read_trace_text(trace_text(trace)).at(2.0, "compute") == pytest.approx(1 / 3)
    (tmp_path / "t.csv").write_bytes(trace_csv(trace, lanes))
    loaded = Availability.load(tmp_path / "t.csv")
    for time_s in (0.0, 0.25, 1.0, 1.5):
        for lane in lanes:
            assert loaded.at(time_s, lane) == trace.at(time_s, lane)
    assert read_trace_text("") == ALWAYS
    assert describe_trace(trace) == "from 0.25 s on 50 % of net, from 1.5 s on 33.3333 % of compute"


def test_an_edited_table_may_be_unsorted_and_half_filled_in():
    nan = float("nan")
    table = pd.DataFrame({"start_s": [2.0, nan, 1.0], "net": [nan, 0.5, 0.25]})
    assert trace_of_table(table) == Availability((Step(1.0, (("net", 0.25),)), Step(2.0, ())))
    with pytest.raises(BadInput, match="must be later than"):
        trace_of_table(pd.DataFrame({"start_s": [1.0, 1.0], "net": [0.5, 0.25]}))


def test_the_example_drops_the_lane_within_the_run():
    assert example_trace(1.5658, "net") == Availability((Step(0.39, (("net", 0.25),)),))
    assert example_trace(0.0123, "h2d").steps[0].start_s == 0.0031


def test_unknown_figures_of_a_machine_are_said():
    app = show(
        "restore", model="opt-125m", hardware="kvpr-a100", tier="in host memory", prompt="2,048"
    )
    assert "prefill attention was not measured" in app.warning[0].value
    composed = {"hardware": "h200+pcie5-x16", "model": "llama-3.1-8b", "prompt": "2,048"}
    partly = show("restore", tier="in host memory", **composed)
    assert "the rate of the nearest sample is used" in partly.warning[0].value


def test_a_runtime_is_compared_with_the_best_schedule():
    app = show("restore", model="llama-3.1-8b", prompt="4,096", runtime="vllm")
    text = [block.value for block in app.markdown]
    (found,) = [one for one in text if "first token of a later request" in one]
    assert found.startswith("**vllm")
    table = app.dataframe[-1].value
    assert table["way"].tolist()[0] == "the best schedule on this machine"
    assert {"vllm", "larger blocks"} <= set(table["way"])
    assert table["times as fast"].max() > 1
    assert any("vllm serve meta-llama/Llama-3.1-8B" in one.value for one in app.code)


def test_a_runtime_whose_copies_are_not_known_says_so():
    app = show("restore", **SMALL, runtime="lmcache")
    assert any("no figures of kernel copies" in one.value for one in app.error)
    assert [app.button(key=f"runtimes {at}").label for at in (0, 1)] == [
        "Runtime vllm",
        "No runtime",
    ]
    app.button(key="runtimes 0").click().run()
    assert not app.error
    assert app.selectbox(key="runtime").value == "vllm"
