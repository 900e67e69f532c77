"""K, V, logits and greedy tokens under every policy equal those of `transformers`."""

from __future__ import annotations

from dataclasses import replace

import hf
import pytest
from builders import make_plan
from oracle import SLOW_LINK, SMALL, assert_equal, assert_kv_equal, consult
from run_restores import RestoreCase, policy_graphs
from run_restores import request as restore_request
from tiny import filled_cache, simulated

from hw import DecodeExecutor, open_backend, resident_prefill
from sim import find_model
from sim.model.config import model_from_config

POLICIES = ("lp", "kvpr", "load-all", "recompute-all", "fixed:5")
RESTORES = ("load-only", "two-ended", "lp", "layer-wise", "joint")
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SMALL_OPT = {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 96, "num_hidden_layers": 4}
CONFIGS = {
    "opt": lambda: hf.OPTConfig(
        **SMALL_OPT,
        num_attention_heads=8,
        vocab_size=331,
        max_position_embeddings=256,
        eos_token_id=None,
    ),
    "llama-gqa": lambda: hf.LlamaConfig(**SMALL),
    "llama3-rope": lambda: hf.LlamaConfig(**SMALL, rope_parameters=LLAMA3_ROPE),
    "llama-biases-tied": lambda: hf.LlamaConfig(
        **SMALL, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "mistral": lambda: hf.MistralConfig(**SMALL, head_dim=24),
    "mistral-window": lambda: hf.MistralConfig(**SMALL, sliding_window=20),
    "qwen2-windows": lambda: hf.Qwen2Config(
        **SMALL, use_sliding_window=True, sliding_window=30, max_window_layers=2
    ),
    "qwen2": lambda: hf.Qwen2Config(**SMALL),
    "qwen3": lambda: hf.Qwen3Config(**SMALL, head_dim=16),
}


@pytest.fixture(scope="module", params=CONFIGS)
def oracle(request):
    return consult(CONFIGS[request.param]())


@pytest.fixture
def cpu():
    with open_backend("cpu") as backend:
        yield backend


def test_prefill_fills_the_cache_as_transformers_does(oracle, cpu):
    cache = filled_cache(oracle.weights, oracle.job, cpu, oracle.prompts)
    assert_kv_equal(cache, oracle, range(oracle.job.prompt_tokens))
    assert cache.next_tokens.equal(oracle.tokens[:, 0])


@pytest.mark.parametrize("policy", POLICIES)
def test_decode_computes_what_transformers_does(oracle, policy, cpu):
    job = oracle.job
    plan = make_plan(oracle.weights.model, SLOW_LINK, job, policy)
    cache = filled_cache(oracle.weights, job, cpu, oracle.prompts)
    executor = DecodeExecutor(simulated(plan.simulated_graph()), oracle.weights, [cache], (), cpu)
    executor.run()
    assert_kv_equal(cache, oracle, range(job.prompt_tokens, job.max_tokens))
    assert_equal(executor.logits[0], oracle.logits)
    assert executor.tokens[0].T.equal(oracle.tokens[:, 1:])


@pytest.mark.parametrize("policy", RESTORES)
def test_a_restore_comes_to_what_transformers_does(oracle, policy, cpu):
    model, n_tokens = oracle.weights.model, oracle.job.prompt_tokens
    job = restore_request(n_tokens, n_tokens - 3)
    reference = resident_prefill(oracle.weights, oracle.prompts[0], cpu)
    case = RestoreCase(oracle.weights, job, reference, cpu)
    executor = case.executor(policy_graphs(model, job)[policy])
    executor.run()
    for ours, oracles in zip(executor.kv, oracle.kv, strict=True):
        n_both = n_tokens - max(0, oracle.job.max_tokens - oracles.shape[0])
        theirs = oracles[: n_tokens - oracle.job.max_tokens, :1]
        assert_equal(ours[n_tokens - n_both :], theirs[-n_both:])
    assert int(executor.logits.argmax()) == int(oracle.tokens[0, 0])


def test_the_shipped_opt_125m_is_the_shape_that_transformers_has():
    shipped = find_model("opt-125m", "float32")
    assert model_from_config(hf.OPTConfig().to_dict(), shipped.name) == shipped


@pytest.mark.parametrize(
    ("case", "wrong"),
    [
        ("llama-gqa", {"rope_theta": 20_000.0}),
        ("llama3-rope", {"rope_scaling": None}),
        ("qwen3", {"norm_eps": 1e-2}),
        ("mistral-window", {"sliding_window": 21}),
        ("qwen2-windows", {"full_attention_layers": (0,)}),
    ],
)
def test_the_oracle_notices_a_config_read_wrongly(case, wrong, cpu):
    oracle = consult(CONFIGS[case]())
    misread = replace(oracle.weights, model=replace(oracle.weights.model, **wrong))
    cache = filled_cache(misread, oracle.job, cpu, oracle.prompts)
    with pytest.raises(AssertionError, match="not close"):
        assert_kv_equal(cache, oracle, range(oracle.job.prompt_tokens))
