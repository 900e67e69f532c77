"""A layer with a sliding window holds, moves and attends to its window and nothing more."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest
from builders import examples, machine, make_plan, straight_machines, tiny_model
from hypothesis import example, given
from hypothesis import strategies as st

from planner import Job, plan_split
from planner.decode.fast_planner import ShortcutPlanner
from planner.decode.lower import lower
from planner.decode.other_systems import OTHER_SYSTEMS, other_system_graph
from planner.decode.plan import DecodePlan
from planner.decode.planner import DecodePlanner
from planner.decode.policies import BASELINES, baseline_split
from planner.decode.problem import DecodeProblem
from sim.cost.model import CostModel
from sim.errors import BadFile, BadInput
from sim.graph.jobs import Workload
from sim.graph.memory import footprint, layer_rows
from sim.lanes import COMPUTE
from sim.model.operations import compute_flops
from sim.model.spec import ModelSpec

MIXED = tiny_model(sliding_window=4, full_attention_layers=(1,))
"""Layer 0 sees three past tokens and the new one, layer 1 sees everything."""
JOB = Workload(batch_size=2, prompt_tokens=8, gen_tokens=3)
SLOW_STORES = {"flops_per_s": 1e8, "memory_bytes_per_s": 2e8, "h2d": 5.3e6, "d2h": 1.6e6}


@st.composite
def windowed_models(draw) -> ModelSpec:
    n_layers = draw(st.integers(1, 4))
    full = draw(st.sets(st.integers(0, n_layers - 1)))
    window = draw(st.integers(2, 12))
    return tiny_model(
        n_layers=n_layers, sliding_window=window, full_attention_layers=tuple(sorted(full))
    )


def in_chunks(model) -> ModelSpec:
    """The model with chunks instead of windows, which its short description does not have."""
    layers = [
        replace(one, attention=replace(one.attention, chunked=one.attention.window is not None))
        for one in model.layers
    ]
    kinds = tuple(dict.fromkeys(layers))
    order = tuple(map(kinds.index, layers))
    plain = replace(model, sliding_window=None, full_attention_layers=())
    return replace(plain, layer_kinds=kinds, layer_order=order)


@st.composite
def cases(draw):
    """Model, job, any split of it, and the graph of the split."""
    model = draw(windowed_models())
    job = Workload(draw(st.integers(1, 3)), draw(st.integers(1, 12)), draw(st.integers(1, 4)))
    split = [
        [
            draw(st.integers(0, model.layer_context(layer, job.context_tokens(step))))
            for layer in range(model.n_layers)
        ]
        for step in range(job.gen_tokens)
    ]
    return model, job, split, lower("row", model, job, split)


@pytest.mark.parametrize(
    ("past", "first", "context"), [(0, 0, 0), (2, 0, 2), (3, 0, 3), (4, 1, 3), (9, 6, 3)]
)
def test_a_window_counts_the_new_token(past, first, context):
    assert (MIXED.first_token(0, past), MIXED.layer_context(0, past)) == (first, context)
    assert (MIXED.first_token(1, past), MIXED.layer_context(1, past)) == (0, past)


def test_a_split_takes_the_front_of_the_window_by_hand():
    graph = lower("row", MIXED, JOB, [[2, 5], [0, 9], [3, 0]])
    ranges = {
        one.id: (one.token_start, one.token_stop)
        for one in graph.tasks
        if one.op in ("load_x", "recompute", "load_kv")
    }
    assert ranges == {
        "s0.L0.load_x": (5, 7),
        "s0.L0.recompute": (5, 7),
        "s0.L0.load_kv": (7, 8),
        "s0.L1.load_x": (0, 5),
        "s0.L1.recompute": (0, 5),
        "s0.L1.load_kv": (5, 8),
        "s1.L0.load_kv": (6, 9),
        "s1.L1.load_x": (0, 9),
        "s1.L1.recompute": (0, 9),
        "s2.L0.load_x": (7, 10),
        "s2.L0.recompute": (7, 10),
        "s2.L1.load_kv": (0, 10),
    }
    stored = {one.id for one in graph.tasks if one.op == "store_x"}
    assert stored == {"s0.L0.store_x", "s0.L1.store_x", "s1.L0.store_x"}


@given(cases())
@examples(60)
def test_bytes_and_flops_are_those_of_what_each_layer_attends_to(case):
    model, job, split, graph = case
    total, flops = defaultdict(int), 0
    for one in graph.tasks:
        total[one.op] += one.bytes
        flops += one.flops
    contexts = [
        [model.layer_context(layer, job.context_tokens(step)) for layer in range(model.n_layers)]
        for step in range(job.gen_tokens)
    ]
    recomputed, batch = sum(map(sum, split)), job.batch_size
    assert total["load_x"] == batch * recomputed * model.x_token_bytes
    assert total["load_kv"] == batch * (sum(map(sum, contexts)) - recomputed) * model.kv_token_bytes
    expected = 4 * batch * recomputed * model.hidden_size * model.kv_size
    for row in contexts:
        expected += compute_flops("head", 1, 1, model, batch)
        for context in row:
            ops = ("qkv", "attention", "mlp")
            expected += sum(compute_flops(op, 1, context + 1, model, batch) for op in ops)
    assert flops == expected


@given(cases())
@examples(60)
def test_x_of_a_new_token_is_stored_exactly_if_a_later_step_recomputes_it(case):
    _, job, _, graph = case
    stored = {(one.layer, one.token_start) for one in graph.tasks if one.op == "store_x"}
    needed = {
        (one.layer, token)
        for one in graph.tasks
        if one.op == "recompute"
        for token in range(max(one.token_start, job.prompt_tokens), one.token_stop)
    }
    assert stored == needed


def test_attention_is_priced_by_its_window():
    costs = CostModel(machine(), MIXED, JOB)
    graph = lower("row", MIXED, JOB, [[0, 0]] * 3)
    attention = {one.layer: one for one in graph.tasks if one.op == "attention" and one.step == 2}
    assert costs.estimate(attention[0]) == costs.operations.compute("attention", 1, 4)
    assert costs.estimate(attention[1]) == costs.operations.compute("attention", 1, 11)


def test_memory_holds_the_window_and_the_new_tokens_by_hand():
    assert [layer_rows(MIXED, JOB, layer) for layer in (0, 1)] == [3 + 3, 8 + 3]
    need = footprint(lower("row", MIXED, JOB, [[3, 3]] * 3))
    # Everything that the window holds is recomputed: K and V of the 3 new tokens alone, X of all
    # but the last. Of the layer that attends to all tokens 3 are recomputed.
    assert need.host_kv_bytes == 2 * (3 + 8) * 32
    assert need.host_x_bytes == 2 * (5 + 3) * 16
    # Two slots, one for each layer.
    assert need.kv_slot_bytes == 2 * (6 + 11) * 32
    assert need.x_slot_bytes == 2 * 2 * (3 + 1) * 16


@pytest.mark.parametrize(
    ("policy", "rows"),
    [
        ("load-all", [[0, 0]] * 3),
        ("recompute-all", [[3, 8], [3, 9], [3, 10]]),
        ("fixed:5", [[3, 5]] * 3),
        ("fixed:2", [[2, 2]] * 3),
    ],
)
def test_a_policy_recomputes_at_most_what_a_layer_attends_to(policy, rows):
    assert baseline_split(policy, MIXED, JOB, machine()) == rows


def test_transformers_offloads_the_window_alone_by_hand():
    graph = other_system_graph("hf-offloaded", MIXED, JOB)
    copies = {one.id: (one.token_start, one.token_stop) for one in graph.tasks if one.bytes}
    assert copies["s1.L0.load_kv"] == (6, 9)
    assert copies["s1.L0.store_kv"] == (7, 10)
    assert copies["s1.L1.load_kv"] == (0, 9)
    assert copies["s1.L1.store_kv"] == (0, 10)


@given(straight_machines(), st.integers(1, 12), st.integers(1, 3), st.integers(1, 5))
@examples(10)
def test_a_window_longer_than_the_text_changes_no_prediction(hardware, prompt, gen, more):
    job, plain = Workload(2, prompt, gen), tiny_model()
    wide = replace(plain, sliding_window=job.max_tokens + more)
    for policy in ("lp", *OTHER_SYSTEMS):
        ours, theirs = (make_plan(one, hardware, job, policy) for one in (wide, plain))
        assert ours.baselines == theirs.baselines
        assert ours.steps == theirs.steps
        assert ours.makespan_s == theirs.makespan_s
        assert ours.lower_bound_s == theirs.lower_bound_s
        assert footprint(ours.lower()) == footprint(theirs.lower())


@given(windowed_models(), st.booleans(), straight_machines(), st.integers(1, 12), st.integers(1, 3))
@example(tiny_model(n_layers=1, sliding_window=2), False, machine(**SLOW_STORES), 9, 2)
@example(tiny_model(n_layers=1, sliding_window=3), True, machine(**SLOW_STORES), 7, 3)
@examples(12)
def test_no_bound_exceeds_a_baseline_or_the_plan_of_short_windows(
    model, chunks, hardware, prompt, gen
):
    """Where a window begins with a generated token, the LP's graph stores an X that no plan needs.

    Prompts of one token, and chunks that begin before a step, leave a layer one row to read.
    """
    problem = DecodeProblem(
        in_chunks(model) if chunks else model, hardware, Workload(2, prompt, gen)
    )
    planner, shortcut = DecodePlanner(problem), ShortcutPlanner(problem)
    bounds_s = [planner.lower_bound_s(), shortcut.bound_s or 0.0]
    splits = [problem.choice_of(name).split for name in BASELINES]
    for split in (*splits, planner.best.split, shortcut.best.split):
        assert max(bounds_s) <= problem.simulate(split).makespan_s * (1 + 1e-9)


@given(cases(), straight_machines())
@examples(15)
def test_no_split_of_a_windowed_model_beats_the_bound_or_the_lp(case, hardware):
    model, job, split, _ = case
    planner = DecodePlanner(DecodeProblem(model, hardware, job))
    makespan_s = planner.problem.simulate(split).makespan_s
    assert planner.lower_bound_s() <= makespan_s * (1 + 1e-6)
    best = planner.best
    assert len(best.split) == job.gen_tokens
    assert planner.problem.simulate(best.split).makespan_s <= makespan_s * 1.05 + 1e-6


def test_a_long_job_is_bounded_by_the_work_of_its_windows():
    job = Workload(2, 40, 9)
    model = tiny_model(sliding_window=16, full_attention_layers=(1,))
    planner = DecodePlanner(DecodeProblem(model, machine(flops_per_s=2e7, h2d=2e6), job))
    assert not planner.problem.covers_all_steps
    makespan_s = planner.problem.simulate(planner.best.split).makespan_s
    assert 0.9 * makespan_s <= planner.lower_bound_s() <= makespan_s
    fixed_s = sum(
        planner.problem.costs.estimate(one).seconds
        for one in planner.problem.simulate([[0, 0]] * 9).graph.tasks
        if one.lane == COMPUTE
    )
    assert planner.lower_bound_s() >= fixed_s


def test_the_parts_of_a_layer_add_up_to_its_window(tmp_path):
    plan = make_plan(MIXED, machine(), JOB, "load-all")
    assert [step.layer_tokens for step in plan.steps] == [(3, 8), (3, 9), (3, 10)]
    plan.save(tmp_path / "plan.json")
    assert DecodePlan.load(tmp_path / "plan.json").simulated_graph().sha256 == plan.graph_sha256
    longer = replace(plan.steps[0], loaded_tokens=(4, 8))
    replace(plan, steps=(longer, *plan.steps[1:])).save(tmp_path / "plan.json")
    with pytest.raises(BadFile, match=r"steps\[0\], layer 0: .* add up to 4 and must add up to 3"):
        DecodePlan.load(tmp_path / "plan.json")


def test_recomputing_more_than_the_window_is_refused_with_the_place():
    with pytest.raises(BadInput, match=r"\(=4\) of step 0, layer 0 .* the 3 attended past tokens"):
        plan_split(Job(MIXED, machine(), JOB), [[4, 8], [3, 9], [3, 10]])
