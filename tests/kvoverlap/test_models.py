"""Models of all kinds on the command line: assumed families, quantised caches, refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow.parquet
import pytest
from builders import machine
from checkpoints import CONFIGS, save, seeded
from model_index import entries

import kvoverlap
import kvoverlap.cli.devices
from kvoverlap import RestoreRequest, Workload, find_model
from kvoverlap.cli.model_list import INDEX
from measure.validation import ValidationRequest
from planner.sweep.rows import ROW_OF
from planner.sweep.study import Study
from sim.catalog import DATA
from sim.model.kv_format import QuantisedRow
from sim.model.runnable import why_not_run

LLAMA = json.loads((DATA / "models" / "llama-3.1-8b.json").read_text()) | {"num_hidden_layers": 2}
JOB = ("--hardware", "h100", "--prompt", 256)
FP8_CACHE = {
    "quant_method": "modelopt",
    "quant_algo": "FP8",
    "kv_cache_scheme": {"num_bits": 8, "type": "float"},
}


def test_the_index_of_models_is_what_their_configs_say():
    """`python tests/model_index.py` rewrites it."""
    assert json.loads(INDEX.read_text()) == entries()


@pytest.fixture
def config(tmp_path):
    """Writes a changed config and returns its path."""

    def write(**changes):
        path = tmp_path / "small.json"
        path.write_text(json.dumps({**LLAMA, **changes}))
        return path

    return write


@pytest.mark.parametrize("verb", ["plan", "advise", "restore"])
def test_an_assumed_family_is_part_of_every_answer(call, config, verb):
    path = config(model_type="newllm")
    batch = () if verb == "restore" else ("--batch", 2)
    status, _, stderr = call(verb, "--model", path, *JOB, *batch)
    assert status == 2
    assert "model_type 'newllm' is not supported" in stderr
    asked = (verb, "--model", path, *JOB, *batch, "--assume-like", "llama")
    assert "small (assumed llama)" in call(*asked)[1]
    assert "small (assumed llama)" in call(*asked, "--json")[1]


def test_plans_that_run_and_are_compared_say_that_the_family_is_assumed(call, config, tmp_path):
    path, plan = config(model_type="newllm"), tmp_path / "plan.json"
    predicted = tmp_path / "predicted.json"
    assert call("plan", "--model", path, *JOB, "--batch", 2, "--assume-like", "llama", "-o", plan)
    assert "small (assumed llama)" in call("simulate", plan, "-o", predicted)[1]
    measured = json.loads(predicted.read_text()) | {"source": "measured"}
    (tmp_path / "measured.json").write_text(json.dumps(measured))
    asked = ("compare", predicted, tmp_path / "measured.json")
    assert "small (assumed llama)" in call(*asked)[1]
    assert json.loads(call(*asked, "--json")[1])["model"] == "small (assumed llama)"


def test_a_sweep_reads_an_unknown_family_as_the_study_says(call, config, tmp_path):
    study = tmp_path / "study.toml"
    text = f'[fixed]\nmodel = "{config(model_type="newllm")}"\nhardware = "h100"\nprompt = 256\n'
    study.write_text(f"{text}batch = 2\n")
    status, _, stderr = call("sweep", study, "-o", tmp_path / "out.parquet")
    assert (status, "fixed.model: " in stderr, "newllm" in stderr) == (2, True, True)
    study.write_text(f'{text}batch = 2\npolicy = "load-all"\nassume_like = "llama"\n')
    asked = ("sweep", study, "--jobs", 1, "-o", tmp_path / "out.parquet")
    assert "small (assumed llama)" in call(*asked)[1]
    (row,) = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert (row["assume_like"], row["error"]) == ("llama", "")


def test_hit_rates_in_bytes_of_an_assumed_family(call, config, tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,gen_tokens\n0,1024,1\n1,1024,1\n")
    asked = ("traffic", trace, "--hit-rates", "--model", config(model_type="newllm"))
    assert call(*asked)[0] == 2
    asked = (*asked, "--assume-like", "llama")
    assert "small (assumed llama)" in call(*asked)[1]
    assert json.loads(call(*asked, "--json")[1])["model"] == "small (assumed llama)"


def test_verbs_that_measure_take_an_unknown_family_too(call, config, tmp_path, monkeypatch):
    path, made = config(model_type="newllm"), machine()
    profiled = []

    def profile(_kind, specs, *_):
        profiled.extend(spec.name for spec in specs)
        return made

    monkeypatch.setattr(kvoverlap.cli.devices, "measure_profile", profile)
    asked = ("profile", "--device", "cpu", "--model", path, "-o", tmp_path / "profile.json")
    assert call(*asked)[0] == 2
    asked = (*asked, "--assume-like", "llama")
    assert "small (assumed llama)" in call(*asked)[1]
    assert json.loads(call(*asked, "--json")[1])["models"] == ["small (assumed llama)"]
    request = ValidationRequest(device="cpu", model=str(path), assume_like="llama")
    assert request.resolve()[1].name == profiled[0]


def test_weights_of_an_unknown_family_continue_prompts(call, tmp_path):
    save(seeded(CONFIGS["llama"]()), tmp_path / "own")
    config = tmp_path / "own" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "newllm"}))
    (tmp_path / "ids.json").write_text("[1, 2, 3]")
    asked = ("generate", "--weights", tmp_path / "own", "--prompt-ids", tmp_path / "ids.json")
    asked = (*asked, "--max-new-tokens", 1, "--device", "cpu")
    assert call(*asked)[0] == 2
    assert "own (assumed llama)" in call(*asked, "--assume-like", "llama")[1]


@pytest.mark.parametrize("verb", ["plan", "advise"])
def test_a_cache_in_eight_bits_that_the_checkpoint_asks_for(call, config, verb):
    asked = (verb, "--model", config(quantization_config=FP8_CACHE), *JOB, "--batch", 2)
    _, stdout, stderr = call(*asked)
    assert "KV cache in 8 bits" in stdout
    assert (
        "K and V outside GPU memory in 8 bits, as small asks for; --kv-bits 16 for its dtype"
        in stderr
    )
    assert call(*asked, "--kv-bits", 8)[1] == stdout
    assert "KV cache in" not in call(*asked, "--kv-bits", 16)[1]


def test_a_restore_loads_what_the_checkpoint_asks_for(call, config):
    asked = ("restore", "--model", config(quantization_config=FP8_CACHE), *JOB, "--json")
    assert json.loads(call(*asked)[1])["workload"]["tier_kv_bits"] == 8
    assert json.loads(call(*asked, "--kv-bits", 16)[1])["workload"]["tier_kv_bits"] == 16


@pytest.mark.parametrize("bits", [None, 16])
def test_verbs_agree_on_the_bytes_of_weights_and_of_an_asked_cache(call, config, bits):
    """The command line, a sweep and Python plan the same job; `None` is what the config asks."""
    path = config(quantization_config=FP8_CACHE)
    model = find_model(str(path))
    own = model if bits is None else replace(model, kv_bits=None)
    more = () if bits is None else ("--kv-bits", bits)
    rows, row_bytes = 2 * 2 * 256, 2 * 1024 * 2
    if bits is None:
        row_bytes = QuantisedRow.of(model.layers[0].attention, 8).bytes

    def asked(verb, *options):
        return json.loads(call(verb, "--model", path, *JOB, *more, *options, "--json")[1])

    plan = kvoverlap.plan(own, "h100", Workload(2, 256, 1), policy="load-all")
    loads = [task for task in plan.lower().tasks if task.op == "load_kv"]
    assert sum(task.bytes for task in loads) == rows * row_bytes
    assert plan.model.weight_bytes == asked_sheet(call, path)["weight_bytes"]
    answer = asked("plan", "--batch", 2, "--policy", "load-all")
    assert answer["makespan_s"] == pytest.approx(plan.makespan_s)
    advice = kvoverlap.advise(own, "h100", Workload(2, 256, 1))
    assert asked("advise", "--batch", 2)["baselines"] == advice.plan.baselines
    assert advice.plan.baselines["load-all"] == plan.makespan_s

    request = RestoreRequest(prompt_tokens=256, cached_tokens=255)
    restored = kvoverlap.restore(own, "h100", request, policy="load-only")
    answer = asked("restore", "--policy", "load-only")
    assert answer["cached_kv_bytes"] == 2 * 255 * 2 * 1024 * (2 if bits else 1)
    assert answer["ttft_s"] == pytest.approx(restored.ttft_s)

    for scenario, policy, seconds in (
        ("decode", "load-all", plan.makespan_s),
        ("restore", "load-only", restored.ttft_s),
    ):
        fixed = {"model": str(path), "hardware": "h100", "prompt": 256, "policy": policy}
        fixed |= {"batch": 2} if scenario == "decode" else {}
        fixed |= {} if bits is None else {"kv_bits": bits}
        study = Study.of({"scenario": scenario, "fixed": fixed})
        (point,) = study.points()
        row = ROW_OF[scenario](dict(zip(study.inputs, point, strict=True)))
        assert row["makespan_s" if scenario == "decode" else "ttft_s"] == pytest.approx(seconds)
        assert row["kv_bits"] == (bits or 8)


def asked_sheet(call, path):
    return json.loads(call("models", path, "--json")[1])


@pytest.mark.parametrize("verb", ["plan", "advise", "restore"])
def test_layers_of_several_kinds_are_planned(call, config, verb):
    path = config(
        model_type="llama4_text",
        num_local_experts=4,
        num_experts_per_tok=1,
        intermediate_size_mlp=64,
        attention_chunk_size=128,
    )
    batch = () if verb == "restore" else ("--batch", 2)
    status, stdout, _ = call(verb, "--model", path, *JOB, *batch)
    assert status == 0
    assert ("keep a window of 128 tokens" in stdout) == (verb == "restore")


KEYS = {
    *("family", "parameters", "active_parameters", "weight_bytes", "kv_bytes", "index_bytes"),
    *("state_bytes", "x_bytes_per_token", "layers"),
}


def test_a_sheet_by_hand(call, config):
    layers = 2 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    tables = 2 * 128_256 * 4096
    status, stdout, _ = call("models", config(), "--context", "8K", "--json")
    made = json.loads(stdout)
    assert status == 0
    assert set(made) >= KEYS
    assert made["parameters"] == made["active_parameters"] == layers + tables
    assert made["weight_bytes"] == 2 * (layers + tables)
    assert (made["kv_bytes"], made["x_bytes_per_token"]) == (2 * 8192 * 4096, 2 * 8192)
    assert [one["weight_bytes"] for one in made["layers"]] == [layers] * 2  # 2 bytes, 2 layers
    assert all(one["from_x"] for one in made["layers"])
    halved = json.loads(call("models", config(), "--context", "8K", "--kv-bits", 8, "--json")[1])
    assert 2 * halved["kv_bytes"] == made["kv_bytes"]


def test_a_sheet_shows_layers_by_kind(call):
    _, stdout, _ = call("models", "qwen3.5-27b", "--context", "128K")
    assert "a sequence of 131,072 tokens 8.14 GiB" in stdout
    assert "48: 0, 1, 2 ...   linear state (gated delta)" in stdout
    assert "projected from X in 16 of 64 layers" in " ".join(stdout.split())


def test_a_sheet_of_an_assumed_family_says_so(call, config):
    path = config(model_type="newllm")
    assert call("models", path)[0] == 2
    assert "small (assumed llama)" in call("models", path, "--assume-like", "llama")[1]


def test_a_sheet_in_other_bits_is_refused(call, config):
    status, _, stderr = call("models", config(), "--kv-bits", 3)
    assert status == 2
    assert "kv_bits(=3) must be 16, 8 or 4" in stderr


def test_a_sheet_names_the_cache_that_the_checkpoint_asks_for(call, config):
    path = config(quantization_config=FP8_CACHE)
    assert "asks for K and V in 8 bits: --kv-bits 8" in " ".join(call("models", path)[1].split())
    assert json.loads(call("models", path, "--json")[1])["asked_kv_bits"] == 8


def test_the_list_has_each_models_source_and_whether_it_runs(call):
    listed = {one["name"]: one for one in json.loads(call("models", "--json")[1])}
    assert len(listed) > 40
    assert all(one["source"].startswith("https://huggingface.co/") for one in listed.values())
    assert all(one["planned"] for one in listed.values())
    runs = {name: (one["runs"], one["runs_dequantised"]) for name, one in listed.items()}
    assert runs["qwen3-8b"] == (True, False)
    assert runs["gpt-oss-20b"] == runs["deepseek-v3"] == (True, True)
    assert runs["kimi-k3"] == (False, False)
    for name, (some, dequantised) in runs.items():
        model = find_model(name)
        assert (why_not_run(model) is None) == (some and not dequantised)
        assert (why_not_run(model.dequantised()) is None) == some


def test_stored_weights_are_refused_by_a_run_and_run_dequantised(call, config, tmp_path):
    small = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    small |= {"intermediate_size": 96, "vocab_size": 128, "rope_scaling": None, "dtype": "float32"}
    path, plan, where = config(**small), tmp_path / "plan.json", tmp_path / "cpu.json"
    stored = config(**small, quantization_config={"quant_method": "fp8"})
    machine(h2d=4e7, d2h=4e7, dtype="float32", name="cpu").save(where)
    job = ("--hardware", where, "--batch", 2, "--prompt", 20, "-o", plan)
    assert call("plan", "--model", stored, *job)[0] == 0
    status, _, stderr = call("run", plan, "--device", "cpu", "--repeats", 1)
    assert (status, "plan it with --dequantise" in stderr) == (2, True)
    answer = json.loads(call("plan", "--model", stored, *job, "--dequantise", "--json")[1])
    assert call("run", plan, "--device", "cpu", "--repeats", 1)[0] == 0
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": None}))
    plain = json.loads(call("plan", "--model", path, *job, "--json")[1])
    assert answer["graph_sha256"] == plain["graph_sha256"]
