"""The verb `restore`: JSON keys, its plan passed on, and wrong input."""

from __future__ import annotations

import json

import pytest

from planner.restore import link_rate
from sim.engine.api import ENGINES
from sim.errors import BadInput

WHAT = {
    "--model": "longalpaca-13b",
    "--hardware": "a100-80g",
    "--prompt": "4K",
    "--tier": "32",
}
ASK = ["restore", *(word for option in WHAT.items() for word in option)]


def test_json_has_the_keys_that_scripts_use(call):
    status, stdout, _ = call(*ASK, "--policy", "two-ended", "--json")
    answer = json.loads(stdout)
    assert status == 0
    assert answer["policy"] == "two-ended"
    assert answer["computed_tokens"] + answer["loaded_tokens"] == 4096
    assert 0 < answer["meeting_token"] < 4096
    assert answer["speedup_vs_load"] == pytest.approx(answer["load_only_s"] / answer["ttft_s"])
    against = answer["compute_only_s"] / answer["ttft_s"]
    assert answer["speedup_vs_compute"] == pytest.approx(against)
    assert set(answer["baselines"]) == {
        "compute-only",
        "load-only",
        "two-ended",
        "lp",
        "layer-wise",
        "joint",
    }
    assert answer["baselines"]["two-ended"] == answer["ttft_s"]


@pytest.mark.parametrize("option", ["--gpu-memory", "--host-memory"])
def test_a_prefix_that_a_smaller_memory_has_no_room_for_is_refused(call, option):
    status, _, stderr = call(*ASK[:-2], option, "3GiB")
    assert (status, "3.0 GiB" in stderr) == (2, True)


def test_auto_is_the_best_of_all_and_says_why(call):
    answer = json.loads(call(*ASK, "--json")[1])
    assert answer["ttft_s"] == min(answer["baselines"].values())
    stdout = call(*ASK)[1]
    assert answer["reason"] in stdout
    assert "first token after" in stdout


def test_simulate_takes_its_plan_and_compare_its_timeline(call, tmp_path):
    plan, predicted, trace = (tmp_path / name for name in ("p.json", "t.json", "t.trace.json"))
    (tmp_path / "drop.csv").write_text("start_s,net\n0.05,0.5\n")
    slow = ("--availability", tmp_path / "drop.csv", "--policy", "two-ended")
    answer = json.loads(call(*ASK, *slow, "-o", plan, "--json")[1])
    assert answer["ttft_s"] > json.loads(call(*ASK, *slow[2:], "--json")[1])["ttft_s"]
    assert answer["adaptation"]["two_ended_s"] == answer["ttft_s"]
    assert "If the trace is unknown" in call(*ASK, *slow)[1]
    status, stdout, _ = call("simulate", plan, "-o", predicted, "--trace", trace, "--json")
    simulated = json.loads(stdout)
    assert status == 0
    assert simulated["makespan_s"] == answer["ttft_s"]
    assert simulated["graph_sha256"] == answer["graph_sha256"]
    assert set(simulated["busy_s"]) == {"compute", "net", "h2d"}
    measured = json.loads(predicted.read_text()) | {"source": "measured"}
    (tmp_path / "measured.json").write_text(json.dumps(measured))
    status, stdout, _ = call("compare", predicted, tmp_path / "measured.json", "--json")
    assert status == 0
    assert json.loads(stdout)["makespan_error_frac"] == 0
    assert {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]} >= {
        "fetch_kv"
    }


def test_a_trace_is_unknown_unless_foresight_is_asked_for(call, tmp_path):
    (tmp_path / "drop.csv").write_text("start_s,net\n0.05,0.2\n")
    slow = ("--availability", tmp_path / "drop.csv", "--policy", "lp")
    unknown, known = (
        json.loads(call(*ASK, *slow, *more, "--json")[1]) for more in ((), ("--foresight",))
    )
    assert unknown["ttft_s"] == unknown["unforeseen_s"] == unknown["adaptation"]["stale_s"]
    assert known["ttft_s"] == known["foreseen_s"] == unknown["foreseen_s"]
    assert known["foreseen_s"] < known["unforeseen_s"] == unknown["unforeseen_s"]
    assert "with the trace known in advance (--foresight)" in call(*ASK, *slow)[1]
    status, _, stderr = call(*ASK, "--foresight")
    assert (status, "--availability" in stderr) == (2, True)


