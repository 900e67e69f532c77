"""What to do about a KV cache that does not fit, its worth, and the settings that it means."""

from planner.advice.advice import Advice, Evidence, advise
from planner.advice.decoding import Slo
from planner.advice.reuse import Reuse
from planner.advice.runtime_settings import RuntimeSetting
from planner.advice.text import conclusions
from planner.crossovers import Interval

__all__ = [
    "Advice",
    "Evidence",
    "Interval",
    "Reuse",
    "RuntimeSetting",
    "Slo",
    "advise",
    "conclusions",
]
