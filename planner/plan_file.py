"""Reading a plan file of either scenario."""

from __future__ import annotations

from pathlib import Path

from planner.decode.plan import Plan
from planner.restore.plan import RestorePlan
from sim.files import decode_json


def load_plan(path: Path) -> Plan | RestorePlan:
    """A plan of a decode or of a restore.

    Raises:
        BadFile: unreadable, of another kind, or with an unknown, absent or invalid key.
    """
    content = decode_json(path)
    restores = isinstance(content, dict) and content.get("kind") == "restore-plan"
    return RestorePlan.load(path) if restores else Plan.load(path)
