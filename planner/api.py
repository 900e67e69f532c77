"""The names that `import planner` gives, which load at their first use."""

from planner.decode.lower import SCHEDULES, lower
from planner.decode.make import check_decode, choose_schedule, memory_needed, plan_split
from planner.decode.plan import DecodePlan
from planner.decode.policies import POLICIES, baseline_split
from planner.decode.split import StepSplit
from planner.job import Job, PlanOptions
from planner.make import make_plan
from planner.parts import PART_NAMES
from planner.plan_file import Plan
from planner.restore.plan import RestorePlan

__all__ = [
    "PART_NAMES",
    "POLICIES",
    "SCHEDULES",
    "DecodePlan",
    "Job",
    "Plan",
    "PlanOptions",
    "RestorePlan",
    "StepSplit",
    "baseline_split",
    "check_decode",
    "choose_schedule",
    "lower",
    "make_plan",
    "memory_needed",
    "plan_split",
]
