"""The Traffic page as a visitor without a browser sees it."""

import gzip
import json
import shlex
from pathlib import Path

import pytest
from apptest import charts, shares, show

from dashboard.controls.traffic import EXAMPLES, FIRST_MACHINE, FIRST_POLICIES
from dashboard.data.uploads import read_upload
from kvoverlap.cli.main import main
from sim.catalog import find_hardware
from sim.errors import BadFile

SMALL = {
    "trace": "generated with your settings",
    "requests": "100",
    "seed": "3",
    "rate": "0.7",
    "sizes": "0,8GB,32GB",
}
CSV = "arrival_s,prompt_tokens,gen_tokens,prefix_group\n" + "".join(
    f"{at},{1500 + 400 * at},40,chat{at % 3}\n" for at in range(20)
)


@pytest.fixture(autouse=True)
def nothing_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dashboard.data.runs.SHIPPED_RUNS", tmp_path / "shipped")


def rows_of(app):
    return app.dataframe[0].value.set_index(["policy", "host cache (GB)"])


def told_by(commands, capsys):
    """JSON answers of the commands that the page shows."""
    answers = []
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "kvoverlap"
        assert main([*words[1:], "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    return answers


QUERIES = [
    {"ttft_ms": "300", "tpot_ms": "40"},
    {"instances": "2", "routing": "prefix-aware", "model": "llama-3.1-8b", "rate": "3"},
    {"tp": "2", "chunk": "2,048", "burstiness": "4", "agents": "50%", "policies": "two-ended"},
]


@pytest.mark.parametrize("query", QUERIES)
def test_the_commands_shown_give_the_numbers_shown(query, capsys):
    app = show("traffic", **{**SMALL, **query})
    assert not app.error
    commands = app.code[-1].value.split("\n")
    made, *told = told_by(commands, capsys)
    assert made["requests"] == 100
    rows = rows_of(app)
    for answer in told:
        assert [run["host_cache_bytes"] for run in answer["runs"]] == [0, 8e9, 32e9]
        for run in answer["runs"]:
            shown = rows.loc[answer["policy"], run["host_cache_bytes"] / 1e9]
            for at in ("p50", "p90", "p99"):
                assert shown[f"TTFT {at} (ms)"] == pytest.approx(1e3 * run["ttft_s"][at])
            assert shown["TPOT p90 (ms)"] == pytest.approx(1e3 * run["tpot_s"]["p90"])
            assert shown["hits (%)"] == pytest.approx(100 * sum(run["hit_rate"].values()))
            assert shown["goodput (%)"] == pytest.approx(100 * run["goodput"]["fraction"])
            assert shown["arrivals over served"] == pytest.approx(run["arrivals_over_served"])
    policies = [answer["policy"] for answer in told]
    assert policies == query.get("policies", ",".join(FIRST_POLICIES)).split(",")
    ttft, hits, memory, service = charts(app)
    assert [one["name"] for one in ttft["data"]] == [*policies, "more does not pay"]
    sizes = [0, 8e9, 32e9]
    assert ttft["data"][-1]["x"] == [sizes.index(answer["enough_bytes"]) for answer in told]
    assert [one["name"] for one in hits["data"]] == policies
    assert {one["name"] for one in service["data"]} <= {"queue", "restore", "prefill", "decode"}
    device, host = shares(memory)
    assert 0.99 < device <= 1, "blocks of K and V fill what is left"
    capacity = find_hardware(FIRST_MACHINE).memory.host_bytes
    assert host in [pytest.approx(answer["enough_bytes"] / capacity) for answer in told]
    labels = service["layout"]["yaxis"]["ticktext"]
    assert labels[0] == "requests"
    assert all(label.startswith(("GPU", "link")) for label in labels[1:])


def test_the_example_names_the_size_that_is_enough():
    app = show("traffic")
    assert "of host cache is enough: p90 of TTFT" in app.header[0].value
    assert app.selectbox(key="trace").options == [*EXAMPLES, SMALL["trace"]]


def test_overload_is_said_first(capsys):
    app = show(
        "traffic", **{**SMALL, "rate": "8", "model": "llama-3.1-8b", "hardware": "l4+pcie4-x16"}
    )
    assert app.header[0].value.startswith("Overload: ")
    assert "Requests arrive faster than they are served in every run" in app.warning[0].value
    commands = app.code[-1].value.split("\n")
    run = told_by(commands[:2], capsys)[1]["runs"][0]
    assert run["overloaded"] is True
    assert f"{run['arrivals_over_served']:.2f}" in app.warning[0].value


def test_an_uploaded_trace_is_shown_with_its_command(capsys):
    payload = CSV + "20,many,40,chat1\n"
    upload = read_upload("mine.csv.gz", gzip.compress(payload.encode()))
    assert upload.kind == "request trace"
    assert upload.summary.startswith("20 requests in 19 s")
    app = show("traffic", upload, sizes="0,4GB", policies="load-only", model="llama-3.1-8b")
    said = " ".join(one.value for one in app.caption).replace("\\", "")
    assert "20 requests (1 bad line left out) in 19 s" in said
    Path("mine.csv.gz").write_bytes(gzip.compress(payload.encode()))
    (answer,) = told_by(app.code[-1].value.split("\n"), capsys)
    shown = rows_of(app)
    for run in answer["runs"]:
        row = shown.loc["load-only", run["host_cache_bytes"] / 1e9]
        assert row["TTFT p90 (ms)"] == pytest.approx(1e3 * run["ttft_s"]["p90"])


def test_a_file_without_a_request_is_refused_with_its_name():
    with pytest.raises(BadFile, match=r"bad.jsonl has no request; 1 bad lines"):
        read_upload("bad.jsonl", b'{"timestamp": "x", "hash_ids": 3}\n')


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ({"sizes": "0,many"}, "sizes(=many) must be a size above 0"),
        ({"sizes": ",".join(f"{at}GB" for at in range(1, 15))}, "12 are the most on this page"),
        ({"model": "llama-3.1-70b"}, "leaves no block for K and V"),
        (
            {"requests": "12,000", "sizes": ",".join(f"{at}GB" for at in range(1, 13))},
            "about 300,000 requests to simulate",
        ),
    ],
)
def test_what_cannot_be_answered_says_why(query, sentence):
    app = show("traffic", **{**SMALL, **query})
    assert sentence in app.error[0].value.replace("\\", "")


def test_values_of_a_link_that_are_not_on_offer_are_named():
    app = show("traffic", **{**SMALL, "trace": "mooncake", "rate": "0.75", "policies": "swap"})
    told = " ".join(one.value for one in app.warning).replace("\\", "")
    assert "Requests mooncake, which is not on offer; showing chat." in told
    assert "Restores of a hit swap, which is not on offer; showing" in told
