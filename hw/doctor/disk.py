"""Rate of reads from the disk that holds temporary files, and how they bypass the page cache."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from hw.backends import Backend
from hw.doctor.check import Check, Durations, judged
from hw.tiers.direct_io import DIRECT, IN_FLIGHT, DirectReader, aligned_buffer
from sim.errors import BadFile

READ_BYTES = 4 * 2**20
PASSES = 3

ADVICE = (
    "Restores from ssd may be timed from memory: set TMPDIR to a folder whose file system allows "
    "O_DIRECT."
)


@dataclass(frozen=True, slots=True)
class DiskRate:
    """Bytes per second of reads of 4 MiB, several at a time, and how the page cache is bypassed."""

    bytes_per_s: float
    mode: str


def disk_rate(backend: Backend, n_bytes: int) -> DiskRate:
    """Write a temporary file of `n_bytes` and read it; the median of three passes."""
    buffers = [aligned_buffer(backend, READ_BYTES) for _ in range(IN_FLIGHT)]
    n_reads = max(IN_FLIGHT, n_bytes // READ_BYTES)
    content = torch.randint(0, 256, (READ_BYTES,), dtype=torch.uint8).numpy().tobytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "doctor.bin"
        with path.open("wb") as file:
            for _ in range(n_reads):
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with DirectReader(path) as reader:

            def read(worker: int) -> int:
                """Every fourth block, into the worker's own buffer."""
                return sum(
                    reader.read(block * READ_BYTES, buffers[worker])
                    for block in range(worker, n_reads, IN_FLIGHT)
                )

            rates = []
            for _ in range(PASSES):
                start_s = time.perf_counter()
                n_read = sum(reader.several(read, range(IN_FLIGHT)))
                rates.append(n_read / (time.perf_counter() - start_s))
            return DiskRate(median(rates), reader.mode)


def check_disk(backend: Backend, durations: Durations) -> Check:
    """Whether cache files are read from the disk and not from the page cache."""
    try:
        found = disk_rate(backend, durations.disk_bytes)
    except (OSError, BadFile) as error:
        return Check("disk", "warned", f"not measured: {error}", ADVICE)
    measured = (
        f"{found.bytes_per_s / 1e9:.3g} GB/s in {tempfile.gettempdir()}, {IN_FLIGHT} reads of "
        f"{READ_BYTES // 2**20} MiB at a time; {found.mode}"
    )
    return judged("disk", measured, () if found.mode == DIRECT else (ADVICE,))
