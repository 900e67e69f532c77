"""What each policy recomputes, against published values and against trying every count."""

from __future__ import annotations

from fractions import Fraction

import pytest
from builders import examples, machine, make_plan, models, tiny_model
from hypothesis import given
from hypothesis import strategies as st

from planner.decode.policies import BASELINES, POLICIES, baseline_split, fixed_tokens, kvpr_tokens
from sim.catalog import find_hardware, find_model
from sim.errors import BadInput, UnknownName
from sim.graph.jobs import Workload

A100 = find_hardware("kvpr-a100")


@pytest.mark.parametrize(("link", "tokens"), [(1.0, 671), (2.0, 499)])
def test_kvpr_gives_the_values_of_its_released_scheduler(link, tokens):
    job = Workload(batch_size=32, prompt_tokens=1024, gen_tokens=1)
    hardware = A100.with_faster("link", link)
    assert kvpr_tokens(find_model("opt-13b"), job, hardware, 1024) == tokens


SPEEDS = st.sampled_from([0.01, 0.3, 1.0, 7.0, 100.0])


@given(models(), st.integers(1, 64), st.integers(0, 6), st.integers(1, 9), SPEEDS, SPEEDS)
@examples(150)
def test_kvpr_is_the_best_of_all_counts_up_to_the_prompt(model, prompt, more, batch, flops, link):
    job = Workload(batch, prompt, more + 1)
    hardware = machine(flops_per_s=1e9 * flops, h2d=1e8 * link)
    context = prompt + more
    bytes_per_s, flops_per_s = Fraction(1e8 * link), Fraction(1e9 * flops)
    element = model.element_bytes

    def objective(tokens):
        x_bytes = batch * tokens * model.hidden_size * element
        kv_bytes = 2 * batch * (context - tokens) * model.kv_size * element
        recompute = 4 * batch * tokens * model.hidden_size * model.kv_size
        return x_bytes / bytes_per_s + max(recompute / flops_per_s, kv_bytes / bytes_per_s)

    chosen = kvpr_tokens(model, job, hardware, context)
    assert 0 <= chosen <= prompt
    best = min(objective(tokens) for tokens in range(prompt + 1))
    # Equal but for rounding: two neighbouring counts can be as good as each other.
    assert objective(chosen) <= best * (1 + Fraction(1, 10**12))


@pytest.mark.parametrize("policy", ["lp", "kvpr"])
@pytest.mark.parametrize("name", ["llama-3.1-8b", "mistral-7b", "qwen3-8b"])
def test_where_x_is_larger_than_keys_and_values_nothing_is_recomputed(policy, name):
    plan = make_plan(find_model(name), A100, Workload(8, 512, 1), policy)
    assert set(plan.steps[0].recomputed_tokens) == {0}
    assert plan.makespan_s == pytest.approx(plan.baselines["load-all"])


def test_nothing_is_recomputed_where_x_is_exactly_as_large():
    model = tiny_model(n_heads=2, n_kv_heads=1)
    assert model.x_token_bytes == model.kv_token_bytes
    assert kvpr_tokens(model, Workload(2, 64, 1), machine(), 64) == 0


def test_baselines_split_every_step_by_their_own_rule():
    model, job = tiny_model(), Workload(2, 10, 3)
    hardware = machine(flops_per_s=1e15)

    def split(policy):
        return baseline_split(policy, model, job, hardware)

    assert split("load-all") == [[0, 0]] * 3
    assert split("recompute-all") == [[10, 10], [11, 11], [12, 12]]
    assert split("fixed:7") == [[7, 7]] * 3
    assert split("fixed:0") == split("load-all")
    # Recomputing is free here, but only X of the prompt is kept.
    assert split("kvpr") == [[10, 10]] * 3


@pytest.mark.parametrize("policy", POLICIES)
def test_a_named_policy_fixes_no_count(policy):
    assert fixed_tokens(policy) is None


@pytest.mark.parametrize(("policy", "count"), [("fixed:0", 0), ("fixed:256", 256)])
def test_a_fixed_policy_states_its_count(policy, count):
    assert fixed_tokens(policy) == count


@pytest.mark.parametrize(
    "policy", ["fixed", "fixed:", "fixed:-1", "fixed:1.5", "fixed:many", "fixed:1e3", "fixed:²"]
)
def test_a_fixed_policy_needs_a_whole_number(policy):
    with pytest.raises(BadInput, match="needs a whole number, as in fixed:256"):
        fixed_tokens(policy)


@pytest.mark.parametrize(
    ("wrong", "right"), [("load-al", "load-all"), ("kvrp", "kvpr"), ("recompute", "recompute-all")]
)
def test_an_unknown_policy_suggests_the_nearest(wrong, right):
    with pytest.raises(UnknownName, match=rf"policy '{wrong}' is unknown; did you mean '{right}'"):
        fixed_tokens(wrong)


def test_an_unknown_policy_stops_the_planner_at_once():
    with pytest.raises(UnknownName, match="policy 'best'"):
        make_plan(tiny_model(), machine(), Workload(1, 8, 1), "best")


def test_the_lp_is_no_baseline():
    assert "lp" not in BASELINES
    with pytest.raises(BadInput, match="needs the LP"):
        baseline_split("lp", tiny_model(), Workload(1, 8, 1), machine())


@pytest.mark.parametrize(
    ("name", "ceiling"), [("opt-6.7b", 0.648), ("opt-13b", 0.672), ("opt-30b", 0.712)]
)
def test_the_formula_reaches_its_own_ceiling(name, ceiling):
    """X first, then recomputation beside the rest: `1 - l*/(2 s')` of loading everything."""
    model, job = find_model(name), Workload(32, 1024, 1)
    tokens = baseline_split("kvpr", model, job, A100)[0][0]
    link = A100.links.h2d.bytes_per_s
    x_s, kv_s = (32 * size / link for size in (model.x_token_bytes, model.kv_token_bytes))
    recompute_s = 4 * 32 * model.hidden_size * model.kv_size / A100.gemm.flops_per_s
    split_s = tokens * x_s + max(tokens * recompute_s, (1024 - tokens) * kv_s)
    assert split_s / (1024 * kv_s) == pytest.approx(ceiling, abs=6e-4)
