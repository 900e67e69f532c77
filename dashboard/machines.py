"""The machines that can be asked about: shipped, profiled in a run, or uploaded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dashboard.runs import PROFILE, Run
from sim.catalog import find_hardware, hardware_names
from sim.hardware import HardwareProfile

FIRST_MACHINE = "kvpr-a100"
"""The machine that the first question is about; it suits the first model."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine of a menu.

    Args:
        label: names it in the menu and in a link.
        reference: names it on the command line: a shipped name or the path of a profile.
        path: its file; None for a shipped or an uploaded one.
        run: the run folder it was profiled for, whose measurements can be held against it.
    """

    label: str
    reference: str
    path: Path | None = None
    profile: HardwareProfile | None = None
    run: Run | None = None

    def load(self) -> HardwareProfile:
        """The profile.

        Raises:
            BadFile: its file is unreadable or holds something else.
        """
        return self.profile if self.profile is not None else find_hardware(self.reference)


def find_machines(
    runs: Sequence[Run], uploaded: Mapping[str, HardwareProfile] | None = None
) -> list[Machine]:
    """What was uploaded, what is shipped, and the machines of the runs, newest first."""
    found = [
        Machine(f"{name} (uploaded)", name, profile=profile)
        for name, profile in (uploaded or {}).items()
    ]
    shipped = sorted(hardware_names(), key=lambda name: name != FIRST_MACHINE)
    found += [Machine(name, name) for name in shipped]
    for run in runs:
        path = run.folder / PROFILE
        if path.is_file():
            found.append(Machine(f"profile of run {run.label}", str(path), path, run=run))
    return found


def profile_key(profile: HardwareProfile) -> str:
    """Equal for equal profiles; tells caches whether a machine has changed."""
    return json.dumps(profile.to_dict(), sort_keys=True)
