"""`python -m dashboard.workers.fork_server FD`: a process that forks one child for each call.

It imports the planner once, so that a child answers at once. Its parent sends one end of a socket
pair for each call over the socket `FD` and keeps the other end. The child reads one pickled
`(function, arguments, reports)` from it and writes pickled messages:

    ("started", process id)
    ("progress", text, fraction or None)
    ("result", pickled value)         the last message of a call that returned
    ("failed", class, arguments)      the last one of a call that raised an expected failure
    ("crashed", text)                 the last one of any other call

A child ends when its parent closes the socket, and the server when its parent ends.
"""

from __future__ import annotations

import gc
import importlib
import os
import pickle
import signal
import socket
import sys
import threading
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

WARM = (
    "planner.advice",
    "planner.sweep",
    "highspy",
    "dashboard.questions.points",
    "dashboard.questions.restore",
    "dashboard.questions.traffic",
)
"""Modules that are imported before the first call."""

MAX_MESSAGE = 16

COLLECT_AFTER = 50_000
"""New objects until Python searches for circular garbage. A plan or a recording has as many, and
the usual 700 takes a third of the time of making them."""


class Reporter:
    """A `Progress` that sends messages."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __call__(self, text: str, done: float | None = None) -> None:
        self._connection.send(("progress", text, done))

    def note(self, text: str) -> None:
        self(text)


def main() -> None:
    """Import the planner, then fork a child for each connection until the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    parent = socket.socket(fileno=int(sys.argv[1]))
    warm_up()
    while True:
        message, fds, _, _ = socket.recv_fds(parent, MAX_MESSAGE, 1)
        if not message:
            return
        if os.fork() == 0:
            parent.close()
            _serve_and_end(fds[0])
        os.close(fds[0])


def warm_up() -> None:
    """Import what the calls need, and load the compiled engine.

    HiGHS is not used, because its threads would not survive a fork.
    """
    for name in WARM:
        importlib.import_module(name)
    load_engine()
    collect_rarely()


def collect_rarely() -> None:
    """Leave what is imported out of Python's searches for circular garbage, and search rarely."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


def load_engine() -> None:
    """Load the compiled simulator by its use, which takes about a second once in a process."""
    from dashboard.questions.decode import ENGINE
    from planner.decode.lower import lower
    from sim.catalog import find_hardware, find_model
    from sim.engine.api import simulate
    from sim.graph.jobs import Workload

    model = find_model("opt-125m")
    graph = lower("row", model, Workload(1, 8, 1), [[0] * model.n_layers])
    simulate(graph, find_hardware("kvpr-a100"), ENGINE)


def _serve_and_end(fd: int) -> None:
    """Serve one call; never returns, and runs no handlers of the server's end."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        serve(Connection(fd))
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)


def serve(connection: Connection) -> None:
    """Serve the call that a connection brings."""
    from sim.errors import KvOverlapError

    connection.send(("started", os.getpid()))
    try:
        function, arguments, reports = pickle.loads(connection.recv_bytes())  # noqa: S301
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
        more: dict[str, Any] = {"progress": Reporter(connection)} if reports else {}
        answer: tuple[Any, ...] = ("result", pickle.dumps(function(*arguments, **more)))
    except KvOverlapError as error:
        answer = ("failed", type(error), error.args)
    except BrokenPipeError:
        return
    except BaseException as error:
        traceback.print_exc()
        answer = ("crashed", " ".join(f"{type(error).__name__}: {error}".split()))
    connection.send(answer)


def _end_with(connection: Connection) -> None:
    """End this process when the other end of its connection closes."""
    with suppress(EOFError, OSError):
        connection.recv_bytes()
    os._exit(1)


if __name__ == "__main__":
    main()
