"""Chooses what to load and what to recompute, and turns the choice into a task graph."""

from planner.decode.lower import SCHEDULES, lower
from planner.decode.make import choose_schedule, make_plan, plan_split
from planner.decode.plan import Plan
from planner.decode.policies import POLICIES, baseline_split
from planner.decode.sensitivity import PARTS
from planner.decode.split import StepSplit
from planner.plan_file import load_plan

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
