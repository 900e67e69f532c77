"""A recording of a machine: what is measured, what is left out, and where it went."""

from __future__ import annotations

import gc
import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from measure.calibrate import measure_profile
from measure.settings import DEFAULT_JOBS, PEERS, SETTINGS, DecodeSetting, Recorded, RecordSetting
from sim.errors import BadInput, Mismatch
from sim.files import read_json, write_bytes, write_json
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec
from sim.progress import Part
from sim.results.accuracy import CASE, CASES, PROFILE

RECORDING = "recording.json"

REPEATS = 5

PROFILE_S = {"cpu": 55.0, "cuda": 45.0}
"""About how long profiling takes for one model."""

PROFILE_SHARE = 0.35
"""Part of the time left that profiling a model may take before it makes do with fewer samples."""

RESTORE_PROFILE_S = {"cpu": 30.0, "cuda": 30.0}
"""What chunked prefill and the disk add to it."""


def chosen_settings(
    kind: str, scenario: str, models: str | None, peers: bool
) -> list[RecordSetting]:
    """What to measure on a device of this kind, in order.

    Raises:
        BadInput: nothing is left to measure.
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
        if scenario in ("all", one.scenario) and (peers or not one.other_systems)
    ]
    if not chosen:
        raise BadInput(
            f"--scenario {scenario} has nothing to measure of --models(={models}); leave one out."
        )
    return chosen


def check_output(output: Path, link: str | None) -> int:
    """The finished cases in the folder of a recording; refuses one that holds something else.

    Raises:
        BadInput: so, or the folder has a profile, whose link pace cannot be chosen again.
    """
    if (output / PROFILE).is_file():
        if link is not None:
            raise BadInput(f"--link(={link}): {output} has a profile already; leave --link out.")
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BadInput(f"--out(={output}) holds something else; name a new folder.")
    return len(list(output.glob(f"{CASES}/*/{CASE}")))


@dataclass
class Recorder:
    """Fills a folder until the time is spent.

    Args:
        specs: model by the name that a setting gives it.
        until_s: moment on `time.monotonic()` at which the time is spent.
        link: pace of the cpu device's link, as typed.

    Attributes:
        left_out: one sentence for each setting that is not in the folder.
        interrupted: somebody pressed Ctrl-C.
    """

    how: Recorded
    specs: Mapping[str, ModelSpec]
    until_s: float
    link: str | None
    left_out: list[str] = field(default_factory=list)
    interrupted: bool = False
    environment: dict[str, Any] = field(default_factory=dict)

    def measure(self, settings: Sequence[RecordSetting]) -> None:
        """Measure what is not there yet and what the time allows, one setting after another.

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
            except (Mismatch, BadInput) as error:
                if hardware is None:
                    raise
                self._leave_out(setting.name(spec), error)
            except Exception as error:  # one failure must not lose the other cases
                self._leave_out(setting.name(spec), error)
            if (self.how.output / PROFILE).is_file():
                self._write()
            if self.interrupted:
                return
            gc.collect()

    def _leave_out(self, name: str, error: Exception) -> None:
        text = " ".join(str(error).split())[:300]
        self.left_out.append(f"{name} left out: {type(error).__name__}: {text}")
        self.how.steps.note(self.left_out[-1])

    def _measure(
        self,
        setting: RecordSetting,
        spec: ModelSpec,
        hardware: HardwareProfile | None,
        later: Sequence[RecordSetting],
    ) -> HardwareProfile | None:
        """Profile the model if nobody has, and measure the setting; returns the profile."""
        same = [one for one in later if self.specs[one.model] == spec]
        bits = sorted({one.kv_bits for one in same if one.kv_bits is not None})
        restores = any(one.scenario == "restore" for one in same)
        name = setting.name(spec)
        if hardware is None or not covers(hardware, spec, bits, restores):
            needed_s = PROFILE_S[self.how.kind] + restores * RESTORE_PROFILE_S[self.how.kind]
            if hardware is not None and not self._affordable(f"profile of {name}", needed_s):
                return hardware
            made = measure_profile(
                self.how.kind,
                [spec],
                self.how.output.name,
                self._link(hardware),
                Part(self.how.steps, f"profile of {spec.name}"),
                bits,
                restores,
                max_s=PROFILE_SHARE * max(0.0, self.until_s - monotonic()),
            )
            hardware = made if hardware is None else hardware.with_tables_of(made)
            hardware.save(self.how.output / PROFILE)
        if setting.is_there(self.how.output, spec, hardware):
            return hardware
        started_s = monotonic()
        needed_s = setting.seconds(spec, hardware, self.how)
        if self._affordable(name, needed_s):
            self.environment = setting.record(spec, hardware, self.how)
            took_s = monotonic() - started_s
            self.how.steps.note(f"{name}: {took_s:.0f} s, estimated {needed_s:.0f} s")
        return hardware

    def _link(self, hardware: HardwareProfile | None) -> str | None:
        """The pace to profile with: one link serves all models of a recording."""
        pace = None if hardware is None else hardware.links.h2d.paced_bytes_per_s
        return self.link if pace is None else f"{pace:.17g}B/s"

    def _affordable(self, name: str, needed_s: float) -> bool:
        left_s = max(0.0, self.until_s - monotonic())
        if needed_s > left_s:
            self.left_out.append(
                f"{name} left out: {left_s:.0f} s of --minutes were left, it takes about "
                f"{needed_s:.0f} s; the same command goes on."
            )
            self.how.steps.note(self.left_out[-1])
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


def covers(
    hardware: HardwareProfile, spec: ModelSpec, kv_bits: Sequence[int], restores: bool
) -> bool:
    """Whether a profile has the tables of a model."""
    heads = (spec.n_heads, spec.n_kv_heads, spec.head_dim)
    products = {(table.n, table.k) for table in hardware.gemm.tables}
    if (2 * spec.kv_size, spec.hidden_size) not in products:
        return False
    if not set(kv_bits) <= {table.bits for table in hardware.elementwise.tables}:
        return False
    block = hardware.restore
    tables = () if block is None or block.prefill is None else block.prefill.tables
    return not restores or heads in {(one.n_heads, one.n_kv_heads, one.head_dim) for one in tables}


def check_same_machine(output: Path, hardware: HardwareProfile, kind: str) -> None:
    """Refuse to go on with a recording of another machine.

    Raises:
        Mismatch: device or torch version differ.
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
    """Write a folder into a .tar.gz file, which appears only when it is whole."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    write_bytes(archive, packed.getvalue())


def recorded_peers(output: Path) -> list[dict[str, Any]]:
    """Reports on other systems in a recording."""
    return [read_json(path, "peers") for path in sorted(output.glob(f"*-{PEERS}"))]
