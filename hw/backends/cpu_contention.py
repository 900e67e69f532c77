"""A load that takes part of one core away, as other work on a shared device would.

Processes that do nothing but spin compete with the core's own thread under the system's fair
scheduler. So many of equal weight leave it 1 / (1 + n) of the core; one of less weight (a higher
nice value) makes up the rest. They are stopped and woken when the trace says.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time

from sim.errors import BadInput
from sim.lanes import COMPUTE
from sim.machine.availability import Availability

MIN_FRAC = 0.05
NICE_STEP = 1.25
"""Ratio of the weights of two neighbouring nice values (kernel/sched/core.c)."""

MIN_WEIGHT = NICE_STEP**-19

SPIN = """
import os, signal, sys
core, nice, parent = map(int, sys.argv[1:])
os.sched_setaffinity(0, {core})
os.nice(nice)
os.kill(os.getpid(), signal.SIGSTOP)
while os.getppid() == parent:
    for _ in range(10**5):
        pass
"""


def competing_weights(frac: float) -> list[int]:
    """Nice values of the processes that leave `frac` of a core to a thread of nice 0."""
    others = (1 - frac) / frac
    whole, rest = divmod(others, 1.0)
    nices = [0] * int(whole)
    if rest > MIN_WEIGHT:
        nices.append(round(-math.log(rest) / math.log(NICE_STEP)))
    return nices


def check_competition(trace: Availability) -> None:
    """Raise BadInput where a trace asks for what a competing load cannot do."""
    for step in trace.steps:
        frac = trace.at(step.start_s, COMPUTE)
        if not MIN_FRAC <= frac <= 1:
            raise BadInput(
                f"compute(={frac:g}) at {step.start_s:g} s must be between {MIN_FRAC} and 1 on "
                "the cpu device: a competing load takes part of a core, and never all of it."
            )
    if not hasattr(os, "sched_setaffinity"):
        raise BadInput("this system cannot keep a competing load to one core; leave compute out.")


class CompetingLoad:
    """Stopped processes for every fraction of a trace; `follow` wakes them when their time comes.

    Args:
        core: number of the core that the compute lane has.
    """

    def __init__(self, core: int, trace: Availability) -> None:
        self._trace = trace
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        fractions = {trace.at(step.start_s, COMPUTE) for step in trace.steps}
        self._processes = {
            frac: [self._stopped(core, nice) for nice in competing_weights(frac)]
            for frac in fractions
            if frac < 1
        }

    @staticmethod
    def _stopped(core: int, nice: int) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-S", "-c", SPIN, str(core), str(nice), str(os.getpid())]
        process = subprocess.Popen(words)  # noqa: S603 - our own words
        os.waitpid(process.pid, os.WUNTRACED)
        return process

    def follow(self, zero_s: float) -> None:
        """From now on follow the trace, whose time zero is `zero_s` of `perf_counter`."""
        self._thread = threading.Thread(target=self._follow, args=(zero_s,), daemon=True)
        self._thread.start()

    def _follow(self, zero_s: float) -> None:
        spinning: list[subprocess.Popen[bytes]] = []
        for step in self._trace.steps:
            if self._ended.wait(max(0.0, zero_s + step.start_s - time.perf_counter())):
                break
            wanted = self._processes.get(self._trace.at(step.start_s, COMPUTE), [])
            for process in spinning:
                process.send_signal(signal.SIGSTOP)
            for process in wanted:
                process.send_signal(signal.SIGCONT)
            spinning = wanted

    def end(self) -> None:
        """End all of it."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        for processes in self._processes.values():
            for process in processes:
                process.kill()
                process.wait()
