"""A measurement of this machine in the background: started, followed and stopped from a page.

It is `kvoverlap validate` in a process group of its own, so that stopping it ends it and what it
started and nothing else. One runs at a time: two would measure each other.
"""

from __future__ import annotations

import atexit
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import IO

from sim.errors import BadInput
from sim.units import parse_counts

PROFILE_PART = 0.25
"""About the part of the whole that profiling takes."""

EXTRA_ROUNDS = 1
"""Rounds that validate adds where runs were disturbed."""

STOP_S = 5.0
"""Grace before a process that ignores the request to end is killed."""


@dataclass(frozen=True, slots=True)
class MeasurementRequest:
    """What to measure.

    Args:
        name: of the folder in `runs`.
        prompts, batches: comma-separated, as on the command line.
        model: a shipped name; None for the device's default.
    """

    name: str
    device: str
    prompts: str
    batches: str
    repeats: int
    model: str | None = None

    def check(self) -> None:
        """Refuse what the command would refuse, before anything starts.

        Raises:
            BadInput: a name that is no plain folder name, or counts that are not whole numbers.
        """
        if not re.fullmatch(r"\w[\w.-]{0,60}", self.name):
            raise BadInput(
                f"name(={self.name}) must be of letters, digits, '-', '_' and '.', without spaces."
            )
        parse_counts("prompts", self.prompts)
        parse_counts("batches", self.batches)

    @property
    def n_shapes(self) -> int:
        return len(parse_counts("p", self.prompts)) * len(parse_counts("b", self.batches))

    def arguments(self, runs: Path) -> list[str]:
        """Of the `kvoverlap` command."""
        words = ["validate", "--device", self.device, "--prompts", self.prompts]
        words += ["--batches", self.batches, "--repeats", str(self.repeats)]
        words += ["--out", str(runs / self.name)]
        return words if self.model is None else [*words, "--model", self.model]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a measurement is.

    Args:
        done_frac: part of the whole, by what it said last.
        doing: what it said last.
    """

    done_frac: float
    doing: str


def read_progress(lines: Sequence[str], n_shapes: int, repeats: int) -> Progress:
    """Progress from what `kvoverlap validate` writes to stderr without a terminal.

    Lines are `profile: pass 3 of 8` and `validate: opt-125m b4-s300, round 2`.
    """
    done, doing = 0.0, "starting"
    seen: list[str] = []
    for line in lines:
        title, _, text = line.partition(": ")
        if title == "profile" and (found := re.match(r"pass (\d+) of (\d+)", text)):
            done = PROFILE_PART * (int(found[1]) - 1) / int(found[2])
        elif title == "validate" and (
            found := re.match(r"(.*\bb\d+-s\d+)(?:, round (\d+))?", text)
        ):
            if found[1] not in seen:
                seen.append(found[1])
            of_shape = int(found[2] or 0) / (repeats + EXTRA_ROUNDS + 1)
            done = PROFILE_PART + (1 - PROFILE_PART) * (len(seen) - 1 + of_shape) / n_shapes
        elif title == "validate":
            done = max(done, PROFILE_PART)
        else:
            continue
        doing = f"{title}: {text}"
    return Progress(min(done, 1.0), doing)


@dataclass
class Job:
    """One started measurement."""

    order: MeasurementRequest
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    started_s: float = field(default_factory=monotonic)
    ended_s: float | None = None
    stopped: bool = False

    @property
    def running(self) -> bool:
        if self.process.poll() is None:
            return True
        if self.ended_s is None:
            self.ended_s = monotonic()
        return False

    @property
    def elapsed_s(self) -> float:
        return (self.ended_s or monotonic()) - self.started_s

    def lines(self) -> list[str]:
        """What it has written so far."""
        text = os.pread(self.log.fileno(), 2**20, 0).decode(errors="replace")
        return [line for line in text.splitlines() if line.strip()]

    @property
    def progress(self) -> Progress:
        return read_progress(self.lines(), self.order.n_shapes, self.order.repeats)

    @property
    def reason(self) -> str:
        """Why it failed: its own last sentence."""
        said = [line for line in self.lines() if line.startswith("error: ")]
        return said[-1].removeprefix("error: ") if said else f"status {self.process.returncode}"

    def stop(self) -> None:
        """End its process group and nothing else."""
        if not self.running:
            return
        self.stopped = True
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Jobs:
    """The one measurement of this server, the running one or the last."""

    def __init__(self, command: Sequence[str] = (sys.executable, "-m", "kvoverlap")) -> None:
        self.command = list(command)
        self.latest: Job | None = None
        self._lock = Lock()
        atexit.register(self.stop)

    def start(self, order: MeasurementRequest, runs: Path) -> Job:
        """Start a measurement in the current folder.

        Raises:
            BadInput: the order cannot be, or one is running.
        """
        order.check()
        with self._lock:
            if self.latest is not None and self.latest.running:
                raise BadInput(f"{self.latest.order.name} is being measured; stop it first.")
            log = tempfile.TemporaryFile()  # noqa: SIM115
            process = subprocess.Popen(  # noqa: S603
                [*self.command, *order.arguments(runs)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                env=_plain_environment(),
            )
            self.latest = Job(order, process, log)
            return self.latest

    def stop(self) -> None:
        """End the running measurement, if there is one."""
        if self.latest is not None:
            self.latest.stop()


def _plain_environment() -> dict[str, str]:
    """Without what would make the command draw for a terminal."""
    hidden = ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    return {key: value for key, value in os.environ.items() if key not in hidden}
