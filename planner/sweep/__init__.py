"""Studies: many questions in one file, answered in parallel, in one table."""

from planner.sweep.checkpoints import Parts
from planner.sweep.runner import Estimate, Swept, cores, estimate, run_sweep
from planner.sweep.study import Study
from planner.sweep.summary import Crossover, Summary, findings
from planner.sweep.workers import EXECUTORS, dask, local

__all__ = [
    "EXECUTORS",
    "Crossover",
    "Estimate",
    "Parts",
    "Study",
    "Summary",
    "Swept",
    "cores",
    "dask",
    "estimate",
    "findings",
    "local",
    "run_sweep",
]
