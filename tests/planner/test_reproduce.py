"""Published restore measurements: how far off the prediction is, and the verb that says so."""

from __future__ import annotations

import csv
import json

import pytest

from planner import Job, PlanOptions, make_plan
from planner.restore import read_cases, reproduce_case
from sim.catalog import DATA, find_hardware, find_model
from sim.graph.jobs import RestoreRequest

TABLE = DATA / "published" / "cake_table3_a100.csv"
HEADER = "source,hardware,model,prompt_tokens,chunk_tokens,gpu_share,link_gbps,kv_bits"


def table(tmp_path, *rows: str):
    path = tmp_path / "cases.csv"
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path


@pytest.mark.parametrize("model", ["longalpaca-7b", "longalpaca-13b", "llama-3.1-8b"])
@pytest.mark.parametrize("hardware", ["a100-80g", "2xa100-80g", "h100"])
@pytest.mark.parametrize(("tokens", "bits"), [(4096, 16), (32768, 3)])
def test_other_lengths_models_and_precisions_run(tmp_path, hardware, model, tokens, bits):
    (case,) = read_cases(table(tmp_path, f"x,{hardware},{model},{tokens},512,0.5,32,{bits}"))
    result = reproduce_case(case)
    assert min(result.speedups.values()) > 0.5
    assert result.two_ended_s < result.compute_only_s
    assert result.errors == {}


def test_two_ends_lose_where_one_step_takes_longer_than_the_load(tmp_path):
    (case,) = read_cases(table(tmp_path, "x,h100,llama-3.1-70b-fp8,16384,512,0.125,100,8"))
    assert reproduce_case(case).speedups["speedup_vs_load"] < 1.0


def test_the_verb_prints_errors_and_writes_the_rows(call, tmp_path):
    out = tmp_path / "out.csv"
    status, stdout, _ = call("reproduce", TABLE, "--json", "-o", out)
    answer = json.loads(stdout)
    assert status == 0
    assert answer["cases"] == len(answer["rows"]) == 30
    assert set(answer["errors"]) == {"speedup_vs_load", "speedup_vs_compute"}
    row = answer["rows"][0]
    error = row["speedup_vs_load"] / row["reported_speedup_vs_load"] - 1
    assert row["error_speedup_vs_load_frac"] == pytest.approx(error)
    with out.open() as file:
        written = list(csv.DictReader(file))
    assert float(written[0]["speedup_vs_load"]) == pytest.approx(row["speedup_vs_load"])


def test_either_engine_gives_the_same_errors(call, tmp_path):
    few = tmp_path / "few.csv"
    few.write_text("".join(TABLE.read_text().splitlines(keepends=True)[:4]))
    fast = json.loads(call("reproduce", few, "--engine", "fast", "--json")[1])
    simpy = json.loads(call("reproduce", few, "--engine", "simpy", "--json")[1])
    for name, errors in simpy["errors"].items():
        assert fast["errors"][name] == pytest.approx(errors, rel=1e-6)
    assert "mean |error|" in call("reproduce", few)[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        (HEADER + "\n", "has no rows"),
        ("hardware,model\na,b\n", "lacks column 'source'"),
        (HEADER + ",extra\nx,h100,llama-3.1-8b,1,512,1,1,16,1\n", "unknown column 'extra'"),
        (HEADER + "\nx,h100,llama-3.1-8b,1K,512,1,1,16\n", "line 2: prompt_tokens"),
        (HEADER + "\nx,h100,llama-3.1-8b,1024,512,2,1,16\n", "line 2: gpu_share"),
        (HEADER + "\nx,h10,llama-3.1-8b,1024,512,1,1,16\n", "hardware 'h10' is unknown"),
    ],
)
def test_a_wrong_table_is_refused_in_one_sentence(call, tmp_path, text, message):
    (tmp_path / "cases.csv").write_text(text)
    status, _, stderr = call("reproduce", tmp_path / "cases.csv")
    assert status == 2
    assert message in " ".join(stderr.split())


def test_a_plan_says_how_long_a_machine_looks_for_the_prefix():
    """Cake's machines need 100 ms; a composed machine has no such time."""
    model, job = find_model("longalpaca-7b"), RestoreRequest(prompt_tokens=1024, cached_tokens=1000)
    notes = {
        name: make_plan(Job(model, find_hardware(name), job), PlanOptions(policy="load-only")).notes
        for name in ("h100", "h100-sxm+pcie5-x16")
    }
    assert notes == {
        "h100": ["Loads begin after 100.0 ms on h100, when the cached prefix is found (fitted)."],
        "h100-sxm+pcie5-x16": [],
    }
