"""Studies: many questions in one file, answered in parallel, in one table."""

from planner.sweep.executors import EXECUTORS, dask, local
from planner.sweep.findings import Crossover, Findings, findings
from planner.sweep.parts import Parts
from planner.sweep.runner import Estimate, Swept, cores, estimate, run_sweep
from planner.sweep.study import Study

__all__ = [
    "EXECUTORS",
    "Crossover",
    "Estimate",
    "Findings",
    "Parts",
    "Study",
    "Swept",
    "cores",
    "dask",
    "estimate",
    "findings",
    "local",
    "run_sweep",
]
