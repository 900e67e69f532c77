"""Reads that bypass the page cache, into aligned buffers, several at a time."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self, TypeVar

import torch
from torch import Tensor

from hw.backends import Backend
from sim.errors import BadFile

ALIGNMENT = 4096
"""Alignment of offsets, lengths and addresses for O_DIRECT on common disks, in bytes."""

IN_FLIGHT = 4
"""Concurrent reads."""

DIRECT = "O_DIRECT"
DROPPED = "page cache dropped before each read (O_DIRECT was refused)"

Job = TypeVar("Job")
Result = TypeVar("Result")


def aligned(n_bytes: int) -> int:
    """The next multiple of the alignment."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def aligned_buffer(backend: Backend, n_bytes: int) -> Tensor:
    """[n] bytes of aligned host memory that both disk reads and copy lanes can use."""
    whole = backend.host_empty((n_bytes + ALIGNMENT,), torch.uint8)
    skipped = -whole.data_ptr() % ALIGNMENT
    return whole[skipped : skipped + n_bytes]


class DirectReader:
    """One open file; `mode` is how reads avoid the page cache.

    Raises:
        BadFile: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file, self.mode = self._open()
        except OSError as error:
            raise BadFile(f"{path} cannot be read: {error.strerror}; check the path.") from None
        self._pool = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="read")

    def _open(self) -> tuple[int, str]:
        direct = getattr(os, "O_DIRECT", 0)
        if direct:
            try:
                file = os.open(self.path, os.O_RDONLY | direct)
                with mmap.mmap(-1, ALIGNMENT) as page:  # some file systems refuse only the read
                    os.preadv(file, [page], 0)
                return file, DIRECT
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
        return os.open(self.path, os.O_RDONLY), DROPPED

    def read(self, offset: int, into: Tensor) -> int:
        """Fill a buffer from `offset` on; returns the bytes read, fewer at the end of the file.

        Args:
            into: uint8, with aligned address and length.

        Raises:
            OSError: the disk failed.
        """
        if self.mode != DIRECT and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file, offset, into.numel(), os.POSIX_FADV_DONTNEED)
        view, done = into.numpy().data, 0
        while done < len(view):
            count = os.preadv(self._file, [view[done:]], offset + done)
            done += count
            if count == 0 or done % ALIGNMENT:  # direct reads end short only where the file does
                break
        return done

    def several(self, work: Callable[[Job], Result], jobs: Iterable[Job]) -> list[Result]:
        """Results of `work` on every job, `IN_FLIGHT` at a time."""
        return list(self._pool.map(work, jobs))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown()
        os.close(self._file)
