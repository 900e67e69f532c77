"""Plans are at least as good as every simple policy, bounded from below, and refused in time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import (
    bent_machines,
    dispatch,
    examples,
    machine,
    make_plan,
    models,
    slowed,
    splits,
    straight_machines,
    tiny_model,
    uniform,
    workloads,
)
from hypothesis import given
from hypothesis import strategies as st

from planner.decode.other_systems import OTHER_SYSTEMS
from planner.decode.planner import DecodePlanner
from planner.decode.policies import BASELINES, POLICIES
from planner.decode.problem import DecodeProblem
from planner.decode.rounding import MAX_LP_STEPS
from planner.decode.sensitivity import sensitivities
from planner.parts import PARTS
from sim.catalog import find_hardware, find_model
from sim.engine.api import simulate
from sim.errors import BadInput, DoesNotFit, UnknownName
from sim.graph.jobs import Workload
from sim.graph.memory import footprint
from sim.graph.timeline import earliest_schedule
from sim.lanes import COMPUTE, D2H, H2D

A100 = find_hardware("kvpr-a100")
SPLITS = ("lp", *BASELINES)
MACHINE_PARTS = [part for part in PARTS if part not in ("host", "uplink", "memory")]
BOTH_WAYS = (slowed(H2D, D2H, 0.6), slowed(D2H, H2D, 0.6))


@st.composite
def real_machines(draw):
    """Machines with everything the LP leaves out or only bounds: host, pauses, interference."""
    cost = st.sampled_from([0.0, 1e-4, 2e-3])
    names = ("task_s", "kernel_s", "copy_s", "gap_s", "handover_s")
    costs = dispatch(**{name: draw(cost) for name in names})
    interference = draw(st.sampled_from([(), BOTH_WAYS]))
    return replace(draw(bent_machines()), dispatch=costs, interference=interference)


@given(models(4), bent_machines(), workloads(max_gen=7))
@examples(20)
def test_the_plan_is_no_slower_than_any_baseline(model, hardware, job):
    plan = make_plan(model, replace(hardware, interference=BOTH_WAYS), job)
    assert set(plan.baselines) == {*BASELINES, "lp", "resident", *OTHER_SYSTEMS}
    assert plan.makespan_s == plan.baselines["lp"]
    assert plan.makespan_s <= min(plan.baselines[name] for name in BASELINES) * (1 + 1e-12)


@given(models(4), real_machines(), workloads(max_gen=7), st.sampled_from(["lp", *BASELINES]))
@examples(40)
def test_the_lower_bound_holds_on_any_machine(model, hardware, job, policy):
    plan = make_plan(model, hardware, job, policy)
    assert plan.lower_bound_s <= min(plan.baselines[name] for name in SPLITS) * (1 + 1e-9)
    assert plan.lower_bound_s <= plan.makespan_s * (1 + 1e-9)


@pytest.mark.parametrize("pause", ["gap_s", "handover_s", "task_s"])
@pytest.mark.parametrize(("name", "gen_tokens"), [("opt-125m", 2), ("llama-3.1-8b", 1)])
def test_pauses_around_tasks_that_a_split_leaves_out_do_not_raise_the_bound(
    name, gen_tokens, pause
):
    hardware = replace(A100, dispatch=dispatch(**{pause: 2e-5}))
    plan = make_plan(find_model(name), hardware, Workload(1, 64, gen_tokens))
    assert plan.lower_bound_s <= min(plan.baselines[name] for name in SPLITS) * (1 + 1e-9)


@given(models(4), real_machines(), workloads(), st.sampled_from([*POLICIES, "fixed:1"]))
@examples(30)
def test_a_plan_states_what_simulating_it_gives(model, hardware, job, policy):
    plan = make_plan(model, hardware, job, policy)
    timeline = simulate(plan.lower(), hardware)
    assert plan.graph_sha256 == timeline.graph.sha256
    assert plan.makespan_s == pytest.approx(timeline.makespan_s, rel=1e-12)
    problem = DecodeProblem(model, hardware, job)
    longest_s = problem.longest_path_s(timeline.graph)
    assert plan.lp_objective_s == pytest.approx(longest_s, rel=1e-9)
    assert plan.lp_objective_s <= plan.makespan_s * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_a_long_job_planned_at_a_few_steps_is_as_good_as_the_best_uniform_split(seed):
    job = Workload(batch_size=1 + seed % 3, prompt_tokens=20 + 17 * seed, gen_tokens=12)
    assert job.gen_tokens > MAX_LP_STEPS
    model = tiny_model(n_layers=4 + seed % 3, rotary=bool(seed % 2))
    hardware = machine(
        flops_per_s=2e7 * 1.7 ** (seed % 4), memory_bytes_per_s=1e8, h2d=2e6, d2h=2e6
    )
    plan, planner = (
        make_plan(model, hardware, job),
        DecodePlanner(DecodeProblem(model, hardware, job)),
    )
    assert len(plan.steps) == job.gen_tokens
    assert plan.lower_bound_s <= plan.makespan_s * (1 + 1e-9)
    grid = {
        count: planner.problem.simulate(uniform(model, job, count)).makespan_s
        for count in (round(point * job.max_tokens / 16) for point in range(17))
    }
    assert plan.makespan_s <= min(grid.values()) * 1.005
    assert plan.lower_bound_s <= min(grid.values()) * (1 + 1e-9)


@given(models(4), straight_machines(), st.integers(6, 16), st.data())
@examples(15)
def test_the_bound_of_a_long_job_holds_for_any_split(model, hardware, gen_tokens, data):
    planner = DecodePlanner(DecodeProblem(model, hardware, Workload(2, 24, gen_tokens)))
    split = data.draw(splits(model, planner.problem.workload))
    bound_s = planner.lower_bound_s()
    assert 0 < bound_s <= planner.problem.simulate(split).makespan_s * (1 + 1e-9)


@pytest.mark.parametrize("count", [0, 5, 8])
def test_a_fixed_policy_is_followed_to_the_letter(count):
    job = Workload(1, 8, 2)
    plan = make_plan(tiny_model(), machine(), job, f"fixed:{count}")
    assert [list(step.recomputed_tokens) for step in plan.steps] == uniform(
        tiny_model(), job, count
    )


@pytest.mark.parametrize("policy", BASELINES)
def test_a_baseline_plan_has_the_makespan_it_is_listed_with(policy):
    plan = make_plan(tiny_model(), machine(), Workload(1, 8, 2), policy)
    assert plan.policy == policy
    assert plan.makespan_s == plan.baselines[policy]


@pytest.mark.parametrize(
    ("hardware", "limit"),
    [
        (machine(h2d=1e3), "the host-to-GPU link is the bottleneck: 10 % more bandwidth"),
        (machine(d2h=1e2), "the GPU-to-host link is the bottleneck: 10 % more bandwidth"),
        (machine(flops_per_s=1e3), "the GPU's arithmetic is the bottleneck: 10 % more FLOP/s"),
    ],
)
def test_the_lane_that_holds_everything_up_is_named_with_its_worth(hardware, limit):
    job = Workload(1, 64, 1)
    plan = make_plan(tiny_model(n_kv_heads=1), hardware, job)
    assert plan.bottleneck.startswith(limit)
    saves = float(plan.bottleneck.split("saves ")[1].removesuffix(" %"))
    assert 5.0 < saves <= 9.1


@given(models(), straight_machines(), workloads(), st.sampled_from(MACHINE_PARTS))
@examples(60)
def test_duals_agree_with_finite_differences(model, hardware, job, part):
    def solve(speed):
        return DecodePlanner(DecodeProblem(model, hardware.with_faster(part, speed), job))

    def derivative(planner):
        """Seconds saved by a speed that grows by all of itself, if times fell in a line."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("planner.decode.sensitivity.PARTS", (part,))
            (found,) = sensitivities(planner.problem, DecodeProblem.program)
        return found.saved_by_duals_frac / (1 - 1 / 1.1) * planner.relaxation.objective_s

    step = 1e-3
    before, after = solve(1.0), solve(1 + step)
    saved = before.relaxation.objective_s - after.relaxation.objective_s
    # Where what is tight changes within the step, the difference lies between the derivatives.
    low, high = sorted(derivative(planner) * (1 - 1 / (1 + step)) for planner in (before, after))
    slack = 1e-7 * before.relaxation.objective_s
    assert 0.95 * low - slack <= saved <= 1.05 * high + slack


