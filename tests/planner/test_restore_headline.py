"""The first sentence of a restore's answer, over plans whose numbers are set by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner import Job, PlanOptions, make_plan
from planner.restore import restore_headline
from sim.catalog import find_hardware, find_model
from sim.graph.jobs import RestoreRequest

TIMES = {"compute-only": 0.3, "load-only": 0.2, "two-ended": 0.1, "lp": 0.1, "layer-wise": 0.25}


@pytest.fixture(scope="module")
def plan():
    model = replace(find_model("opt-125m"), n_layers=2)
    request = RestoreRequest(1000, cached_tokens=900, chunk_tokens=100)
    made = make_plan(Job(model, find_hardware("h100-sxm+pcie5-x16"), request), PlanOptions())
    return replace(made, baselines={**TIMES, "joint": 0.1})


def said(plan, computed, projected, seconds, policy="auto", bits=16, **baselines):
    counts = {"computed_tokens": computed, "projected_tokens": projected}
    return restore_headline(
        replace(
            plan,
            policy=policy,
            ttft_s=seconds,
            workload=replace(plan.workload, tier_kv_bits=bits),
            loaded_tokens=1000 - computed - projected,
            baselines={**plan.baselines, **baselines},
            **counts,
        )
    )


def test_the_parts_of_the_prompt_come_first(plan):
    half = ": first token after 100.0 ms, 2.00 times as fast as loading alone."
    assert said(plan, 400, 0, 0.1) == f"Compute 400 of 1,000 tokens and load the rest{half}"
    assert said(plan, 400, 600, 0.1) == f"Compute 400 of 1,000 tokens, project 600 from X{half}"
    in_bits = "Compute 400 of 1,000 tokens, project 200 from X and load the rest in 4 bits"
    assert said(plan, 400, 200, 0.1, bits=4) == f"{in_bits}{half}"


def test_one_end_alone_is_compared_with_the_other(plan):
    slower = dict.fromkeys(("two-ended", "lp", "layer-wise", "joint"), 0.4)
    assert said(plan, 1000, 0, 0.1, **{**slower, "compute-only": 0.1}) == (
        "Compute the whole prompt: first token after 100.0 ms; loading alone takes 200.0 ms."
    )
    assert said(plan, 100, 0, 0.2, **slower) == (
        "Load every cached token and compute the other 100: first token after 200.0 ms; computing "
        "alone takes 300.0 ms."
    )
    by_layer = said(plan, 100, 0, 0.1, **{**slower, "layer-wise": 0.1})
    assert by_layer.startswith("Load every cached token layer by layer and compute the other 100: ")
    assert by_layer.endswith(", 2.00 times as fast as loading alone.")


def test_a_policy_that_another_one_beats_names_it(plan):
    assert said(plan, 100, 0, 0.2, policy="load-only", joint=0.09).endswith(
        ": first token after 200.0 ms; joint is the fastest, 90.0 ms."
    )
    within = said(plan, 400, 0, 0.1, policy="lp", joint=0.0996)
    assert within.endswith(", 2.00 times as fast as loading alone.")
