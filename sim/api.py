"""The names that `import sim` gives, which load at their first use."""

from sim.catalog import find_hardware, find_model, hardware_names, model_names
from sim.cost.model import CostModel
from sim.engine.api import replay, simulate
from sim.errors import KvOverlapError
from sim.graph.jobs import Workload
from sim.graph.tasks import Task, TaskGraph
from sim.graph.timeline import Span, Timeline
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec
from sim.results.compare import Comparison, compare
from sim.results.recording import Recording
from sim.results.trace import read_trace, write_trace

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
