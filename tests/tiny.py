"""Models small enough that a whole decode takes milliseconds, and decode jobs of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from builders import machine

import hw.calibrate.bench
import hw.calibrate.profiler
import measure.decode_grid
import measure.grid
import measure.restore_grid
from hw import (
    SAMPLED,
    DecodeExecutor,
    HostCache,
    prefill,
    prompt_ids,
    random_weights,
    resident_decode,
)
from hw.backends import Backend
from hw.cache.reference import ResidentDecode
from hw.model.weights import Weights
from planner.decode.lower import lower
from sim import ModelSpec, TaskGraph, Workload, simulate
from sim.graph.timeline import Timeline
from sim.lanes import DISK, NET
from sim.machine.prefill import Prefill, Restore, Tier
from sim.machine.provenance import SourcedValue
from sim.model.arithmetic import Arithmetic, Router, Yarn
from sim.model.attention import LatentAttention
from sim.model.spec import Llama3RopeScaling, MixtureOfExperts

CPU = torch.device("cpu")

OPT = ModelSpec(
    name="tiny-opt",
    family="opt",
    n_layers=3,
    hidden_size=64,
    n_heads=4,
    n_kv_heads=4,
    head_dim=16,
    intermediate_size=96,
    vocab_size=211,
    max_positions=128,
    dtype="float32",
    gated_mlp=False,
    rotary=False,
    norm_eps=1e-5,
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    qk_norm=False,
    tie_embeddings=True,
)
"""Multi-head attention, learned positions, biases everywhere, tied embeddings."""

LLAMA = replace(
    OPT,
    name="tiny-llama",
    family="llama",
    n_heads=8,
    n_kv_heads=2,
    head_dim=8,
    gated_mlp=True,
    rotary=True,
    norm_eps=1e-6,
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
    tie_embeddings=False,
    rope_scaling=Llama3RopeScaling(8.0, 1.0, 4.0, 64),
)
"""Grouped-query attention, scaled rotary positions, no biases."""

QWEN2 = replace(LLAMA, name="tiny-qwen2", family="qwen2", qkv_bias=True, rope_scaling=None)

QWEN3 = replace(LLAMA, name="tiny-qwen3", family="qwen3", head_dim=16, qk_norm=True)
"""Query and key norms, and heads that are wider together than the hidden state."""

MODELS = (OPT, LLAMA, QWEN2, QWEN3)

EXPERTS = replace(
    LLAMA,
    name="tiny-experts",
    family="qwen2_moe",
    moe=MixtureOfExperts(6, 2, 1, 24, 0),
    arithmetic=Arithmetic(router=Router(shared_gate=True)),
)
"""Six experts, of which each token passes through two, and a shared one with a gate."""

GEMMA = replace(
    LLAMA,
    name="tiny-gemma",
    family="gemma2",
    output_norms=True,
    rope_scaling=None,
    sliding_window=6,
    full_attention_layers=(1,),
    arithmetic=Arithmetic(
        activation="gelu_tanh",
        norm_offset=1.0,
        embedding_scale=8.0,
        attention_scale=0.3,
        attention_cap=2.0,
        logit_cap=3.0,
        local_rope_theta=500.0,
    ),
)
"""Norms of outputs, capped scores and logits, and rotary positions that differ by layer."""

GPT_OSS = replace(
    EXPERTS,
    name="tiny-gpt-oss",
    family="gpt_oss",
    qkv_bias=True,
    out_bias=True,
    rope_scaling=None,
    moe=MixtureOfExperts(6, 2, 0, 24, 0),
    sliding_window=6,
    full_attention_layers=(1,),
    arithmetic=Arithmetic(
        sinks=True,
        swiglu_limit=1.0,
        yarn=Yarn(8.0, 32.0, 1.0, 32, False, 1.2),
        router=Router("chosen", biased=True),
    ),
)
"""Sinks, experts with biases and clamps, and YaRN."""

DEEPSEEK = replace(
    EXPERTS,
    name="tiny-deepseek",
    family="deepseek_v3",
    n_kv_heads=1,
    head_dim=12,
    rope_scaling=None,
    mla=LatentAttention(16, 4, 8, 6, 20),
    moe=MixtureOfExperts(6, 2, 1, 24, 1),
    arithmetic=Arithmetic(
        rope_interleaved=True,
        router=Router("sigmoid", scale=1.5, n_groups=3, top_groups=2),
    ),
)
"""A latent of 16 and a rotary key of 4, and experts of three groups behind one dense layer."""

JOB = Workload(batch_size=2, prompt_tokens=13, gen_tokens=3)


def filled_cache(
    weights: Weights, job: Workload, backend: Backend, prompts: torch.Tensor | None = None
) -> HostCache:
    """A host cache after the prefill of `prompts`, by default the job's seeded ones."""
    cache = HostCache.empty(weights.model, job, backend)
    prefill(weights, prompt_ids(weights.model, job, 1) if prompts is None else prompts, cache)
    return cache


