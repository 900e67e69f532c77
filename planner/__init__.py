"""Chooses what to load and what to recompute, and turns the choice into a task graph."""

from planner.loading import load_plan
from planner.lower import SCHEDULES, lower
from planner.plan import Plan, StepSplit
from planner.planning import choose_schedule, make_plan, plan_split
from planner.policies import POLICIES, baseline_split
from planner.sensitivity import PARTS

__all__ = [
    "PARTS",
    "POLICIES",
    "SCHEDULES",
    "Plan",
    "StepSplit",
    "baseline_split",
    "choose_schedule",
    "load_plan",
    "lower",
    "make_plan",
    "plan_split",
]