@given(models(4), bent_machines(), workloads())
@examples(20)
def test_a_saving_is_what_planning_the_faster_machine_saves(model, hardware, job):
    planner = DecodePlanner(DecodeProblem(model, hardware, job))
    plan = make_plan(model, hardware, job)
    assert [one.part for one in plan.sensitivities] == MACHINE_PARTS
    for one in plan.sensitivities:
        faster = DecodePlanner(DecodeProblem(model, hardware.with_faster(one.part, 1.1), job))
        saved = planner.relaxation.objective_s - faster.relaxation.objective_s
        assert one.saved_frac == pytest.approx(saved / planner.relaxation.objective_s, abs=1e-9)
        assert -1e-9 <= one.saved_frac <= 1 - 1 / 1.1 + 1e-9


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.7])
def test_interference_that_the_lp_leaves_out_is_made_up_for_in_the_simulator(rate):
    interference = (slowed(COMPUTE, H2D, rate),)
    hardware = machine(flops_per_s=2e7, h2d=2e6, d2h=2e6, interference=interference)
    model, job = tiny_model(n_layers=6), Workload(2, 60, 1)
    plan, planner = (
        make_plan(model, hardware, job),
        DecodePlanner(DecodeProblem(model, hardware, job)),
    )
    grid = [planner.problem.simulate(uniform(model, job, count)).makespan_s for count in range(61)]
    assert plan.makespan_s <= min(grid) * 1.005


