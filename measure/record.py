"""A recording of a machine: settings are measured one after another until the time is over."""

from __future__ import annotations

import gc
import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

from measure.calibrate import ProfileScope, measure_profile
from measure.grid import OutOfTime
from measure.settings import (
    DEFAULT_JOBS,
    OTHER_SYSTEMS_FILE,
    SETTINGS,
    DecodeSetting,
    RecordingOptions,
    RecordSetting,
    RestoreSetting,
)
from sim.errors import BadInput, Mismatch
from sim.files import read_json, write_bytes, write_json
from sim.graph.jobs import Workload
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec
from sim.progress import Part
from sim.results.accuracy import CASE, CASES, PROFILE

RECORDING = "recording.json"

COMPLETE = "Run the same command to complete the recording."

REPEATS = 5

PROFILE_S = {"cpu": 55.0, "cuda": 45.0}
"""Estimated seconds of profiling one model."""

PROFILE_SHARE = 0.2
"""Fraction of the remaining time after which profiling a model takes no further samples."""

RESTORE_PROFILE_S = {"cpu": 30.0, "cuda": 30.0}
"""Estimated seconds that chunked prefill and the disk add."""


def chosen_settings(
    kind: str, scenario: str, models: str | None, other_systems: bool
) -> list[RecordSetting]:
    """The settings to measure on a device of this kind, in order.

    Raises:
        BadInput: no setting has this scenario and these models.
    """
    wanted = None if models is None else [name.strip() for name in models.split(",")]
    known = SETTINGS[kind]
    if wanted is not None:
        listed = {one.model for one in known}
        others = [DecodeSetting(name, DEFAULT_JOBS[kind]) for name in wanted if name not in listed]
        known = [*(one for one in known if one.model in wanted), *others]
    chosen = [
        one
        for one in known
        if scenario in ("all", one.scenario) and (other_systems or not one.other_systems)
    ]
    if not chosen:
        raise BadInput(
            f"--scenario {scenario} has nothing to measure of --models(={models}); leave one out."
        )
    return chosen


def check_output(output: Path, link: str | None) -> int:
    """The number of finished cases in the folder of a recording.

    Raises:
        BadInput: the folder holds something else, or a profile whose link pace cannot be changed.
    """
    if (output / PROFILE).is_file():
        if link is not None:
            raise BadInput(f"--link(={link}): {output} has a profile already; leave --link out.")
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BadInput(f"--out(={output}) holds something else; name a new folder.")
    return len(list(output.glob(f"{CASES}/*/{CASE}")))


