"""The verbs as scripts use them: JSON keys, files from one to the next, exit statuses."""

import gzip
import json

import pytest

from kvoverlap.cli import output

TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "num_hidden_layers": 4,
    "vocab_size": 128,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float16",
}


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY))
    return path


@pytest.fixture
def plan_file(call, tiny, tmp_path):
    path = tmp_path / "plan.json"
    arguments = ["--hardware", "kvpr-a100", "--batch", "2", "--prompt", "48", "--gen", "2"]
    assert call("plan", "--model", tiny, *arguments, "--no-keep", "-o", path)[0] == 0
    return path


KVPR = "plan --model opt-13b --hardware kvpr-a100 --batch 32 --prompt 1024 --gen 1 --policy kvpr"


@pytest.mark.parametrize(
    ("change", "tokens"), [((), 671), (("--set", "link.bandwidth=64GB/s"), 499)]
)
def test_kvpr_split_of_the_paper(call, change, tokens):
    status, stdout, _ = call(*KVPR.split(), *change, "--json")
    assert status == 0
    assert json.loads(stdout)["steps"][0]["recomputed_tokens"] == [tokens] * 40


def test_kvpr_split_with_a_profile_file_of_doubled_link(call, tmp_path):
    from sim.catalog import find_hardware

    find_hardware("kvpr-a100").with_faster("link", 2).save(tmp_path / "doubled.json")
    status, stdout, _ = call(
        *KVPR.replace("kvpr-a100", str(tmp_path / "doubled.json")).split(), "--json"
    )
    assert status == 0
    assert set(json.loads(stdout)["steps"][0]["recomputed_tokens"]) == {499}


def test_plan_json_has_the_keys_that_scripts_use(call):
    arguments = "plan --model opt-1.3b --hardware kvpr-a100 --batch 8 --prompt 1K --gen 3 --json"
    status, stdout, _ = call(*arguments.split())
    answer = json.loads(stdout)
    assert status == 0
    assert {"policy", "schedule", "steps", "makespan_s", "lp_objective_s", "lower_bound_s"} <= set(
        answer
    )
    assert set(answer["baselines"]) >= {"lp", "kvpr", "load-all", "recompute-all"}
    assert len(answer["graph_sha256"]) == 64
    assert "10 % more" in answer["bottleneck"]
    for number, step in enumerate(answer["steps"]):
        assert step["step"] == number
        assert step["context_tokens"] == 1024 + number
        parts = zip(
            step["recomputed_tokens"], step["loaded_tokens"], step["resident_tokens"], strict=True
        )
        assert [sum(part) for part in parts] == [1024 + number] * 24


def test_text_answer_names_bound_bottleneck_and_policies(call, plan_file):
    status, stdout, _ = call("simulate", plan_file)
    assert status == 0
    assert "overlap" in stdout
    arguments = "plan --model opt-13b --hardware kvpr-a100 --batch 32 --prompt 1K"
    stdout = call(*arguments.split())[1]
    for word in ("load-all", "recompute-all", "kvpr", "no split can beat", "bottleneck"):
        assert word in stdout


def test_simulate_run_compare_pass_files_on(call, plan_file, tmp_path):
    predicted, measured = tmp_path / "predicted.json", tmp_path / "measured.json.gz"
    trace = tmp_path / "measured.trace.json.gz"
    status, stdout, _ = call("simulate", plan_file, "-o", predicted, "--json")
    simulated = json.loads(stdout)
    assert status == 0
    assert simulated["makespan_s"] == json.loads(plan_file.read_text())["makespan_s"]
    status, stdout, stderr = call(
        "run",
        plan_file,
        "--device",
        "cpu",
        "--repeats",
        2,
        "-o",
        measured,
        "--trace",
        trace,
        "--json",
    )
    ran = json.loads(stdout)
    assert status == 0
    assert "made for kvpr-a100" in stderr
    assert ran["checks"]["tokens_equal"] is True
    assert ran["repeats"] == 2
    status, stdout, _ = call("compare", predicted, measured, "--json")
    answer = json.loads(stdout)
    assert status == 0
    assert answer["graph_sha256"] == ran["graph_sha256"] == simulated["graph_sha256"]
    assert answer["measured_makespan_s"] == ran["makespan_s"]
    expected = answer["predicted_makespan_s"] / answer["measured_makespan_s"] - 1
    assert answer["makespan_error_frac"] == pytest.approx(expected)
    assert {
        "measured_spread_frac",
        "overlap_predicted_frac",
        "overlap_measured_frac",
        "exposed_copy_predicted_s",
        "exposed_copy_measured_s",
        "teacher_forced_error_frac",
        "worst_tasks",
    } <= set(answer)
    assert call("compare", predicted, measured, "--gate", "0.001")[0] == 1
    assert call("compare", predicted, measured, "--gate", "1e9")[0] == 0
    assert json.loads(call("compare", plan_file, measured, "--json")[1]) == answer
    assert call("compare", predicted, trace, "--json")[0] == 0
    with gzip.open(trace) as file:
        assert "traceEvents" in json.load(file)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_cache_is_planned_run_and_its_error_told(call, tiny, tmp_path, bits):
    path = tmp_path / "plan.json"
    arguments = ["--hardware", "kvpr-a100", "--batch", 2, "--prompt", 48, "--gen", 2, "-o", path]
    status, stdout, _ = call("plan", "--model", tiny, *arguments, "--kv-bits", bits, "--no-keep")
    assert status == 0
    assert f"KV cache in {bits} bits" in stdout
    assert json.loads(path.read_text())["workload"]["kv_bits"] == bits
    status, stdout, _ = call("run", path, "--device", "cpu", "--repeats", 1, "--json")
    checks = json.loads(stdout)["checks"]
    assert status == 0
    assert checks["tokens_equal"] is True
    assert 0 < checks["kv_quantisation_error"] < 0.2
    assert "quantised cache: K and V off by" in call("run", path, "--device", "cpu")[1]