def test_a_context_that_grows_much_is_followed_step_by_step():
    model, job = tiny_model(n_layers=4), Workload(4, 8, 40)
    hardware = machine(flops_per_s=2e7, h2d=2e6, d2h=2e7)
    plan = make_plan(model, hardware, job)
    counts = [step.recomputed_tokens[1] for step in plan.steps]
    assert counts == sorted(counts)
    assert counts[-1] > 4 * counts[0]
    assert plan.makespan_s <= 1.08 * plan.lower_bound_s


def test_the_longest_path_is_what_the_machine_gives_without_sharing():
    model, job = tiny_model(), Workload(2, 8, 2)
    hardware = machine(interference=BOTH_WAYS, dispatch=dispatch(gap_s=1e-6, task_s=1e-6))
    problem = DecodeProblem(model, hardware, job)
    graph = problem.simulate(uniform(model, job, 4)).graph
    alone = simulate(graph, replace(hardware, interference=()))
    assert problem.longest_path_s(graph) == pytest.approx(alone.makespan_s, rel=1e-12)
    durations = [problem.costs.estimate(one).seconds for one in graph.tasks]
    without_host = earliest_schedule(graph, durations, [0.0] * len(durations))
    assert without_host.makespan_s < problem.longest_path_s(graph)


def test_a_model_too_large_for_the_device_is_refused_before_it_is_planned():
    with pytest.raises(DoesNotFit, match=r"opt-30b does not fit on one GPU") as failure:
        make_plan(find_model("opt-30b"), A100, Workload(1, 128, 1))
    assert "choose a smaller model" in str(failure.value)
    assert "weights take 55.8 of 39.0 GiB (2 GPUs hold them" in str(failure.value)


def test_a_batch_too_large_for_the_device_is_refused_naming_what_to_lower():
    with pytest.raises(DoesNotFit, match=r"staging slots .*; lower --batch to 433, or --prompt"):
        make_plan(find_model("opt-6.7b"), A100, Workload(512, 2000, 1))


def test_a_cache_too_large_for_the_host_is_refused():
    """Of 16 sequences K and V would take 8 GiB, and X alone 4, with which all is recomputed."""
    model, job = find_model("opt-6.7b"), Workload(16, 1024, 1)
    small = replace(A100, memory=replace(A100.memory, host_bytes=2.0**31))
    with pytest.raises(
        DoesNotFit, match=r"host memory .* 2\.0 GiB for it; lower --batch to 7, or --prompt"
    ):
        make_plan(model, small, job)
    less = replace(A100, memory=replace(A100.memory, host_bytes=5 * 2.0**30))
    assert footprint(make_plan(model, less, job).lower()).host_bytes < 5 * 2**30


def test_a_plan_may_use_exactly_the_memory_there_is():
    model, job = tiny_model(), Workload(2, 8, 2)
    graph = DecodeProblem(model, machine(), job).simulate(uniform(model, job, 10)).graph
    need = footprint(graph)

    def plan(device_bytes, host_bytes):
        memory = replace(machine().memory, device_bytes=device_bytes, host_bytes=host_bytes)
        return make_plan(model, machine(memory=memory), job, "recompute-all")

    assert plan(need.device_bytes, need.host_bytes).lower() == graph
    with pytest.raises(DoesNotFit, match="device memory"):
        plan(need.device_bytes - 1, need.host_bytes)
    with pytest.raises(DoesNotFit, match="host memory"):
        plan(need.device_bytes, need.host_bytes - 1)


def test_a_context_beyond_the_positions_of_the_model_is_refused():
    job = Workload(1, 2040, 8)
    make_plan(find_model("opt-125m"), A100, job, "load-all")
    with pytest.raises(BadInput, match=r"\(=2049\) must be at most the 2048 positions of opt-125m"):
        make_plan(find_model("opt-125m"), A100, replace(job, gen_tokens=9))


def test_an_unknown_schedule_is_refused():
    with pytest.raises(UnknownName, match="schedule 'diagonal'"):
        make_plan(tiny_model(), machine(), Workload(1, 8, 1), schedule="diagonal")


def test_a_job_that_each_memory_refuses_another_split_of_is_refused():
    """Loading all would fit the device and recomputing all the host, but no split fits both."""
    model, refused = tiny_model(), []
    memory = replace(machine().memory, device_bytes=model.weight_bytes + 1e5, host_bytes=38_400)
    for tokens in range(260, 280):
        try:
            make_plan(model, machine(memory=memory), Workload(4, tokens, 1))
        except DoesNotFit as error:
            refused.append((tokens, str(error)))
    assert refused[0][0] == 267
    assert "no split for which" in refused[0][1]
