"""Figures: pure functions from the project's objects to plotly, to be drawn by any page."""

from dashboard.figures.accuracy import errors_by_case, predicted_against_measured
from dashboard.figures.lanes import View, paired_lanes
from dashboard.figures.machine import rate_curves, residual_dots, sample_residuals
from dashboard.figures.parts import breakdown_bars, lane_use_bars
from dashboard.figures.splits import (
    policy_bars,
    sensitivity_bars,
    split_curve,
    way_map,
    ways_by_layer,
)
from dashboard.figures.style import OP_COLOUR, PART_COLOUR, POLICY_COLOUR
from dashboard.figures.sweeps import MEASURES, Measure, crossing, crossover_curves, heat_map

__all__ = [
    "MEASURES",
    "OP_COLOUR",
    "PART_COLOUR",
    "POLICY_COLOUR",
    "Measure",
    "View",
    "breakdown_bars",
    "crossing",
    "crossover_curves",
    "errors_by_case",
    "heat_map",
    "lane_use_bars",
    "paired_lanes",
    "policy_bars",
    "predicted_against_measured",
    "rate_curves",
    "residual_dots",
    "sample_residuals",
    "sensitivity_bars",
    "split_curve",
    "way_map",
    "ways_by_layer",
]