def test_edited_plan_runs_only_after_a_new_simulation(call, plan_file, tmp_path):
    content = json.loads(plan_file.read_text())
    content["steps"][0]["recomputed_tokens"][0] = 7
    content["steps"][0]["loaded_tokens"][0] = 41
    edited, accepted = tmp_path / "edited.json", tmp_path / "accepted.json"
    edited.write_text(json.dumps(content))
    status, _, stderr = call("run", edited, "--device", "cpu")
    assert status == 2
    assert "simulate" in stderr
    assert call("simulate", edited, "--plan-out", accepted)[0] == 0
    assert json.loads(accepted.read_text())["policy"] == "edited"
    assert call("run", accepted, "--device", "cpu", "--repeats", 1)[0] == 0
    stated = json.loads(accepted.read_text())
    assert stated["lp_objective_s"] == pytest.approx(stated["makespan_s"], rel=1e-6)


def test_an_edited_plan_of_two_gpus_stays_one_of_two(call, tmp_path):
    made, edited, accepted = (tmp_path / f"{name}.json" for name in ("made", "edited", "accepted"))
    job = [
        "--model",
        "opt-125m",
        "--hardware",
        "2xa100-80g",
        "--batch",
        "2",
        "--prompt",
        "64",
        "--gpus",
        "2",
        "--no-keep",
    ]
    assert call("plan", *job, "-o", made)[0] == 0
    content = json.loads(made.read_text())
    step = content["steps"][0]
    step["recomputed_tokens"][0], step["loaded_tokens"][0] = 7, 57
    edited.write_text(json.dumps(content))
    assert call("simulate", edited, "--plan-out", accepted)[0] == 0
    found = json.loads(accepted.read_text())
    assert (found["policy"], found["gpus"]) == ("edited", 2)
    assert call("simulate", accepted)[0] == 0  # its hash is that of its own graph


def test_a_plan_that_was_not_edited_stays_what_it_is(call, plan_file, tmp_path):
    assert call("simulate", plan_file, "--plan-out", tmp_path / "same.json")[0] == 0
    assert (tmp_path / "same.json").read_text() == plan_file.read_text()


def test_profile_of_a_tiny_model_can_be_planned_with(call, tiny, tmp_path, monkeypatch):
    from tiny import shorten_profiles

    shorten_profiles(monkeypatch)
    path = tmp_path / "profile.json"
    status, _, stderr = call(
        "profile", "--device", "cpu", "--model", tiny, "--link", "2GB/s", "-o", path
    )
    assert status == 0
    assert "pass 1 of 1" in stderr
    arguments = ["plan", "--model", tiny, "--hardware", path, "--batch", 2, "--prompt", 32]
    status, stdout, _ = call(*arguments, "--json")
    assert status == 0
    assert json.loads(stdout)["makespan_s"] > 0


def test_models_and_hardware_list_what_is_shipped(call):
    names = {entry["name"] for entry in json.loads(call("models", "--json")[1])}
    assert {"opt-125m", "opt-30b", "llama-3.1-70b", "qwen3-8b", "mistral-7b"} <= names
    (entry,) = (e for e in json.loads(call("hardware", "--json")[1]) if e["name"] == "kvpr-a100")
    assert entry["gemm_flops_per_s"] == 312e12
    assert entry["h2d_bytes_per_s"] == 32e9
    assert entry["source"] == "datasheet"
    assert "kvpr-a100" in call("hardware")[1]
    assert "opt-13b" in call("models")[1]


