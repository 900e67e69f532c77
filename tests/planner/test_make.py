"""One function plans every kind of job, and refuses the options of another kind."""

from __future__ import annotations

import pytest
from builders import machine, make_plan, tiny_model
from restores import request, step_machine

from planner import DecodePlan, Job, RestorePlan, plan_split
from planner.job import PlanOptions
from sim.errors import BadInput
from sim.graph.jobs import Workload
from sim.machine.availability import Availability, Step

JOB = Workload(batch_size=2, prompt_tokens=8, gen_tokens=2)
TRACE = Availability((Step(0.0, (("h2d", 0.5),)),))


def test_the_kind_of_the_workload_decides_what_is_planned():
    decode = make_plan(tiny_model(), machine(), JOB)
    restore = make_plan(tiny_model(), step_machine(4.0, 1.0), request(17))
    assert (type(decode), decode.policy) == (DecodePlan, "lp")
    assert (type(restore), restore.policy) == (RestorePlan, "auto")
    assert decode.tier is None
    assert restore.tier == "dram"
    assert restore.makespan_s == restore.ttft_s


@pytest.mark.parametrize("option", [{"schedule": "column"}, {"gpus": 2}, {"keep": True}])
def test_a_restore_has_no_options_of_a_decode(option):
    with pytest.raises(BadInput, match=f"{next(iter(option))}.* does not apply"):
        make_plan(tiny_model(), step_machine(4.0, 1.0), request(17), **option)


def test_a_decode_has_no_availability_and_a_given_split_no_policy():
    with pytest.raises(BadInput, match=r"availability.* does not apply"):
        make_plan(tiny_model(), machine(), JOB, availability=TRACE)
    job, split = Job(tiny_model(), machine(), JOB), [[3, 3], [3, 3]]
    with pytest.raises(BadInput, match=r"policy.* does not apply"):
        plan_split(job, split, options=PlanOptions(policy="kvpr"))
