"""Calls of this server in processes of their own: joined, limited, killed, and cached."""

from __future__ import annotations

import atexit
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from threading import BoundedSemaphore, Event, Lock, Thread
from time import monotonic
from typing import Any

from sim.errors import KvOverlapError

BUDGET_S = 120.0
"""Seconds after which a call is killed."""

MAX_RUNNING = 8
"""Calls that run at the same time; others wait."""

NICE_AFTER_S, NICE = 1.5, 15
"""A call that takes longer gets a lower priority, so that it does not slow short ones down."""

MAX_CACHED_BYTES, ENTRY_BYTES = 256 * 2**20, 4096
"""Limit of the cached answers by their pickled size, and what an answer of no size counts."""

POLL_S = 0.25
ROOT = Path(__file__).parents[2]


class OverBudget(KvOverlapError):
    """A call was killed because it took longer than its budget."""


class Died(KvOverlapError):
    """The process of a call ended without an answer, for example because memory ran out."""


@dataclass(frozen=True, slots=True)
class Call:
    """What to compute.

    Args:
        function: of a module that the fork server can import, or a method of a value that can be
            pickled.
        key: equal for equal calls.
        reports: whether the function takes a `Progress` as `progress`.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    key: str
    reports: bool = False


@dataclass(eq=False)
class Task:
    """One running or ended call, and what it has reported."""

    call: Call
    ended: Event = field(default_factory=Event)
    text: str = ""
    done: float | None = None
    value: tuple[Any, ...] = ()
    error: Exception | None = None
    started_s: float | None = None
    n_waiting: int = 0
    abandoned: bool = False
    pid: int | None = None

    @property
    def elapsed_s(self) -> float:
        """Seconds since its process started; 0 while it waits for one."""
        return 0.0 if self.started_s is None else monotonic() - self.started_s

    def result(self) -> Any:
        """The value of an ended call.

        Raises:
            KvOverlapError: the call raised it, or was killed.
        """
        if self.error is not None:
            raise self.error
        return self.value[0]


class Workers:
    """Runs calls in forked processes and caches their answers.

    Equal calls that run at the same time share a process, which is killed when the last one that
    waits for it leaves.
    """

    def __init__(self, budget_s: float = BUDGET_S) -> None:
        self.budget_s = budget_s
        self._lock = Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._running: dict[str, Task] = {}
        self._slots = BoundedSemaphore(MAX_RUNNING)
        self._cached: OrderedDict[str, tuple[Task, int]] = OrderedDict()
        self._cached_bytes = 0
        atexit.register(self.stop)

    def warm_up(self) -> None:
        """Start the fork server, which imports the planner."""
        with self._lock:
            self._control()

    def wait_until_warm(self) -> None:
        """Return when the fork server has imported the planner and serves calls."""
        task = self.join(Call(os.getpid, (), "warm"))
        task.ended.wait()
        self.leave(task)

    def join(self, call: Call) -> Task:
        """The task of a call: cached, running or started now. A caller must `leave` it."""
        with self._lock:
            if call.key in self._cached:
                self._cached.move_to_end(call.key)
                task = self._cached[call.key][0]
            elif call.key in self._running:
                task = self._running[call.key]
            else:
                task = self._running[call.key] = Task(call)
                Thread(target=self._follow, args=(task,), daemon=True).start()
            task.n_waiting += 1
            return task

    def leave(self, task: Task) -> None:
        """Stop waiting for a task; the last one that leaves a running task kills its process."""
        with self._lock:
            task.n_waiting -= 1
            if task.n_waiting == 0 and not task.ended.is_set():
                task.abandoned = True
                self._running.pop(task.call.key, None)
                _kill(task)

    def knows(self, key: str) -> bool:
        """Whether the answer of a call is cached."""
        return key in self._cached

    @property
    def n_running(self) -> int:
        """Calls that run or wait for a process."""
        return len(self._running)

    def stop(self) -> None:
        """End the server and all calls."""
        with self._lock:
            for task in self._running.values():
                task.abandoned = True
                _kill(task)
            if self._socket is not None:
                self._socket.close()
            if self._server is not None:
                self._server.terminate()
                self._server.wait()
            self._server = self._socket = None

    def _control(self) -> socket.socket:
        """The socket of the running fork server."""
        if self._socket is None or self._server is None or self._server.poll() is not None:
            if self._socket is not None:
                self._socket.close()
            self._socket, theirs = socket.socketpair()
            command = [sys.executable, "-m", "dashboard.workers.fork_server", str(theirs.fileno())]
            paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
            with theirs:
                self._server = subprocess.Popen(  # noqa: S603
                    command,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, "PYTHONPATH": paths},
                )
        return self._socket

    def _follow(self, task: Task) -> None:
        """Run a call and read its messages until it has ended."""
        with self._slots:
            if not task.abandoned:
                size = self._run(task)
                with self._lock:
                    if not task.abandoned:
                        self._running.pop(task.call.key, None)
                        self._store(task, size)
        task.ended.set()

    def _run(self, task: Task) -> int:
        """Returns the pickled size of the answer."""
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            socket.send_fds(self._control(), [b"call"], [theirs.fileno()])
        size = 0
        with Connection(ours.detach()) as connection:
            task.started_s = monotonic()
            call, nice = task.call, False
            try:
                connection.send_bytes(pickle.dumps((call.function, call.arguments, call.reports)))
                while not task.value and task.error is None:
                    if connection.poll(POLL_S):
                        size = self._read(task, connection.recv())
                    if task.elapsed_s > self.budget_s:
                        task.error = OverBudget(f"stopped after {self.budget_s:g} s.")
                    if task.elapsed_s > NICE_AFTER_S and not nice and task.pid is not None:
                        nice = True
                        with suppress(OSError):
                            os.setpriority(os.PRIO_PROCESS, task.pid, NICE)
            except (EOFError, OSError):
                task.error = Died("its process ended without an answer; memory may have run out.")
            with self._lock:
                if isinstance(task.error, OverBudget):
                    _kill(task)
                task.pid = None
        return size

    def _read(self, task: Task, message: tuple[Any, ...]) -> int:
        """Take one message; returns the size of an answer."""
        match message:
            case ("started", pid):
                with self._lock:
                    task.pid = pid
                    if task.abandoned:
                        _kill(task)
            case ("progress", text, done):
                task.text, task.done = text, done
            case ("result", pickled):
                task.value = (pickle.loads(pickled),)  # noqa: S301
                return len(pickled)
            case ("failed", kind, arguments):
                task.error = _rebuilt(kind, arguments)
            case ("crashed", text):
                task.error = RuntimeError(text)
        return 0

    def _store(self, task: Task, size: int) -> None:
        """Cache an answer or a refusal; the answers used longest ago make room."""
        if isinstance(task.error, OverBudget | Died | RuntimeError) or size > MAX_CACHED_BYTES:
            return
        size += ENTRY_BYTES
        self._cached[task.call.key] = task, size
        self._cached_bytes += size
        while self._cached_bytes > MAX_CACHED_BYTES:
            _, (_, freed) = self._cached.popitem(last=False)
            self._cached_bytes -= freed


def _rebuilt(kind: type[Exception], arguments: tuple[Any, ...]) -> Exception:
    """An exception with its message, whatever its class takes."""
    error = kind.__new__(kind)
    error.args = arguments
    return error


def _kill(task: Task) -> None:
    """Kill the process of a running task."""
    if task.pid is not None:
        with suppress(OSError):
            os.kill(task.pid, signal.SIGKILL)


WORKERS = Workers()
"""The processes of this server, shared by all visitors; none runs before the first call."""