CONFIG = {
    "model_type": "opt",
    "hidden_size": 64,
    "ffn_dim": 128,
    "num_attention_heads": 8,
    "num_hidden_layers": 4,
    "vocab_size": 128,
    "max_position_embeddings": 512,
}
"""A config.json that a profile takes seconds for."""


def shorten_samples(patch: pytest.MonkeyPatch) -> None:
    """Samples of a few calls, on few operands."""
    patch.setattr(hw.calibrate.bench, "SAMPLE_S", 1e-4)
    patch.setattr(hw.calibrate.bench, "COLD_STARTS", 2)
    patch.setattr(hw.calibrate.bench, "BURST_S", {"cpu": 1e-3, "cuda": 1e-3})
    patch.setattr(hw.calibrate.bench, "ROTATION_BYTES", 2**20)


def shorten_profiles(patch: pytest.MonkeyPatch) -> None:
    """One short pass over few sizes, for tests of what is made of a profile."""
    patch.setitem(hw.calibrate.profiler.PASSES, "cpu", 1)
    patch.setattr(hw.calibrate.profiler, "WARM_UP_S", 0.01)
    shorten_samples(patch)
    short = replace(SAMPLED["cpu"], contexts=(16, 64), copy_bytes=(2**10, 2**14, 2**18))
    patch.setitem(SAMPLED, "cpu", short)


TIERS = tuple(Tier(lane, SourcedValue("datasheet", 1e8)) for lane in (DISK, NET))
RESTORE = Restore(Prefill(SourcedValue("datasheet", 1e9), SourcedValue("datasheet", 1e-3)), TIERS)


def simulated(graph: TaskGraph) -> Timeline:
    """The predicted timeline of any graph, which an executor runs."""
    return simulate(graph, machine(restore=RESTORE))


SMALL = {**CONFIG, "num_hidden_layers": 2}
"""A config.json that a grid takes seconds for."""


def shorten_grids(patch: pytest.MonkeyPatch) -> None:
    """Profiles and speed probes of a few short samples, and no further repeats."""
    shorten_profiles(patch)
    patch.setattr(measure.grid, "EXTRA_REPEATS", 0)
    patch.setattr(measure.decode_grid, "PROBE_SAMPLES", 1)
    patch.setattr(measure.restore_grid, "PROBE_SAMPLES", 1)


@dataclass
class DecodeCase:
    """A graph, everything needed to run it, and what it must compute."""

    graph: TaskGraph
    weights: Weights
    cache: HostCache
    reference: ResidentDecode

    def executor(self, backend: Backend, graph: TaskGraph | None = None) -> DecodeExecutor:
        """Runs `graph`, by default the case's own."""
        predicted = simulated(graph or self.graph)
        return DecodeExecutor(predicted, self.weights, [self.cache], [self.reference], backend)


def decode_case(
    backend: Backend,
    model: ModelSpec = OPT,
    job: Workload = JOB,
    split: Sequence[Sequence[int]] | int = 5,
) -> DecodeCase:
    """A decode job of random weights.

    Args:
        split: recomputed tokens `[step][layer]`, or one count for all, at most the past tokens.
    """
    if isinstance(split, int):
        pasts = [job.context_tokens(step) for step in range(job.gen_tokens)]
        split = [[min(split, past)] * model.n_layers for past in pasts]
    graph = lower("row", model, job, split)
    weights = random_weights(model, 0, backend.device)
    cache = filled_cache(weights, job, backend)
    return DecodeCase(graph, weights, cache, resident_decode(weights, cache, job))
