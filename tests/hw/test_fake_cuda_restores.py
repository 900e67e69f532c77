"""A restore on a GPU asks nothing of it that CUDA refuses, and never waits in a timed region."""

from __future__ import annotations

from dataclasses import replace

import pytest
from run_restores import POLICIES, RestoreCase, policy_graphs, request
from tiny import DEEPSEEK, EXPERTS, GEMMA, GPT_OSS, LLAMA, OPT

from hw import open_tier
from hw.run.adaptive_split import AdaptiveSplit
from planner.restore.lower import two_ended_graph
from sim.graph.claims import claimed

WINDOWED = replace(LLAMA, name="tiny-windows", sliding_window=11, full_attention_layers=(1,))

RESTORES = {
    "shared": (OPT, {"gpu_share": 0.25}, POLICIES),
    "bfloat16": (replace(LLAMA, dtype="bfloat16"), {}, POLICIES),
    "windows-net": (WINDOWED, {"tier": "net"}, ("two-ended", "layer-wise", "joint")),
    "gemma": (replace(GEMMA, dtype="bfloat16"), {}, ("two-ended",)),
    "sinks": (replace(GPT_OSS, dtype="bfloat16"), {}, ("two-ended",)),
    "latents": (replace(DEEPSEEK, dtype="bfloat16"), {}, ("two-ended",)),
    "experts": (replace(EXPERTS, dtype="bfloat16"), {}, ("two-ended",)),
    "float16-ssd": (replace(OPT, dtype="float16"), {"tier": "ssd"}, ("two-ended", "joint")),
}


@pytest.mark.parametrize(
    ("model", "changes", "policy"),
    [
        pytest.param(model, changes, policy, id=f"{name}-{policy}")
        for name, (model, changes, policies) in RESTORES.items()
        for policy in policies
    ],
)
def test_a_restore_of_every_policy(cuda, model, changes, policy):
    case = RestoreCase.of(cuda, model, request(**changes))
    graph = policy_graphs(model, case.job)[policy]
    with open_tier(case.job, case.weights, case.reference) as tier:
        executor = case.executor(graph, tier)
        timeline = executor.run()
        executor.check()
    done = [one for one in claimed(timeline.graph, timeline.start_s) if one.claim]
    loaded = sum(one.n_tokens for one in done if one.op in ("prefill", "load_kv"))
    assert loaded in (0, case.job.cached_tokens)


def test_a_split_that_moves_while_it_is_restored(cuda):
    case = RestoreCase.of(cuda, OPT, request())
    graph = two_ended_graph(OPT, case.job)
    split = AdaptiveSplit(graph, 8, lambda _task, _seconds, _standing: 24)
    executor = case.executor(graph)
    executor.run(claim_policy=split)
    assert executor.check()["tokens_equal"] is True
    assert split.changes
