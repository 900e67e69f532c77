"""A competing load on one core, in place of other work on a shared device.

Spinning processes compete with the compute thread under Linux's fair scheduler. `n` of equal weight
leave it 1 / (1 + n) of the core; one of lower weight (a higher nice value) sets the remainder.
Signals stop and resume them at the times of the trace.
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
    """Nice values of spinning processes that leave `frac` of a core to a thread of nice 0."""
    others = (1 - frac) / frac
    whole, rest = divmod(others, 1.0)
    nices = [0] * int(whole)
    if rest > MIN_WEIGHT:
        nices.append(round(-math.log(rest) / math.log(NICE_STEP)))
    return nices


def check_competition(trace: Availability) -> None:
    """Raise BadInput if a competing load cannot produce the compute shares of the trace."""
    for step in trace.steps:
        frac = trace.at(step.start_s, COMPUTE)
        if not MIN_FRAC <= frac <= 1:
            raise BadInput(
                f"compute(={frac:g}) at {step.start_s:g} s must be between {MIN_FRAC} and 1 on "
                "the cpu device: a competing load takes only a part of a core."
            )
    if not hasattr(os, "sched_setaffinity"):
        raise BadInput("this system cannot pin a competing load to one core; leave compute out.")


class CompetingLoad:
    """Spinning processes for every share of a trace, stopped until `follow` resumes them.

    Args:
        core: number of the core of the compute lane.
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
        command = [sys.executable, "-S", "-c", SPIN, str(core), str(nice), str(os.getpid())]
        process = subprocess.Popen(command)  # noqa: S603 - no outside input
        os.waitpid(process.pid, os.WUNTRACED)
        return process

    def follow(self, zero_s: float) -> None:
        """Start to follow the trace; its time zero is `zero_s` on the clock `perf_counter`."""
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
        """Stop following and kill the processes."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        for processes in self._processes.values():
            for process in processes:
                process.kill()
                process.wait()