def test_hardware_lists_the_parts_that_machines_are_composed_of(call):
    entries = json.loads(call("hardware", "--json")[1])
    by_kind = {entry["kind"]: entry for entry in entries}
    assert set(by_kind) == {"machine", "device", "link"}
    (h100,) = (entry for entry in entries if entry["name"] == "h100-sxm")
    assert h100["measured_in"]["device"] == "NVIDIA H100 80GB HBM3"
    assert {errors["kind"] for errors in h100["checks"]} >= {"gemm", "attention", "prefill"}
    text = call("hardware")[1]
    assert "h100-sxm+pcie5-x16" in text
    assert "nvlink-c2c" in text


def test_one_machine_is_shown_with_the_source_of_each_figure(call):
    status, text, _ = call("hardware", "rtx-4090")
    assert status == 0
    assert "rates are 77 % of the peak FLOP/s and 85 % of the peak memory bandwidth" in text
    assert "857 GB/s" in text
    assert "1008GB/s x 0.85; NVIDIA Ada GPU Architecture" in text
    entry = json.loads(call("hardware", "rtx-4090", "--json")[1])
    assert entry["name"] == "rtx-4090+pcie4-x16"
    figures = {row["figure"]: row for row in entry["figures"]}
    assert figures["matmuls"]["value"] == pytest.approx(0.77 * 165.2e12)
    assert {row["source"] for row in figures.values()} == {"datasheet", "fitted"}
    unified = json.loads(call("hardware", "dgx-spark", "--json")[1])
    assert unified["unified_memory"]
    assert not {"h2d link", "host memory"} & {row["figure"] for row in unified["figures"]}
    assert call("hardware", "rtx4090")[0] == 2


def test_the_list_of_hardware_is_whole_in_80_columns(call, monkeypatch):
    monkeypatch.setattr(output, "out", output.Output("stdout", 80))
    text = call("hardware")[1]
    assert "…" not in text
    assert max(map(len, text.splitlines()[:-3])) <= 80
    entries = json.loads(call("hardware", "--json")[1])
    words = text.split()
    assert not [one["name"] for one in entries if one["name"] not in words]
    assert text.count("data sheet") == 13
    assert text.count("measured table") == 11


def test_every_verb_answers_for_unified_memory(call, tmp_path):
    words = "there is no link to wait for"
    job = ("--model", "opt-1.3b", "--hardware", "dgx-spark", "--prompt", 256)
    plan, restored = tmp_path / "plan.json", tmp_path / "restored.json"
    status, text, _ = call("plan", *job, "--batch", 2, "--gen", 2, "-o", plan)
    assert status == 0
    assert text.startswith("GPU and CPU share one memory on dgx-spark")
    assert words in call("restore", *job, "-o", restored)[1]
    assert words in call("advise", *job, "--batch", 2)[1]
    for path in (plan, restored):
        for engine in ("simpy", "fast"):
            assert call("simulate", path, "--engine", engine)[0] == 0
    for scenario, more, policies in (
        ("decode", "batch = 2\n", "lp load-all kvpr"),
        ("restore", "", "auto load-only"),
    ):
        study = tmp_path / f"{scenario}.toml"
        study.write_text(
            f'title = "unified"\nscenario = "{scenario}"\n[fixed]\nmodel = "opt-1.3b"\n'
            f'hardware = "dgx-spark"\nprompt = 256\n{more}[grid]\npolicy = {policies.split()}\n'
        )
        status, text, _ = call("sweep", study, "-o", tmp_path / scenario, "--jobs", "1")
        assert status == 0
        assert "; 0 have no answer" in " ".join(text.split())


def test_a_composed_machine_is_planned_for_and_its_link_changed(call):
    job = "plan --model opt-30b --hardware h100-sxm+pcie5-x16 --batch 16 --prompt 512 --json"
    plans = [
        json.loads(call(*job.split(), "--no-keep", *changes)[1])
        for changes in ((), ("--set", "link.h2d.bandwidth=128GB/s"))
    ]
    assert plans[0]["hardware"] == "h100-sxm+pcie5-x16"
    assert plans[1]["makespan_s"] < plans[0]["makespan_s"]
    assert plans[1]["steps"][0]["recomputed_tokens"] < plans[0]["steps"][0]["recomputed_tokens"]
    assert plans[0]["out_of_range_tasks"] == 0


def test_a_model_that_does_not_fit_a_composed_machine_is_told_what_to_change(call):
    job = "plan --model llama-3.1-70b --hardware h100-sxm+pcie5-x16 --batch 16 --prompt 1K"
    status, _, stderr = call(*job.split())
    assert status == 2
    assert "weights take 131.4 of 79.0 GiB" in " ".join(stderr.split())
    assert "--schedule column" in stderr


@pytest.mark.parametrize(
    "verb", ["plan", "simulate", "profile", "run", "compare", "validate", "models", "hardware"]
)
def test_help_shows_examples(call, verb):
    status, stdout, _ = call(verb, "--help")
    assert status == 0
    assert f"kvoverlap {verb}" in stdout
    assert "--json" in stdout
