"""Figures that others published, and the predictions of them."""

from planner.published.accuracy import (
    GROUPS,
    Errors,
    Predicted,
    PublishedAccuracy,
    assess_published,
)
from planner.published.cells import Cell, PublishedSource, load_cells

__all__ = [
    "GROUPS",
    "Cell",
    "Errors",
    "Predicted",
    "PublishedAccuracy",
    "PublishedSource",
    "assess_published",
    "load_cells",
]
