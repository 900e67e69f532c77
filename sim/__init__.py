"""The vocabulary of kvoverlap and its model of the machine, from specs to timelines."""

from sim.catalog import find_hardware, find_model, hardware_names, model_names
from sim.compare import Comparison, compare
from sim.cost import CostModel
from sim.engine import replay, simulate
from sim.errors import KvOverlapError
from sim.graph import Task, TaskGraph
from sim.hardware import HardwareProfile
from sim.model_spec import ModelSpec
from sim.recording import Recording
from sim.timeline import Span, Timeline
from sim.trace import read_trace, write_trace
from sim.workload import Workload

__all__ = [
    "Comparison",
    "CostModel",
    "HardwareProfile",
    "KvOverlapError",
    "ModelSpec",
    "Recording",
    "Span",
    "Task",
    "TaskGraph",
    "Timeline",
    "Workload",
    "compare",
    "find_hardware",
    "find_model",
    "hardware_names",
    "model_names",
    "read_trace",
    "replay",
    "simulate",
    "write_trace",
]
