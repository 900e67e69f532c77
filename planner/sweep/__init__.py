"""Studies: a file of many planning questions, computed in parallel into one table."""

from planner.sweep.checkpoints import Checkpoints
from planner.sweep.decode_times import DecodeTimes, decode_times
from planner.sweep.runner import Swept, run_sweep
from planner.sweep.study import Study
from planner.sweep.summary import Crossover, Summary, summarize
from planner.sweep.timing import Estimate, cores, estimate
from planner.sweep.workers import EXECUTORS, dask, local

__all__ = [
    "EXECUTORS",
    "Checkpoints",
    "Crossover",
    "DecodeTimes",
    "Estimate",
    "Study",
    "Summary",
    "Swept",
    "cores",
    "dask",
    "decode_times",
    "estimate",
    "local",
    "run_sweep",
    "summarize",
]
