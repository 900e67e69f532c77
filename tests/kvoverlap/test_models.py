"""Models of all kinds on the command line: assumed families, quantised caches, refusals."""

from __future__ import annotations

import json

import pytest
from model_index import entries

from kvoverlap.cli.model_list import INDEX
from sim.catalog import DATA

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


@pytest.mark.parametrize("verb", ["plan", "advise"])
def test_a_cache_in_eight_bits_that_the_checkpoint_asks_for(call, config, verb):
    asked = (verb, "--model", config(quantization_config=FP8_CACHE), *JOB, "--batch", 2)
    _, stdout, stderr = call(*asked)
    assert "KV cache in 8 bits" in stdout
    assert "KV cache in 8 bits, as small asks for; --kv-bits 16 for its dtype" in stderr
    assert call(*asked, "--kv-bits", 8)[1] == stdout
    assert "KV cache in" not in call(*asked, "--kv-bits", 16)[1]


def test_a_restore_loads_what_the_checkpoint_asks_for(call, config):
    asked = ("restore", "--model", config(quantization_config=FP8_CACHE), *JOB, "--json")
    assert json.loads(call(*asked)[1])["workload"]["tier_kv_bits"] == 8
    assert json.loads(call(*asked, "--kv-bits", 16)[1])["workload"]["tier_kv_bits"] == 16


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
    assert listed["qwen3-8b"]["runs"]
    assert not listed["kimi-k3"]["runs"]
