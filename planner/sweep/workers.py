"""Executors of batches: this process, several local processes, or a Dask cluster."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from itertools import islice

from planner.sweep.batch import Batch, batch_rows
from sim.errors import BadInput, SweepStopped

BatchRows = tuple[Batch, bytes]
Executor = Callable[[Iterator[Batch]], Iterator[BatchRows]]
"""Computes batches in any order, each once, and draws the next one only when a worker is free."""

AHEAD = 2
"""Batches queued for each worker in addition to the one that it computes."""

ORPHAN_S = 0.5
"""Interval at which a worker process checks that its parent is alive."""

CONNECT_S = 10.0
"""Time limit for the connection to a Dask scheduler."""

EXECUTORS = ("local", "dask")


def _rows_of(batch: Batch) -> BatchRows:
    return batch, batch_rows(batch)


def _rows_for(parent: int, batch: Batch) -> BatchRows:
    """As `_rows_of`, in a process that ends soon after its parent was killed."""
    _end_with(parent)
    return _rows_of(batch)


@cache
def _end_with(parent: int) -> None:
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(ORPHAN_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def local(jobs: int) -> Executor:
    """An executor of local processes.

    Raises:
        SweepStopped: a process died, for example because memory ran out.
    """

    def run(batches: Iterator[Batch]) -> Iterator[BatchRows]:
        if jobs == 1:
            yield from map(_rows_of, batches)
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
            yield from parallel(delayed(_rows_for)(os.getpid(), batch) for batch in batches)
        except TerminatedWorkerError as error:
            raise _stopped(str(error).partition("\n")[0]) from None

    return run


def dask(address: str) -> Executor:
    """An executor of a Dask cluster, whose workers have the same version of this program.

    Dask sends a batch whose worker dies to another worker.

    Raises:
        BadInput: Dask is not installed, or no scheduler answers at the address.
        SweepStopped: several workers died in the same batch.
    """
    if find_spec("distributed") is None:
        raise BadInput(
            "--executor dask needs Dask, which is not installed: "
            "pip install 'kvoverlap[sweep,distributed]'."
        )

    def run(batches: Iterator[Batch]) -> Iterator[BatchRows]:
        from distributed import Client, as_completed
        from distributed.scheduler import KilledWorker

        try:
            client = Client(address, timeout=CONNECT_S, set_as_default=False)
        except (OSError, ValueError) as error:
            raise BadInput(
                f"--address(={address}): no Dask scheduler answers there ({error})."
            ) from None
        with client:
            workers = max(1, sum(client.nthreads().values()))
            first = list(islice(batches, (1 + AHEAD) * workers))
            futures = [client.submit(_rows_of, batch, pure=False) for batch in first]
            running = as_completed(futures, loop=client.loop)
            try:
                for future in running:
                    yield future.result()
                    future.release()
                    for batch in islice(batches, 1):
                        running.add(client.submit(_rows_of, batch, pure=False))
            except KilledWorker as error:
                raise _stopped(str(error).partition("\n")[0]) from None

    return run


def _stopped(why: str) -> SweepStopped:
    return SweepStopped(f"workers died ({why}); continue the finished points with --resume.")
