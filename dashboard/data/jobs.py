"""A measurement of this machine in the background: started, followed and stopped from a page.

It is `python -m measure.child` in its own process group, so that a stop ends it with its children
only. One measurement runs at a time, because two would disturb each other.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import IO, Any

from measure.child import COMMAND, Status, read_status
from sim.errors import BadInput
from sim.units import parse_counts

STOP_S = 5.0
"""Grace before a process that ignores the request to end is killed."""

MAX_OUTPUT_BYTES = 2**20
MAX_NAME = 61

MIN_DONE_FRAC = 0.05
"""Finished fraction from which the time left is estimated."""


@dataclass(frozen=True, slots=True)
class MeasurementRequest:
    """What to measure.

    Args:
        name: of the folder in `runs`.
        prompts, batches: comma-separated, as on the command line.
        model: a shipped name; None for the device's default.
        replaces: whether an earlier run of this name may be replaced.
    """

    name: str
    device: str
    prompts: str
    batches: str
    repeats: int
    model: str | None = None
    replaces: bool = False

    def to_dict(self, runs: Path) -> dict[str, Any]:
        """The request as `measure.child` reads it.

        Raises:
            BadInput: the name is not a folder name, or that of a run that must not be replaced; or
                a count is not a whole number above 0.
        """
        if not re.fullmatch(rf"\w[\w.-]{{0,{MAX_NAME - 1}}}", self.name):
            raise BadInput(
                f"name(={self.name}) must be of letters, digits, '-', '_' and '.', without spaces, "
                f"and have at most {MAX_NAME} characters."
            )
        if (runs / self.name).exists() and not self.replaces:
            raise BadInput(
                f"There is a run {self.name} already; give another name, or allow its replacement."
            )
        return {
            "out": str(runs / self.name),
            "device": self.device,
            "prompts": parse_counts("prompts", self.prompts),
            "batches": parse_counts("batches", self.batches),
            "repeats": self.repeats,
            "model": self.model,
        }


@dataclass
class Job:
    """One started measurement; its output goes to a file, so that it never waits for a reader.

    Args:
        visitor: who started it; another one is asked before it is stopped.
    """

    request: MeasurementRequest
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    visitor: str = ""
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

    @property
    def left_s(self) -> float | None:
        """Estimated seconds to its end; None until enough of it is done."""
        done = self.status.fraction
        return self.elapsed_s * (1 - done) / done if done >= MIN_DONE_FRAC else None

    @property
    def status(self) -> Status:
        """Progress, result and error so far."""
        output = os.pread(self.output.fileno(), MAX_OUTPUT_BYTES, 0)
        return read_status(output.decode(errors="replace"))

    @property
    def failure(self) -> str | None:
        """Why an ended measurement has no result, in one sentence; None if it has one."""
        status, code = self.status, self.process.returncode
        if status.error is not None:
            return status.error
        if code is not None and code < 0:
            return f"its process was killed by {signal.Signals(-code).name}."
        return None if status.result else f"its process ended without a result (status {code})."

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
    """The measurements of this server: the running one or the last one."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self.command = list(command)
        self.latest: Job | None = None
        self._lock = Lock()
        atexit.register(self.stop)

    @property
    def running(self) -> Job | None:
        """The measurement that runs now."""
        return self.latest if self.latest is not None and self.latest.running else None

    def start(self, request: MeasurementRequest, runs: Path, visitor: str = "") -> Job:
        """Start a measurement in the current folder.

        Raises:
            BadInput: the request is invalid, or a measurement is already running.
        """
        content = request.to_dict(runs)
        with self._lock, tempfile.TemporaryFile() as stdin:
            if self.latest is not None and self.latest.running:
                raise BadInput(f"{self.latest.request.name} is being measured; stop it first.")
            stdin.write(json.dumps(content).encode())
            stdin.seek(0)
            output = tempfile.TemporaryFile()  # noqa: SIM115
            process = subprocess.Popen(  # noqa: S603
                self.command,
                stdin=stdin,
                stdout=output,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self.latest = Job(request, process, output, visitor)
            return self.latest

    def stop(self) -> None:
        """End the running measurement, if there is one."""
        if self.latest is not None:
            self.latest.stop()