@dataclass
class Recorder:
    """Fills a folder until the time is over.

    Args:
        specs: model by the name that a setting gives it.
        link: pace of the cpu device's link, as typed.

    Attributes:
        left_out: one sentence for each setting that is not in the folder.
        interrupted: the user pressed Ctrl-C.
        slowdowns: measured / estimated time of each finished setting.
    """

    how: RecordingOptions
    specs: Mapping[str, ModelSpec]
    link: str | None
    left_out: list[str] = field(default_factory=list)
    interrupted: bool = False
    environment: dict[str, Any] = field(default_factory=dict)
    slowdowns: list[float] = field(default_factory=list)

    def measure(self, settings: Sequence[RecordSetting]) -> None:
        """Measure the settings that the folder lacks and the time allows, one after another.

        Raises:
            Mismatch: the folder holds a recording of another machine.
        """
        hardware: HardwareProfile | None = None
        if (self.how.output / PROFILE).is_file():
            hardware = HardwareProfile.load(self.how.output / PROFILE)
            check_same_machine(self.how.output, hardware, self.how.kind)
        for number, setting in enumerate(settings):
            spec = self.specs[setting.model]
            try:
                hardware = self._measure(setting, spec, hardware, settings[number:])
            except KeyboardInterrupt:
                self.interrupted = True
                names = [one.name(self.specs[one.model]) for one in settings[number:]]
                self.left_out.append(f"{', '.join(names)} left out: interrupted.")
            except OutOfTime as error:
                self._leave_out(f"{setting.name(spec)} left out: {error} {COMPLETE}")
            except Exception as error:  # one failure must not lose the other cases
                if hardware is None and isinstance(error, Mismatch | BadInput):
                    raise
                reason = " ".join(str(error).split())[:300]
                self._leave_out(f"{setting.name(spec)} left out: {type(error).__name__}: {reason}")
            if (self.how.output / PROFILE).is_file():
                self._write()
            if self.interrupted:
                return
            gc.collect()

    def _leave_out(self, sentence: str) -> None:
        self.left_out.append(sentence)
        self.how.progress.note(sentence)

    def _measure(
        self,
        setting: RecordSetting,
        spec: ModelSpec,
        hardware: HardwareProfile | None,
        later: Sequence[RecordSetting],
    ) -> HardwareProfile | None:
        """Profile the model if the profile lacks it; measure the setting; return the profile."""
        same = [one for one in later if self.specs[one.model] == spec]
        bits = sorted({one.kv_bits for one in same if one.kv_bits is not None})
        name = setting.name(spec)
        if hardware is None or not covers(hardware, spec, bits, setting.scenario == "restore"):
            restores = any(one.scenario == "restore" for one in same)
            needed_s = PROFILE_S[self.how.kind] + restores * RESTORE_PROFILE_S[self.how.kind]
            if hardware is not None and not self._affordable(f"profile of {name}", needed_s):
                return hardware
            max_s = PROFILE_SHARE * max(0.0, self.how.until_s - monotonic())
            scope = ProfileScope(bits, restores, max_s=max_s)
            if max_s < needed_s and setting.scenario == "decode":
                scope = ProfileScope(bits, False, decodes_until_restore(same), max_s)
            part = Part(self.how.progress, f"profile of {spec.name}")
            link, folder = self._link(hardware), self.how.output.name
            made = measure_profile(self.how.kind, [spec], folder, link, part, scope)
            hardware = made if hardware is None else made.with_tables_of(hardware)
            hardware.save(self.how.output / PROFILE)
        files = setting.files(spec, hardware)
        if all((self.how.output / file).is_file() for file in files):
            return hardware
        begun_s = monotonic()
        estimated_s = setting.seconds(spec, hardware, self.how)
        expected_s = estimated_s * median(self.slowdowns or [1.0])
        if self._affordable(name, expected_s):
            self.environment = setting.record(spec, hardware, self.how)
            took_s = monotonic() - begun_s
            self.slowdowns.append(took_s / estimated_s)
            self.how.progress.note(f"{name}: {took_s:.0f} s, estimated {expected_s:.0f} s")
        return hardware

    def _link(self, hardware: HardwareProfile | None) -> str | None:
        """The link pace to profile with: the same for all models of a recording."""
        pace = None if hardware is None else hardware.links.h2d.paced_bytes_per_s
        return self.link if pace is None else f"{pace:.17g}B/s"

    def _affordable(self, name: str, needed_s: float) -> bool:
        left_s = max(0.0, self.how.until_s - monotonic())
        if needed_s > left_s:
            self._leave_out(
                f"{name} left out: {left_s:.0f} s of --minutes were left, and it takes about "
                f"{needed_s:.0f} s. {COMPLETE}"
            )
        return needed_s <= left_s

    def _write(self) -> None:
        path = self.how.output / RECORDING
        if not self.environment and path.is_file():
            self.environment = read_json(path, "recording")["environment"]
        content = {
            "environment": self.environment,
            "repeats": self.how.repeats,
            "seed": self.how.seed,
            "left_out": self.left_out,
        }
        write_json(path, "recording", content)


def decodes_until_restore(settings: Sequence[RecordSetting]) -> list[Workload]:
    """The decode jobs before the first restore; they need the fewest points of a profile."""
    decodes = takewhile(lambda one: one.scenario == "decode", settings)
    return [one.job for one in decodes if not isinstance(one, RestoreSetting)]


def covers(
    hardware: HardwareProfile, spec: ModelSpec, kv_bits: Sequence[int], restores: bool
) -> bool:
    """Whether a profile has the tables of a model."""
    heads = (spec.n_heads, spec.n_kv_heads, spec.head_dim)
    matmuls = {(table.n, table.k) for table in hardware.gemm.tables}
    if (2 * spec.kv_size, spec.hidden_size) not in matmuls:
        return False
    if not set(kv_bits) <= {table.bits for table in hardware.elementwise.tables}:
        return False
    block = hardware.restore
    tables = () if block is None or block.prefill is None else block.prefill.tables
    return not restores or heads in {(one.n_heads, one.n_kv_heads, one.head_dim) for one in tables}


def check_same_machine(output: Path, hardware: HardwareProfile, kind: str) -> None:
    """Check that a recording was begun on this machine.

    Raises:
        Mismatch: the device or the torch version differs.
    """
    from hw import open_backend

    before = hardware.environment or {}
    with open_backend(kind, hardware.links.h2d.paced_bytes_per_s) as backend:
        environment = backend.environment()
    for key in ("device", "torch"):
        if before.get(key) != environment.get(key):
            raise Mismatch(
                f"{output} was begun with {key} {before.get(key)!r}, here it is "
                f"{environment.get(key)!r}; name a new folder."
            )


def pack_folder(folder: Path, archive: Path) -> None:
    """Write a folder into a .tar.gz file; the file appears when it is complete."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    write_bytes(archive, packed.getvalue())


def recorded_other_systems(output: Path) -> list[dict[str, Any]]:
    """Reports on other systems in a recording."""
    return [read_json(path, "peers") for path in sorted(output.glob(f"*-{OTHER_SYSTEMS_FILE}"))]
