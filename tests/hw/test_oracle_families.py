"""Experts, latents, Gemma and gpt-oss equal those of `transformers`: K and V, logits, tokens."""

from __future__ import annotations

from dataclasses import replace

import hf
import pytest
from builders import make_plan
from oracle import SLOW_LINK, SMALL, Oracle, assert_equal, assert_kv_equal, consult
from run_restores import RestoreCase, policy_graphs, request
from tiny import filled_cache, simulated

from hw import DecodeExecutor, open_backend, resident_prefill
from sim import Workload

TWO = {**SMALL, "num_hidden_layers": 2}
JOB = Workload(batch_size=2, prompt_tokens=40, gen_tokens=2)
WINDOWED = {**TWO, "head_dim": 16, "sliding_window": 20, "query_pre_attn_scalar": 24}
LATENT = {
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 24,
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
}
CONFIGS = {
    "mixtral": lambda: hf.MixtralConfig(**TWO, num_local_experts=5, sliding_window=20),
    "qwen3-moe": lambda: hf.Qwen3MoeConfig(
        **TWO,
        head_dim=16,
        moe_intermediate_size=24,
        num_experts=6,
        num_experts_per_tok=3,
        mlp_only_layers=[0],
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 150.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "qwen2-moe": lambda: hf.Qwen2MoeConfig(
        **TWO,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=48,
        num_experts=6,
        num_experts_per_tok=3,
        norm_topk_prob=True,
    ),
    "deepseek-v3": lambda: hf.DeepseekV3Config(
        **{**TWO, **LATENT, "num_key_value_heads": 8, "q_lora_rank": 24},
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 150.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "mscale": 1.0,
            "mscale_all_dim": 0.7,
        },
    ),
    "deepseek-v3-plain": lambda: hf.DeepseekV3Config(
        **{**TWO, **LATENT, "num_key_value_heads": 8, "q_lora_rank": None},
        rope_interleave=False,
    ),
    "gpt-oss": lambda: hf.GptOssConfig(
        **{**TWO, "head_dim": 16, "sliding_window": 20, "num_local_experts": 5},
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 150.0,
            "factor": 8.0,
            "original_max_position_embeddings": 32,
            "truncate": False,
        },
        num_experts_per_tok=2,
        swiglu_limit=1.5,
    ),
    "gemma2": lambda: hf.Gemma2Config(
        **WINDOWED, attn_logit_softcapping=2.0, final_logit_softcapping=3.0
    ),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **WINDOWED, layer_types=["sliding_attention", "full_attention"]
    ),
}


@pytest.fixture(scope="module")
def cpu():
    with open_backend("cpu") as backend:
        yield backend


@pytest.fixture(scope="module")
def gemma2():
    return consult(CONFIGS["gemma2"](), JOB)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_policy_computes_what_transformers_does(name, cpu):
    oracle = consult(CONFIGS[name](), JOB)
    model, job = oracle.weights.model, oracle.job
    for policy in ("lp", "load-all", "recompute-all"):
        cache = filled_cache(oracle.weights, job, cpu, oracle.prompts)
        assert cache.next_tokens.equal(oracle.tokens[:, 0])
        graph = make_plan(model, SLOW_LINK, job, policy).simulated_graph()
        ops = {task.op for task in graph.tasks}
        assert {"load-all": "load_kv", "recompute-all": "recompute"}.get(policy, "mlp") in ops
        executor = DecodeExecutor(simulated(graph), oracle.weights, [cache], (), cpu)
        executor.run()
        assert_kv_equal(cache, oracle, range(job.max_tokens))
        assert_equal(executor.logits[0], oracle.logits)
        assert executor.tokens[0].T.equal(oracle.tokens[:, 1:])
    check_restore(oracle, cpu)


@pytest.mark.parametrize(
    "wrong",
    [
        {"embedding_scale": 1.0},
        {"attention_scale": None},
        {"attention_cap": None},
        {"activation": "silu"},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_the_oracle_notices_wrong_arithmetic(gemma2, wrong, cpu):
    spec = gemma2.weights.model
    misread = replace(spec, arithmetic=replace(spec.arithmetic, **wrong))
    weights = replace(gemma2.weights, model=misread)
    cache = filled_cache(weights, gemma2.job, cpu, gemma2.prompts)
    with pytest.raises(AssertionError, match="not close"):
        assert_kv_equal(cache, gemma2, range(gemma2.job.prompt_tokens))


def check_restore(oracle: Oracle, cpu) -> None:
    """A two-ended restore of the first prompt comes to what `transformers` computes."""
    model, n_tokens = oracle.weights.model, oracle.job.prompt_tokens
    job = request(n_tokens, n_tokens - 3)
    reference = resident_prefill(oracle.weights, oracle.prompts[0], cpu)
    case = RestoreCase(oracle.weights, job, reference, cpu)
    executor = case.executor(policy_graphs(model, job)["two-ended"])
    executor.run()
    for ours, oracles in zip(executor.kv, oracle.kv, strict=True):
        n_both = n_tokens - max(0, oracle.job.max_tokens - oracles.shape[0])
        theirs = oracles[: n_tokens - oracle.job.max_tokens, :1]
        assert_equal(ours[n_tokens - n_both :], theirs[-n_both:])
    assert int(executor.logits.argmax()) == int(oracle.tokens[0, 0])
