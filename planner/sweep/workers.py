"""Where batches are answered: in this process, in several, or on a Dask cluster."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from itertools import islice
from typing import Any

from planner.sweep.batch import Batch, answer_batch
from sim.errors import BadInput, KvOverlapError, SweepStopped

Answered = tuple[Batch, bytes]
Executor = Callable[[Iterator[Batch]], Iterator[Answered]]
"""Answers batches in any order, each once; takes the next only when there is somebody to do it."""

AHEAD = 2
"""Batches that are on their way to each worker beside the one it answers."""

ORPHAN_S = 0.5
"""How long a process goes on after the one that asked it was killed."""

CONNECT_S = 10.0
"""How long a Dask scheduler may take to answer."""

EXECUTORS = ("local", "dask")


def _answered(batch: Batch) -> Answered:
    return batch, answer_batch(batch)


def _answered_for(asker: int, batch: Batch) -> Answered:
    """As `_answered`, in a process that ends soon after the one that asks was killed."""
    _follow(asker)
    return _answered(batch)


@cache
def _follow(asker: int) -> None:
    def watch() -> None:
        while os.getppid() == asker:
            time.sleep(ORPHAN_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def local(jobs: int) -> Executor:
    """Processes of this machine.

    Raises:
        SweepStopped: one of them died, for want of memory perhaps.
    """

    def run(batches: Iterator[Batch]) -> Iterator[Answered]:
        if jobs == 1:
            yield from map(_answered, batches)
            return
        from joblib import Parallel, delayed
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        parallel = Parallel(
            n_jobs=jobs,
            backend="loky",
            return_as="generator_unordered",
            batch_size=1,
            pre_dispatch=(1 + AHEAD) * jobs,
        )
        try:
            asked = delayed(_answered_for)
            yield from parallel(asked(os.getpid(), batch) for batch in batches)
        except TerminatedWorkerError as error:
            raise _stopped(str(error).partition("\n")[0]) from None

    return run


def dask(address: str) -> Executor:
    """A Dask cluster, whose workers have the same version of this program.

    A batch whose worker dies goes to another one; its rows are kept once, when they arrive.

    Raises:
        BadInput: Dask is not installed, or there is no scheduler at the address.
        SweepStopped: a batch took several workers with it.
    """
    if find_spec("distributed") is None:
        raise BadInput(
            "--executor dask needs Dask, which is not installed: "
            "pip install 'kvoverlap[sweep,distributed]'."
        )

    def run(batches: Iterator[Batch]) -> Iterator[Answered]:
        from distributed import Client, as_completed
        from distributed.scheduler import KilledWorker

        try:
            client = Client(address, timeout=CONNECT_S, set_as_default=False)
        except (OSError, ValueError) as error:
            raise BadInput(
                f"--address(={address}): no Dask scheduler answers there ({error})."
            ) from None
        with client:
            first = list(islice(batches, (1 + AHEAD) * max(1, _threads(client))))
            futures = [client.submit(_answered, batch, pure=False) for batch in first]
            running = as_completed(futures, loop=client.loop)
            try:
                for future in running:
                    yield future.result()
                    future.release()
                    for batch in islice(batches, 1):
                        running.add(client.submit(_answered, batch, pure=False))
            except KilledWorker as error:
                raise _stopped(str(error).partition("\n")[0]) from None

    return run


def _threads(client: Any) -> int:
    return sum(client.nthreads().values())


def _stopped(why: str) -> KvOverlapError:
    return SweepStopped(f"workers died ({why}); finished points are kept, go on with --resume.")
