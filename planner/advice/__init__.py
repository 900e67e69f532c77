"""What to do about a KV cache that does not fit, its worth, and the settings that it means."""

from planner.advice.advice import Advice, Evidence, advise
from planner.advice.crossover import Stretch
from planner.advice.decoding import Slo
from planner.advice.hints import Hint
from planner.advice.reuse import Reuse
from planner.advice.words import conclusions

__all__ = ["Advice", "Evidence", "Hint", "Reuse", "Slo", "Stretch", "advise", "conclusions"]
