"""Time of the LP, of a plan, and of the simulation of its graph.

Run with `make bench`; pytest-benchmark prints the median and spread of each.
"""

import pytest

from planner import Job, make_plan
from planner.decode.planner import DecodePlanner
from planner.decode.problem import DecodeProblem
from sim import Workload, find_hardware, find_model, simulate

CASES = {
    "one step of opt-13b": ("opt-13b", Workload(32, 1024, 1)),
    "32 steps of opt-6.7b": ("opt-6.7b", Workload(64, 512, 32)),
}


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request):
    name, workload = CASES[request.param]
    return find_model(name), find_hardware("kvpr-a100"), workload


@pytest.mark.benchmark(group="lp")
def test_lp_relaxation(benchmark, case):
    relaxation = benchmark(lambda: DecodePlanner(DecodeProblem(*case)).relaxation)
    assert relaxation.objective_s > 0


@pytest.mark.benchmark(group="plan")
def test_whole_plan(benchmark, case):
    plan = benchmark(make_plan, Job(*case))
    assert plan.makespan_s >= plan.lower_bound_s


@pytest.mark.benchmark(group="simulate")
def test_simulation(benchmark, case):
    plan = make_plan(Job(*case))
    graph = plan.lower()
    timeline = benchmark(simulate, graph, plan.hardware)
    benchmark.extra_info["tasks"] = len(graph.tasks)
    assert timeline.makespan_s == pytest.approx(plan.makespan_s)
