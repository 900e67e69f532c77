"""Times of a job by every policy are those of its plan, which takes longer to make."""

import pytest

from planner import Job, PlanOptions, make_plan
from planner.sweep import decode_times
from sim import Workload, find_hardware, find_model
from sim.errors import DoesNotFit


@pytest.mark.parametrize(
    ("workload", "options"),
    [
        (Workload(4, 256, 1), PlanOptions(policy="lp")),
        (Workload(2, 128, 1, 2), PlanOptions(policy="lp", schedule="column", keep=True)),
        (Workload(2, 128, 1, 2), PlanOptions(policy="lp", schedule="auto")),
    ],
)
def test_the_times_are_those_of_the_plan(workload, options):
    job = Job(find_model("opt-125m"), find_hardware("kvpr-a100"), workload)
    times, plan = decode_times(job, options), make_plan(job, options)
    assert times.makespans_s == pytest.approx(
        {name: plan.baselines[name] for name in times.makespans_s}, rel=1e-3
    )
    assert {"lp", "kvpr", "load-all", "recompute-all", "resident"} == set(times.makespans_s)
    assert times.steps == plan.steps
    assert times.out_of_range_tasks == plan.out_of_range_tasks
    part = {"h2d": "host-to-GPU link", "hbm": "device memory"}[times.bottleneck]
    assert plan.bottleneck.startswith(f"the {part} is the bottleneck")


def test_a_job_that_has_no_plan_has_no_times():
    job = Job(find_model("llama-3.1-70b-fp8"), find_hardware("kvpr-a100"), Workload(1, 64, 1))
    with pytest.raises(DoesNotFit):
        decode_times(job, PlanOptions(policy="lp"))
