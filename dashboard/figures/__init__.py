"""Pure functions that return plotly figures of plans, timelines and profiles."""

from dashboard.figures.accuracy import errors_by_case, predicted_against_measured
from dashboard.figures.lane_chart import LaneChart
from dashboard.figures.lanes import NamedRun, View, lanes_of, paired_lanes
from dashboard.figures.machine import rate_curves, residual_dots, sample_residuals
from dashboard.figures.memory import MemoryUse, memory_bars
from dashboard.figures.plans import (
    policy_bars,
    sensitivity_bars,
    split_by_layer,
    split_curve,
    split_map,
)
from dashboard.figures.policy_curves import (
    MEASURES,
    Measure,
    crossover_curves,
    heat_map,
    ttft_curves,
)
from dashboard.figures.restores import (
    Meeting,
    availability_steps,
    both_ends,
    both_ends_compared,
    sources_by_layer,
    ttft_bars,
)
from dashboard.figures.style import (
    BREAKDOWN_COLOUR,
    OP_COLOUR,
    POLICY_COLOUR,
    RESTORE_COLOUR,
    fit_phone,
)
from dashboard.figures.time_breakdown import breakdown_bars, lane_use_bars
from dashboard.figures.trace_lanes import paired_trace_lanes, trace_lanes
from dashboard.figures.traffic import hit_rate_curves, service_lanes, ttft_by_size

__all__ = [
    "BREAKDOWN_COLOUR",
    "MEASURES",
    "OP_COLOUR",
    "POLICY_COLOUR",
    "RESTORE_COLOUR",
    "LaneChart",
    "Measure",
    "Meeting",
    "MemoryUse",
    "NamedRun",
    "View",
    "availability_steps",
    "both_ends",
    "both_ends_compared",
    "breakdown_bars",
    "crossover_curves",
    "errors_by_case",
    "fit_phone",
    "heat_map",
    "hit_rate_curves",
    "lane_use_bars",
    "lanes_of",
    "memory_bars",
    "paired_lanes",
    "paired_trace_lanes",
    "policy_bars",
    "predicted_against_measured",
    "rate_curves",
    "residual_dots",
    "sample_residuals",
    "sensitivity_bars",
    "service_lanes",
    "sources_by_layer",
    "split_by_layer",
    "split_curve",
    "split_map",
    "trace_lanes",
    "ttft_bars",
    "ttft_by_size",
    "ttft_curves",
]
