"""The LP's optimum is the simulated makespan where costs are straight, and a bound elsewhere."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import pulp
import pytest
from builders import (
    bent_machines,
    examples,
    machine,
    make_plan,
    models,
    splits,
    straight_machines,
    tiny_model,
    uniform,
    workloads,
)
from hypothesis import assume, given
from hypothesis import strategies as st

from planner.decode.lower import lower
from planner.decode.planner import DecodePlanner
from planner.decode.policies import BASELINES
from planner.decode.problem import DecodeProblem
from planner.lp.costs import SIZED_OPS, PiecewiseLinearCosts
from planner.lp.lane_bound import Course, lane_work_bound
from planner.lp.schedule import ScheduleLP
from planner.lp.solver import lower_limits, solve_to_optimum
from sim.catalog import find_hardware, find_model
from sim.cost.model import CostModel
from sim.errors import PlannerFailed
from sim.graph.jobs import Workload
from sim.lanes import COMPUTE

JOBS = workloads(max_gen=2)


def schedule_lp(model, hardware, job):
    """The LP of every step of a job, and its cost model."""
    costs = CostModel(hardware, model, job)
    template = lower("row", model, job, uniform(model, job, 1))
    contexts = [job.context_tokens(step) for step in range(job.gen_tokens)]
    return ScheduleLP(template, contexts, costs, PiecewiseLinearCosts(costs, job.max_tokens))


def relaxed_s(model, hardware, job):
    return schedule_lp(model, hardware, job).solve().objective_s


def one_token_s(model, hardware, job):
    """The dearest single token: what rounding to whole tokens may cost in one layer."""
    costs = CostModel(hardware, model, job).operations
    load = costs.copy("h2d", costs.load_bytes("load_kv", 1) + costs.load_bytes("load_x", 1))
    made = [
        costs.compute(op, 1, 1).seconds
        for op in ("recompute", "dequantise")[: 1 + bool(job.kv_bits)]
    ]
    return load.seconds + sum(made)


@pytest.mark.parametrize("kv_bits", [None, 8, 4])
@given(models(), straight_machines(), JOBS)
@examples(30)
def test_the_optimum_is_reached_up_to_rounding_to_whole_tokens(kv_bits, model, hardware, job):
    # The LP's template recomputes a token of each layer: of one token it has nothing to load.
    assume(kv_bits is None or job.prompt_tokens > 1)
    job = replace(job, kv_bits=kv_bits)
    plan = make_plan(model, hardware, job)
    assert plan.lp_objective_s == pytest.approx(plan.makespan_s, rel=1e-6)
    assert plan.lower_bound_s <= plan.makespan_s * (1 + 1e-9)
    rounding = 2 * one_token_s(model, hardware, job)
    assert plan.makespan_s <= plan.lower_bound_s * (1 + 1e-3) + rounding


@given(models(), straight_machines(), JOBS, st.data())
@examples(40)
def test_with_its_counts_fixed_the_lp_is_the_longest_path(model, hardware, job, data):
    assume(job.prompt_tokens > 1)
    # X of generated tokens is stored only where it is used: stay within the prompt.
    prompt_only = Workload(job.batch_size, job.prompt_tokens, 1)
    row = data.draw(splits(model, prompt_only))[0]
    split = [row] * job.gen_tokens
    lp = schedule_lp(model, hardware, job)
    for (_, layer), count in lp.tokens.items():
        count.lowBound = count.upBound = row[layer]
    problem = DecodeProblem(model, hardware, job)
    path_s = problem.longest_path_s(problem.simulate(split).graph)
    assert lp.solve().objective_s == pytest.approx(path_s, rel=1e-6)


@given(models(), straight_machines(), JOBS)
@examples(25)
def test_no_uniform_split_beats_the_plan(model, hardware, job):
    plan, planner = (
        make_plan(model, hardware, job),
        DecodePlanner(DecodeProblem(model, hardware, job)),
    )
    rounding = one_token_s(model, hardware, job)
    for point in range(33):
        split = uniform(model, job, round(point * job.max_tokens / 32))
        makespan_s = planner.problem.simulate(split).makespan_s
        assert plan.makespan_s <= makespan_s * 1.005 + rounding
        assert plan.lower_bound_s <= makespan_s * (1 + 1e-9)


@given(models(max_layers=1), straight_machines(), workloads(max_gen=1))
@examples(60)
def test_of_one_layer_the_plan_takes_the_best_whole_count(model, hardware, job):
    plan, planner = (
        make_plan(model, hardware, job),
        DecodePlanner(DecodeProblem(model, hardware, job)),
    )
    counts = range(job.prompt_tokens + 1)
    best_s = min(planner.problem.simulate([[count]]).makespan_s for count in counts)
    assert plan.makespan_s <= best_s * 1.001 + 0.5 * one_token_s(model, hardware, job)


@pytest.mark.parametrize("kv_bits", [None, 4])
@given(models(), bent_machines(), JOBS, st.data())
@examples(30)
def test_where_costs_are_bent_the_bound_still_holds_for_any_split(
    kv_bits, model, hardware, job, data
):
    job = replace(job, kv_bits=kv_bits)
    planner = DecodePlanner(DecodeProblem(model, hardware, job))
    split = data.draw(splits(model, job))
    makespan_s = planner.problem.simulate(split).makespan_s * (1 + 1e-9)
    assert planner.lower_bound_s() <= makespan_s
    assert planner.problem.lane_work_s(split, planner.problem.least_resident) <= makespan_s


@given(models(), straight_machines(), JOBS, st.sampled_from([1e-4, 1e-2, 1e2, 1e4]))
@examples(40)
def test_the_optimum_does_not_depend_on_the_unit_of_time(model, hardware, job, factor):
    other = hardware.with_faster("compute", factor).with_faster("link", factor)
    expected = relaxed_s(model, hardware, job) / factor
    assert relaxed_s(model, other, job) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("heads", "job", "flops_per_s", "memory_bytes_per_s", "h2d", "d2h"),
    [
        (2, Workload(2, 8, 2), 7.5e7, 2e8, 2.5e6, 3e6),
        (1, Workload(2, 5, 2), 7.5e6, 1.25e8, 6e6, 3e6),
        (1, Workload(1, 2, 1), 3.75e7, 2.5e7, 6e6, 4e6),
    ],
)
def test_a_job_of_microseconds_is_planned_like_any_other(
    heads, job, flops_per_s, memory_bytes_per_s, h2d, d2h
):
    model = tiny_model(
        n_layers=1, n_heads=heads, n_kv_heads=heads, hidden_size=4 * heads, gated_mlp=True
    )
    hardware = machine(
        flops_per_s=flops_per_s, memory_bytes_per_s=memory_bytes_per_s, h2d=h2d, d2h=d2h
    )
    plan = make_plan(model, hardware, job)
    assert plan.lower_bound_s <= plan.makespan_s <= min(plan.baselines[name] for name in BASELINES)


def lane_shares(model, hardware, job):
    """The makespan, and its derivative with respect to a factor on all times of each lane."""
    costs, lp = CostModel(hardware, model, job), schedule_lp(model, hardware, job)
    found = lp.solve(choose=False)
    seconds = lp.seconds(found, costs, PiecewiseLinearCosts(costs, job.max_tokens))
    shares = dict.fromkeys(("compute", "h2d", "d2h"), 0.0)
    for task, weight, task_s in zip(lp.graph.tasks, found.task_weights, seconds, strict=True):
        shares[task.lane] += weight * task_s
    return found.objective_s, shares


@pytest.mark.parametrize("part", ["h2d", "d2h", "compute"])
@given(models(), straight_machines(), JOBS)
@examples(10)
def test_a_lane_share_predicts_what_a_faster_part_saves(part, model, hardware, job):
    before_s, before = lane_shares(model, hardware, job)
    after_s, after = lane_shares(model, hardware.with_faster(part, 1.01), job)
    saved = before_s - after_s
    # What is tight can change on the way: the saving lies between the shares at both ends.
    ends = before[part], 1.01 * after[part]
    low, high = sorted(share * (1 - 1 / 1.01) for share in ends)
    slack = 2e-5 * before_s
    assert 0.99 * low - slack <= saved <= 1.01 * high + slack


@given(models(), straight_machines(), JOBS)
@examples(25)
def test_the_shares_of_all_lanes_add_up_to_the_makespan(model, hardware, job):
    makespan_s, shares = lane_shares(model, hardware, job)
    assert min(shares.values()) >= -1e-9 * makespan_s
    assert sum(shares.values()) == pytest.approx(makespan_s, rel=1e-6)


def test_a_large_model_with_many_equal_optima_gets_an_even_split():
    job = Workload(batch_size=32, prompt_tokens=1024, gen_tokens=1)
    model, hardware = find_model("opt-13b"), find_hardware("kvpr-a100")
    plan = make_plan(model, hardware, job)
    (counts,) = (step.recomputed_tokens for step in plan.steps)
    relaxed = DecodePlanner(DecodeProblem(model, hardware, job)).relaxation.tokens
    assert sum(counts) == pytest.approx(sum(relaxed.values()), abs=0.51)
    middle = counts[2:-2]
    assert max(middle) - min(middle) <= 0.05 * 1024
    assert plan.makespan_s < 0.97 * plan.baselines["kvpr"]
    assert plan.makespan_s == pytest.approx(plan.lower_bound_s, rel=1e-3)


def test_names_are_unique_and_readable():
    bent = find_hardware("cpu-xeon-opt-125m")
    problem = schedule_lp(tiny_model(), bent, Workload(2, 8, 2)).problem
    variables = [variable.name for variable in problem.variables()]
    rows = [row.name for row in problem.constraints()]
    for names in (variables, rows):
        assert len(set(names)) == len(names)
        assert all(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) for name in names)
    expected = {"makespan", "recomputed_s1_L0", "start_s0_L1_attention", "time_s1_L1_load_kv"}
    assert expected <= set(variables)
    expected = {"cost_s0_L1_recompute_0", "after_s0_L0_load_kv__s0_L0_attention"}
    assert expected <= set(rows)
    assert "after_s1_head__end" in rows


def test_only_starts_that_wait_for_several_tasks_are_variables_where_costs_are_straight():
    lp = schedule_lp(tiny_model(), machine(), Workload(2, 8, 1))
    several = {"L0_recompute", "L0_attention", "L1_recompute", "L1_attention", "L1_store_kv"}
    assert {variable.name for variable in lp.problem.variables()} == {
        "makespan",
        "recomputed_s0_L0",
        "recomputed_s0_L1",
        *(f"start_s0_{task}" for task in several),
    }


@pytest.mark.parametrize(("given_value", "rows"), [(0.0, "bc"), (3.0, "bd"), (4.0, "d")])
def test_a_row_limits_a_variable_if_no_other_demands_more(given_value, rows):
    problem = pulp.LpProblem("three", pulp.LpMinimize)
    given, first, last = (problem.add_variable(name, 0) for name in ("given", "first", "last"))
    demands = {
        "a": first + given >= 2,
        "b": first + 2 * given >= 8,
        "c": last - first >= 1,
        "d": last >= 4,
    }
    limits = lower_limits(demands.values(), {given: given_value})
    assert {name for name, row in demands.items() if row in limits.values()} == set(rows)
    assert all(next(iter(row)) is variable for variable, row in limits.items())


@given(models(), straight_machines(), JOBS)
@examples(20)
def test_the_solver_starts_from_the_schedule_that_loads_everything(model, hardware, job):
    assume(job.prompt_tokens > 1)
    lp = schedule_lp(model, hardware, job)
    for count in lp.tokens.values():
        count.upBound = 0
    loaded_s = lp.solve(choose=False).objective_s
    assert lp.problem.solverModel.getInfo().simplex_iteration_count == 0
    problem = DecodeProblem(model, hardware, job)
    graph = problem.simulate(uniform(model, job, 0)).graph
    assert loaded_s == pytest.approx(problem.longest_path_s(graph), rel=1e-6)


@given(models(), bent_machines(), straight_machines(), JOBS)
@examples(20)
def test_the_optimum_does_not_depend_on_the_start(model, hardware, other, job):
    lp = schedule_lp(model, hardware, job)
    solve_to_optimum(lp.problem)
    makespan = lp.makespan.value()
    for start in (None, schedule_lp(model, other, job).solve(choose=False)):
        lp.solve(choose=False, start=start)
        assert lp.makespan.value() == pytest.approx(makespan, rel=1e-7)


def test_an_lp_without_a_solution_is_an_error_and_not_a_plan_of_zeros():
    lp = schedule_lp(tiny_model(), machine(), Workload(2, 8, 1))
    lp.makespan.upBound = 0.0
    with pytest.raises(PlannerFailed, match="LP 'decode' ended 'Infeasible'"):
        lp.solve()


def test_a_lane_bound_without_a_solution_is_an_error_too():
    lines = PiecewiseLinearCosts(CostModel(machine(), tiny_model(), Workload(1, 8, 1)), 9)
    with pytest.raises(PlannerFailed, match="LP 'lane_work' ended 'Infeasible'"):
        lane_work_bound(lines, {Course(0, (-8,), True): 2}, 0.0, 0.0)


@pytest.mark.parametrize("other_s", [0.0, 0.001, 1.0])
def test_the_lane_bound_is_the_best_balance_of_link_and_compute(other_s):
    model, job, layers = tiny_model(), Workload(2, 50, 2), 2
    hardware = machine(flops_per_s=2e7, h2d=2e6)
    lines = PiecewiseLinearCosts(CostModel(hardware, model, job), job.max_tokens)
    x_s, kv_s = lines.seconds("load_x", 1, 0), lines.seconds("load_kv", 1, 0)
    recompute_s = lines.seconds("recompute", 1, 0)
    past = 50 + 51
    # Linear in the recomputed tokens of all steps: best at no, at all, or where the lanes are even.
    even = (layers * past * kv_s - other_s) / (layers * (recompute_s + kv_s - x_s))
    tokens = min(max(even, 0.0), past)
    link_s = layers * (tokens * x_s + (past - tokens) * kv_s)
    expected = max(link_s, other_s + layers * tokens * recompute_s)
    bound_s = lane_work_bound(lines, {Course(0, (50, 51), True): layers}, other_s, 0.0)
    assert bound_s == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kv_bits", [None, 8])
@given(models(), bent_machines(), workloads(max_gen=4), st.data())
@examples(30)
def test_no_split_beats_the_work_of_its_lanes(kv_bits, model, hardware, job, data):
    job = replace(job, kv_bits=kv_bits)
    costs = CostModel(hardware, model, job)
    graph = lower("row", model, job, data.draw(splits(model, job)))
    fixed = [one for one in graph.tasks if one.lane == COMPUTE and one.op not in SIZED_OPS]
    other_s = sum(costs.estimate(one).seconds for one in fixed)
    contexts = [job.context_tokens(step) for step in range(job.gen_tokens)]
    lines = PiecewiseLinearCosts(costs, job.max_tokens)
    courses = {Course(0, tuple(contexts), True): model.n_layers}
    bound_s = lane_work_bound(lines, courses, other_s, 0.0)
    assert bound_s >= other_s * (1 - 1e-9)
    makespan_s = DecodeProblem(model, hardware, job).simulate(graph_split(graph)).makespan_s
    assert bound_s <= makespan_s * (1 + 1e-9)


def graph_split(graph):
    """The split that a graph was lowered from."""
    steps = range(graph.workload.gen_tokens)
    split = [[0] * graph.model.n_layers for _ in steps]
    for one in graph.tasks:
        if one.op == "recompute":
            split[one.step][one.layer] = one.n_tokens
    return split


@given(models(), bent_machines(), workloads())
@examples(40)
def test_cost_lines_never_lie_above_the_cost_and_touch_it_at_both_ends(model, hardware, job):
    lines = PiecewiseLinearCosts(CostModel(hardware, model, job), job.max_tokens)
    for op in SIZED_OPS:
        slopes = [slope for _, slope in lines.of(op, 0)]
        assert all(early <= late * (1 + 1e-9) for early, late in pairwise(slopes))
        for count in range(job.max_tokens + 1):
            hull = max(base + slope * count for base, slope in lines.of(op, 0))
            exact = lines.seconds(op, count, 0)
            assert hull <= exact * (1 + 1e-9) + 1e-15
            if count in (0, job.max_tokens):
                assert hull == pytest.approx(exact, rel=1e-9, abs=1e-15)
