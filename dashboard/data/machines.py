"""The machines of the menus: shipped, profiled in a run, or uploaded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dashboard.data.runs import PROFILE, Run
from sim.catalog import composed_names, find_hardware, hardware_names
from sim.machine.components import JOIN, split_name
from sim.machine.profile import HardwareProfile

FIRST_MACHINE = "kvpr-a100"
"""Default machine; it suits the default model."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine of a menu.

    Args:
        label: names it in the menu and in a link.
        reference: names it on the command line: a shipped name or the path of a profile.
        path: its file; None for a shipped or an uploaded one.
        run: the run folder with its profile and measurements.
        parts: the shipped device and link that it is composed of.
    """

    label: str
    reference: str
    path: Path | None = None
    profile: HardwareProfile | None = None
    run: Run | None = None
    parts: tuple[str, str] | None = None

    def behind(self, link: str) -> Machine:
        """The same device behind another link."""
        if self.parts is None:
            return self
        device = self.parts[0]
        return replace(self, reference=f"{device}{JOIN}{link}", parts=(device, link))

    def load(self) -> HardwareProfile:
        """The profile.

        Raises:
            BadFile: its file is unreadable or holds something else.
        """
        return self.profile if self.profile is not None else find_hardware(self.reference)


def find_machines(
    runs: Sequence[Run], uploaded: Mapping[str, HardwareProfile] | None = None
) -> list[Machine]:
    """Uploaded and shipped machines, every shipped device with its usual link, and the machines of
    the runs, newest first."""
    found = [
        Machine(f"{name} (uploaded)", name, profile=profile)
        for name, profile in (uploaded or {}).items()
    ]
    shipped = sorted(hardware_names(), key=lambda name: name != FIRST_MACHINE)
    found += [Machine(name, name) for name in shipped]
    found += [
        Machine(name, name, parts=split_name(name) if JOIN in name else None)
        for name in composed_names()
    ]
    for run in runs:
        path = run.folder / PROFILE
        if path.is_file():
            found.append(Machine(f"profile of run {run.label}", str(path), path, run=run))
    return found


def profile_key(profile: HardwareProfile) -> str:
    """A cache key: equal for equal profiles."""
    return json.dumps(profile.to_dict(), sort_keys=True)
