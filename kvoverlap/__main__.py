"""`python -m kvoverlap`: the command line as a process, which Ctrl-C ends at any moment."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130


class _Interrupt:
    """Raises KeyboardInterrupt on Ctrl-C, and remembers it: libraries catch it while they load."""

    def __init__(self) -> None:
        self.came = False

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        self.came = True
        raise KeyboardInterrupt


def run() -> int:
    """Run the command line; returns the exit status."""
    interrupt = _Interrupt()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    for name, mode in (("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the shell
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    try:
        from kvoverlap.cli.main import main

        status = main(interrupted=lambda: interrupt.came)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except Exception:
        if not interrupt.came:
            raise
        status = INTERRUPTED
    if interrupt.came and status:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # HiGHS sends it once more
        return INTERRUPTED
    return status


if __name__ == "__main__":
    sys.exit(run())
