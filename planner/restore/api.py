"""The names that `import planner.restore` gives, which load at their first use."""

from planner.restore.headline import restore_headline
from planner.restore.plan import RestorePlan, plan_choice
from planner.restore.planner import (
    RESTORE_POLICIES,
    RestorePlanner,
    UnforeseenPlanner,
)
from planner.restore.replanning import Adaptation, Change, Replanner, adapt
from planner.restore.reproduce import (
    behind_link,
    error_summary,
    link_rate,
    read_cases,
    reproduce_case,
)
from planner.restore.split import RestoreSplit

__all__ = [
    "RESTORE_POLICIES",
    "Adaptation",
    "Change",
    "Replanner",
    "RestorePlan",
    "RestorePlanner",
    "RestoreSplit",
    "UnforeseenPlanner",
    "adapt",
    "behind_link",
    "error_summary",
    "link_rate",
    "plan_choice",
    "read_cases",
    "reproduce_case",
    "restore_headline",
]
