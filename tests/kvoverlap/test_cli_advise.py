"""The verb `advise`: its paragraph, its JSON keys, and wrong input."""

from __future__ import annotations

import json

import pytest

ASK = {"--model": "llama-3.1-8b", "--hardware": "a100-80g", "--batch": "256", "--prompt": "4K"}


def words(asked: dict[str, str]) -> list[str]:
    return ["advise", *(word for option in asked.items() for word in option)]


def test_json_has_the_keys_that_scripts_use(call):
    status, stdout, _ = call(*words(ASK), "--slo-ms", "100", "--json")
    answer = json.loads(stdout)
    assert status == 0
    assert answer["verdict"] == "partly resident"
    assert answer["headline"].startswith("Keep ")
    assert "and load the rest" in answer["headline"]
    assert answer["from_host"] == "load"
    assert answer["recomputed_tokens"] == 0
    assert answer["kept_step_s"] < answer["step_s"] == answer["baselines"]["lp"]
    assert answer["gain_range"] is None
    assert answer["evidence"]["cases"] == 0
    assert answer["pays_most"]["part"] == "h2d"
    assert answer["by_context"][0]["verdict"] == "load"
    assert answer["reuse"]["load_s"] < answer["reuse"]["compute_s"]
    assert answer["reuse"]["least_tokens"] == answer["reuse"]["by_prefix"][-1]["first_tokens"]
    assert answer["slo"]["met"] is (answer["slo"]["largest_batch"] >= 256)
    assert {one["runtime"] for one in answer["hints"]} == {"vLLM", "LMCache", "SGLang"}


def test_what_if_options_change_the_answer(call):
    small = {**ASK, "--hardware": "h100", "--batch": "16"}

    def step_s(*options: str) -> float:
        return json.loads(call(*words(small), *options, "--json")[1])["step_s"]

    usual = step_s()
    assert step_s("--set", "link.bandwidth=128GB/s") < usual
    assert usual / 2 < step_s("--kv-bits", "8") < usual * 0.6
    assert call(*words(small), "--gpu-memory", "4GiB", "--host-memory", "4GiB")[0] == 2


def test_the_answer_is_a_paragraph_and_tables_and_says_what_runtimes_do_not_do(call):
    status, stdout, _ = call(*words(ASK))
    assert status == 0
    first, _, job, _, paragraph, *_ = stdout.splitlines()
    assert first.startswith("Keep 1,788 of 4,096 tokens of each layer in GPU memory and load")
    assert job.startswith("llama-3.1-8b (bfloat16) on a100-80g, batch 256, prompt 4,096")
    for said in ("best upgrade", "loading everything is fastest", "A later request"):
        assert said in paragraph
    for said in ("No serving runtime loads", "--kv-offloading-size", "https://docs.sglang.io"):
        assert said in stdout


def test_either_engine_gives_the_same_answer(call):
    small = {**ASK, "--model": "opt-125m", "--batch": "8", "--prompt": "256"}
    simpy, fast = (
        json.loads(call(*words(small), "--engine", one, "--json")[1]) for one in ("simpy", "fast")
    )
    assert simpy["by_context"] == fast["by_context"]
    assert fast["step_s"] == pytest.approx(simpy["step_s"], rel=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--slo-ms", "0"), "--slo-ms(=0.0) must be a time above 0"),
        (("--slo-ms", "nan"), "--slo-ms(=nan) must be a time above 0"),
        (("--batch", "none"), "--batch(=none) must be a whole number"),
        (("--prompt", "1M"), "positions of llama-3.1-8b"),
        (("--batch", "100K"), "lower --batch to"),
        (("--hardware", "a100"), "hardware 'a100' is unknown"),
        (("--engine", "turbo"), "known: auto, fast, simpy"),
    ],
)
def test_wrong_input_is_refused_in_one_sentence(call, change, message):
    status, _, stderr = call(*words({**ASK, change[0]: change[1]}))
    assert status == 2
    assert message in " ".join(stderr.split())
    assert "Traceback" not in stderr
