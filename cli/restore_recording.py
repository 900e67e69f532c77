"""`kvoverlap record --scenario restore`: measured restores for others to predict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cli.output import Steps
from cli.restore_grid import RestoreGrid, Setting, default_settings
from cli.rounds import EXTRA_ROUNDS
from planner.restore import RestorePlanner
from sim.accuracy import CASE, CASES
from sim.hardware import HardwareProfile
from sim.model_spec import ModelSpec

PROMPTS = {"cpu": (700,), "cuda": (4096,)}
SETUP_S = 15.0
"""About what weights, reference prefill and reference products of one setting take."""


@dataclass(frozen=True)
class RestoreRecorder:
    """Fills the folder `output` with the settings that are not there yet and that time allows."""

    output: Path
    hardware: HardwareProfile
    kind: str
    repeats: int
    seed: int
    left_s: Callable[[], float]
    tell: Steps

    def measure(self, spec: ModelSpec) -> list[str]:
        """Measure all settings of a model; returns what was left out."""
        left_out = []
        grid = RestoreGrid(spec, self.kind, self.repeats, self.seed, self.tell)
        settings = list(default_settings(spec, self.hardware, PROMPTS[self.kind]))
        for number, setting in enumerate(settings):
            if self._is_there(setting):
                continue
            needed_s, left_s = self._estimated_s(spec, setting), self.left_s()
            if needed_s > left_s:
                left_out.append(
                    f"{setting.name} left out: {max(0.0, left_s):.0f} s of --minutes were left, it "
                    f"takes about {needed_s:.0f} s; the same command goes on."
                )
                continue
            for case in grid.measure(setting, number / len(settings)).cases:
                case.save(self.output / CASES / f"{spec.name}-{case.name}")
        return left_out

    def _is_there(self, setting: Setting) -> bool:
        names = {f"{setting.name}-{policy}" for policy in setting.policies}
        done = {path.parent.name for path in self.output.glob(f"{CASES}/*/{CASE}")}
        return all(any(one.endswith(name) for one in done) for name in names)

    def _estimated_s(self, spec: ModelSpec, setting: Setting) -> float:
        planner = RestorePlanner(spec, setting.hardware, setting.request)
        once_s = sum(planner.choice(policy).ttft_s for policy in setting.policies)
        return SETUP_S + 1.2 * once_s * (1 + self.repeats + EXTRA_ROUNDS)
