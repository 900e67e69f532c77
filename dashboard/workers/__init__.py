"""Answers computed in processes that can be killed, within a budget, and cached for all visitors.

A page calls `dashboard.asking.answer`, which uses `Workers` here: every call runs in a process
forked from a server that has imported the planner already.
"""

from dashboard.workers.pool import BUDGET_S, WORKERS, Call, Died, OverBudget, Task, Workers

__all__ = ["BUDGET_S", "WORKERS", "Call", "Died", "OverBudget", "Task", "Workers"]
