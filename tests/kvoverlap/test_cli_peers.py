"""The report on others who decode beside our plans, and the verb that prints it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from builders import make_plan
from tiny import JOB, LLAMA, OPT, QWEN2

import hw.model.transformers_model
import kvoverlap.cli.peers
from hw import open_backend
from hw.backends import Memory
from hw.model.transformers_model import transformers_problem
from hw.run.other_systems import TransformersSystem
from kvoverlap.cli.peers import SharedJob, peers, print_other_systems
from measure.other_systems import (
    MEASURES,
    System,
    measure_other_systems,
    spare_memory,
    why_not_fitting,
)
from sim import Workload, find_hardware
from sim.errors import BadInput, DoesNotFit, WrongNumbers
from sim.progress import Silent

SLOW_LINK = find_hardware("kvpr-a100").with_faster("link", 0.25)
CONFIG = {
    "model_type": "opt",
    "hidden_size": 64,
    "ffn_dim": 128,
    "num_attention_heads": 8,
    "num_hidden_layers": 3,
    "vocab_size": 128,
    "max_position_embeddings": 512,
}
ARGUMENTS = {
    "job": SharedJob(batch=2, prompt=12, gen=2),
    "hardware": "kvpr-a100",
    "device": "cpu",
}
NAMES = ["transformers resident", "transformers offloaded", "flexgen", "load-all", "kvpr", "lp"]


@pytest.fixture
def cpu():
    with open_backend("cpu") as backend:
        yield backend


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(CONFIG))
    return str(path)


def report_of(backend, model=OPT, repeats=2):
    return measure_other_systems(model, SLOW_LINK, backend, JOB, repeats, 0, Silent())


def by_name(report):
    return {line["name"]: line for line in report["peers"]}


@pytest.mark.parametrize("model", [OPT, LLAMA], ids=lambda model: model.name)
def test_the_report_is_complete(cpu, model):
    report = report_of(cpu, model)
    job = (report["batch_size"], report["prompt_tokens"], report["gen_tokens"])
    assert (report["model"], report["dtype"], *job) == (model.name, "float32", 2, 13, 3)
    assert report["repeats"] == 2
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert [line["name"] for line in report["peers"]] == NAMES
    lines = by_name(report)
    assert "not_run" not in MEASURES
    for name in ("transformers offloaded", "flexgen"):
        assert all(lines[name][figure] is None for figure in MEASURES)
    assert lines["transformers offloaded"]["not_run"] == "needs CUDA"
    assert "weights" in lines["flexgen"]["not_run"]
    load_all = lines["load-all"]
    for name in ("transformers resident", "load-all", "kvpr", "lp"):
        line = lines[name]
        assert line["not_run"] is None
        assert line["tokens_equal"] is True
        assert line["tokens_compared"] == 6
        assert line["spread_frac"] >= 0
        ratio = line["median_step_s"] / load_all["median_step_s"]
        assert line["ratio_to_load_all"] == pytest.approx(ratio)
    resident = lines["transformers resident"]
    assert "5." in resident["what"]
    assert resident["copied_bytes_per_step"] == 0
    assert resident["achieved_bytes_per_s"] is None
    assert resident["max_copy_compute_s"] is None


def test_our_plans_report_their_bytes_and_their_busiest_lane(cpu):
    line = by_name(report_of(cpu, repeats=1))["load-all"]
    loaded = sum(JOB.context_tokens(step) for step in range(JOB.gen_tokens))
    tokens = JOB.batch_size * OPT.n_layers * (loaded + JOB.gen_tokens)
    copied = tokens * OPT.kv_token_bytes
    assert line["copied_bytes_per_step"] == copied / JOB.gen_tokens
    rate = line["copied_bytes_per_step"] / line["median_step_s"]
    assert line["achieved_bytes_per_s"] == pytest.approx(rate)
    bound = line["median_step_s"] / line["max_copy_compute_s"]
    assert line["ratio_to_max_copy_compute"] == pytest.approx(bound)
    assert bound >= 1


def test_everyone_takes_turns_after_a_warm_up_that_does_not_count(cpu, monkeypatch):
    turns = []
    run_once = System.run

    def noted(system, reference, counted):
        turns.append((system.name, reference is not None, counted))
        run_once(system, reference, counted)

    monkeypatch.setattr(System, "run", noted)
    report_of(cpu, repeats=2)
    assert [name for name, _, _ in turns] == 3 * NAMES
    assert [checked for _, checked, _ in turns[:: len(NAMES)]] == [False, True, True]
    assert [counted for _, _, counted in turns[:: len(NAMES)]] == [False, True, True]


def test_wrong_tokens_of_others_are_reported_and_printed(cpu, monkeypatch, capsys):
    decode = TransformersSystem.decode

    def wrong_on_the_second_call(peer):
        taken = decode(peer)
        calls.append(1)
        if len(calls) == 2:
            peer.tokens = peer.tokens + 1
        return taken

    calls: list[int] = []
    monkeypatch.setattr(TransformersSystem, "decode", wrong_on_the_second_call)
    report = report_of(cpu)
    line = by_name(report)["transformers resident"]
    assert line["tokens_equal"] is False
    assert line["median_step_s"] > 0
    print_other_systems(report)
    assert "NO, 2 of 6" in capsys.readouterr().out


def test_a_failure_of_others_does_not_lose_our_plans(cpu, monkeypatch):
    def broken(_):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(TransformersSystem, "_all_steps", broken)
    lines = by_name(report_of(cpu, repeats=1))
    assert lines["transformers resident"]["not_run"] == "failed: RuntimeError: out of memory"
    assert lines["transformers resident"]["median_step_s"] is None
    assert lines["lp"]["tokens_equal"] is True


def test_a_model_that_transformers_cannot_build_leaves_our_plans(cpu):
    lines = by_name(report_of(cpu, replace(QWEN2, out_bias=True), repeats=1))
    assert "o_proj.bias" in lines["transformers resident"]["not_run"]
    assert lines["lp"]["tokens_equal"] is True


def test_wrong_numbers_of_our_own_are_not_a_result(cpu, monkeypatch):
    def wrong(*_):
        raise WrongNumbers("the run differs")

    monkeypatch.setattr("hw.DecodeExecutor.check", wrong)
    with pytest.raises(WrongNumbers, match="differs"):
        report_of(cpu)


def test_without_transformers_the_report_says_how_to_get_it(cpu, monkeypatch):
    def missing(_):
        raise hw.model.transformers_model.PackageNotFoundError

    monkeypatch.setattr(hw.model.transformers_model, "version", missing)
    reason = 'transformers is not installed; pip install "kvoverlap[peers]"'
    assert transformers_problem() == reason
    lines = by_name(report_of(cpu, repeats=1))
    assert lines["transformers resident"]["not_run"] == reason
    assert lines["load-all"]["ratio_to_load_all"] == 1


def memory_for(model, extra_bytes):
    """A device with room for our three plans and `extra_bytes`."""
    graphs = [make_plan(model, SLOW_LINK, JOB, policy).lower() for policy in ("load-all", "lp")]

    class Plenty:
        kind = "cpu"

        def memory(self):
            return Memory(10**9, 10**9)

    left = spare_memory([graphs[0], *graphs], Plenty())
    return Memory(10**9 - left.device_bytes + extra_bytes, 10**9)


def test_a_cache_that_does_not_fit_beside_our_plans_is_not_run(cpu, monkeypatch):
    monkeypatch.setattr(cpu, "memory", lambda: memory_for(OPT, 100_000))
    line = by_name(report_of(cpu, repeats=1))["transformers resident"]
    assert line["not_run"].startswith("does not fit: its cache takes up to")


def test_plans_that_do_not_fit_are_refused(cpu, monkeypatch):
    monkeypatch.setattr(cpu, "memory", lambda: Memory(100_000, 10**9))
    with pytest.raises(DoesNotFit, match="tiny-opt does not fit on one GPU"):
        report_of(cpu)


def test_room_is_needed_where_the_cache_is():
    job = Workload(batch_size=1, prompt_tokens=1023, gen_tokens=1)
    layer_bytes = 1024 * OPT.kv_token_bytes
    on_device = Memory((OPT.n_layers + 4) * layer_bytes, 0)
    assert why_not_fitting(OPT, job, on_device, offloading=False) is None
    assert "device memory" in why_not_fitting(
        OPT, job, replace(on_device, device_bytes=on_device.device_bytes - 1), offloading=False
    )
    assert "host memory" in why_not_fitting(OPT, job, on_device, offloading=True)
    pinned = Memory(4 * layer_bytes, 2 * (OPT.n_layers + 4) * layer_bytes)
    assert why_not_fitting(OPT, job, pinned, offloading=True) is None


def test_the_verb_prints_json(config, capsys):
    peers(model=config, **ARGUMENTS, repeats=1, json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["dtype"] == "float16"
    assert by_name(report)["transformers resident"]["not_run"] is None


def test_the_verb_profiles_the_machine_where_no_profile_is_given(config, capsys, monkeypatch):
    asked = []

    def profiled(kind, specs, name, link, _steps, scope):
        asked.append((kind, [spec.dtype for spec in specs], name, link, scope.restores))
        return replace(SLOW_LINK, dtype="float32", device_kind="cpu")

    monkeypatch.setattr(kvoverlap.cli.peers, "measure_profile", profiled)
    peers(model=config, **{**ARGUMENTS, "hardware": None}, repeats=1)
    assert asked == [("cpu", ["float32"], "this-cpu", None, False)]
    text = capsys.readouterr().out
    assert "tiny (float32), other systems: batch 2, prompt 12, 2 steps" in text
    assert "transformers offloaded: not run: needs CUDA" in text
    assert "yes, 4 of 4" in text


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"job": SharedJob(batch=2, prompt=12, gen=1024)}, "512 positions"),
        ({"hardware": "kvpr-a10"}, "did you mean 'kvpr-a100'"),
        ({"device": "tpu"}, "device 'tpu' is unknown"),
    ],
)
def test_what_the_user_gets_wrong_is_told_before_anything_is_measured(
    config, monkeypatch, wrong, words
):
    monkeypatch.setattr(kvoverlap.cli.peers, "measure_profile", lambda *_: pytest.fail("profiled"))
    arguments = {"hardware": None, **wrong}
    with pytest.raises(BadInput, match=words):
        peers(model=config, **{**ARGUMENTS, **arguments})
