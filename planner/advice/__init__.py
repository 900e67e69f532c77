"""Advice on a KV cache that exceeds GPU memory: the best way, its gain and runtime settings."""

from planner.advice.advice import Advice, Evidence, advise
from planner.advice.decoding import Slo
from planner.advice.reuse import Reuse
from planner.advice.runtime_gap import RuntimeGap, runtime_gap
from planner.advice.runtime_settings import RuntimeSetting
from planner.advice.text import describe, reasons
from planner.crossovers import Interval
from planner.decode.headline import headline
from planner.task_times import beyond_calibration, describe_sources

__all__ = [
    "Advice",
    "Evidence",
    "Interval",
    "Reuse",
    "RuntimeGap",
    "RuntimeSetting",
    "Slo",
    "advise",
    "beyond_calibration",
    "describe",
    "describe_sources",
    "headline",
    "reasons",
    "runtime_gap",
]
