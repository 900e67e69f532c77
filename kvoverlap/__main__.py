"""`python -m kvoverlap`: the command line as a process, which Ctrl-C ends at any moment.

Nothing is imported before `run`, whose first statement expects Ctrl-C.
"""

from __future__ import annotations

import sys

INTERRUPTED = 130

GARBAGE_THRESHOLD = 200_000
"""A long job has a million small objects that live until the end. Garbage collection among them
took a seventh of the planning time, and among those of the modules 5 ms."""


def run() -> int:
    """Run the command line; returns the exit status."""
    try:
        return _run()
    except KeyboardInterrupt:
        return INTERRUPTED


def _run() -> int:
    import gc
    import os
    import signal

    gc.set_threshold(GARBAGE_THRESHOLD)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # 20 ms less: nothing here uses its threads
    came = False

    def interrupt(_signal: int, _frame: object) -> None:
        """Remember Ctrl-C, because some libraries catch KeyboardInterrupt while they load."""
        nonlocal came
        came = True
        raise KeyboardInterrupt

    def unraisable(error: sys.UnraisableHookArgs) -> None:
        """End at once if Ctrl-C came in a callback of the interpreter, which cannot raise it."""
        if issubclass(error.exc_type, KeyboardInterrupt):
            os._exit(INTERRUPTED)
        sys.__unraisablehook__(error)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
        sys.unraisablehook = unraisable
    for name, mode in (("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the shell
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    try:
        from kvoverlap.cli.main import main

        status = main(interrupted=lambda: came)
    except Exception:
        if not came:
            raise
        status = INTERRUPTED
    if came and status:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # HiGHS sends it once more
        return INTERRUPTED
    gc.freeze()  # else the interpreter collects a plan's objects at its exit, for 0.15 s
    return status


if __name__ == "__main__":
    sys.exit(run())
