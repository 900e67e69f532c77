"""Chooses what to load and what to recompute, and turns the choice into a task graph."""

from planner.plan import Plan, StepSplit
from planner.planning import PARTS, SCHEDULES, make_plan, plan_split
from planner.policies import POLICIES

__all__ = ["PARTS", "POLICIES", "SCHEDULES", "Plan", "StepSplit", "make_plan", "plan_split"]