def test_other_requests_are_served_first_and_reported(call, tmp_path):
    path = tmp_path / "others.csv"
    path.write_text("arrival_s,prompt_tokens,gen_tokens\n0,300,20\n0.1,1000,1\n")
    status, stdout, _ = call(*ASK, "--policy", "two-ended", "--others", path, "--json")
    answer = json.loads(stdout)
    served = answer["served"]
    assert status == 0
    assert served["restore_ttft_s"] > answer["ttft_s"]
    for beside, alone in zip(served["others"], served["others_without_restore"], strict=True):
        assert beside["ttft_s"] >= alone["ttft_s"]
    assert served["others"][1]["tpot_s"] is None
    assert "Among other requests" in call(*ASK, "--others", path)[1]
    status, _, stderr = call(*ASK, "--others", path, "--gpu-share", "0.5")
    assert status == 2
    assert "must be 1 with --others" in stderr


def test_either_engine_plans_and_simulates_the_same(call, tmp_path):
    (tmp_path / "drop.csv").write_text("start_s,net\n0.05,0.5\n")
    slow = ("--availability", tmp_path / "drop.csv", "-o", tmp_path / "plan.json", "--json")
    short = [word.replace("4K", "1K") for word in ASK]
    simpy, fast = (json.loads(call(*short, "--engine", one, *slow)[1]) for one in ENGINES)
    assert simpy["adaptation"]["changes"]
    assert fast["baselines"] == pytest.approx(simpy["baselines"], rel=1e-9)
    assert fast["graph_sha256"] == simpy["graph_sha256"]
    assert fast["adaptation"]["replanned_s"] == pytest.approx(simpy["adaptation"]["replanned_s"])
    answer = json.loads(call("simulate", tmp_path / "plan.json", "--engine", "fast", "--json")[1])
    assert answer["makespan_s"] == pytest.approx(simpy["ttft_s"], rel=1e-9)


def test_a_long_prompt_under_a_trace_is_planned_by_the_fast_engine(call, tmp_path, monkeypatch):
    asked = []

    def engine_asked(name):
        asked.append(name)
        raise BadInput("enough")

    monkeypatch.setattr("kvoverlap.cli.restore.installed_engine", engine_asked)
    (tmp_path / "drop.csv").write_text("start_s,net\n0.05,0.5\n")
    call(*ASK)
    long = [word.replace("4K", "32K") for word in ASK]
    call(*long, "--availability", tmp_path / "drop.csv")
    assert asked == ["auto", "fast"]


@pytest.mark.parametrize(
    ("text", "rate"), [("32", 4 * 2**30), ("4GiB/s", 4 * 2**30), ("7GB/s", 7e9), ("0.5", 2**26)]
)
def test_a_tier_may_be_a_rate(text, rate):
    assert link_rate("--tier", text) == rate


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--tier", "tape"), "--tier(=tape) must be dram, ssd, net"),
        (("--tier", "0"), "must be above 0 Gbps"),
        (("--cached", "4K"), "the last token of the prompt is always computed"),
        (("--gpu-share", "1.5"), "at most 1"),
        (("--policy", "two-end"), "did you mean 'two-ended'"),
        (("--availability", "no.csv"), "no.csv does not exist"),
        (("--prompt", "128K"), "must be at most the 32768 positions of longalpaca-13b"),
        (("--model", "llama-3.1-70b"), "weights take 131.4 of 79.0 GiB (2 GPUs hold them: --tp 2)"),
    ],
)
def test_wrong_input_is_refused_in_one_sentence(call, change, message):
    asked = {**WHAT, change[0]: change[1]}
    status, _, stderr = call("restore", *(word for option in asked.items() for word in option))
    assert status == 2
    assert message in " ".join(stderr.split())
    assert "Traceback" not in stderr


def test_a_hypothetical_link_of_a_composed_machine_is_one_option(call):
    machine = ["--model", "llama-3.1-8b", "--hardware", "h200+pcie5-x16"]
    ask = ["restore", *machine, "--prompt", "4K", "--json"]
    usual, faster = (
        json.loads(call(*ask, *words)[1]) for words in ((), ("--set", "link.h2d.bandwidth=128GB/s"))
    )
    assert faster["load_only_s"] < usual["load_only_s"]
    assert faster["compute_only_s"] == usual["compute_only_s"]
