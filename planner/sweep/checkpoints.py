"""Finished batches of a sweep on disk, so that a killed sweep can resume.

The checkpoints of `out.parquet` are in the folder `out.parquet.parts`: `sweep.json` identifies the
study, and each finished batch has a `part-<first>-<last>.parquet`. Every file is renamed into place
when it is complete, so that a kill at any moment loses only the batches in progress. At the end the
parts are merged in order and removed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from planner.sweep.study import Study
from planner.sweep.table import POINT, PROVENANCE, provenance, schema, to_bytes, with_provenance
from sim.errors import BadFile, BadInput, Mismatch
from sim.files import VERSION, read_json, write_bytes, write_json

PART_NAME = re.compile(r"part-(\d+)-(\d+)\.parquet")
DESCRIPTION = "sweep.json"


@dataclass(frozen=True)
class Checkpoints:
    """Finished batches of one study's sweep into one table."""

    study: Study
    output: Path

    @property
    def folder(self) -> Path:
        return self.output.with_name(self.output.name + ".parts")

    def __post_init__(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise BadInput(f"{self.folder} is a file; remove it or choose another output.")

    @cached_property
    def columns(self) -> pa.Schema:
        return schema(self.study)

    def begin(self, resume: bool) -> None:
        """Create the folder, or check that an earlier run of the same study made it.

        Raises:
            BadInput: the folder exists and `resume` is false.
            Mismatch: the folder belongs to another study or version.
        """
        expected = {"study_sha256": self.study.sha256, "version": VERSION}
        if self.folder.exists() and not resume:
            raise BadInput(
                f"{self.folder} has the finished points of a stopped sweep: add --resume to "
                "continue it, or delete the folder."
            )
        if not (self.folder / DESCRIPTION).exists():  # new, or killed before its first part
            write_json(self.folder / DESCRIPTION, "sweep-parts", expected)
        found = read_json(self.folder / DESCRIPTION, "sweep-parts")
        if found != expected:
            other = "version" if found["study_sha256"] == expected["study_sha256"] else "study"
            raise Mismatch(
                f"{self.folder} belongs to another {other}; delete the folder, or choose another "
                "output."
            )

    @contextmanager
    def discarded_if_empty(self) -> Iterator[None]:
        """Remove the folder of a sweep that fails or is stopped before its first part."""
        try:
            yield
        except BaseException:
            if not any(self._parts()):
                shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def is_complete(self) -> bool:
        """Whether the table exists and is of this study and version."""
        if self.folder.exists() or not self.output.is_file():
            return False
        try:
            found = provenance(pq.read_schema(self.output)) or {}
        except (pa.ArrowInvalid, OSError):
            return False
        return [found.get(key) for key in PROVENANCE] == [VERSION, self.study.sha256]

    def done(self) -> set[int]:
        """Numbers of the finished points."""
        return {point for first, last, _ in self._parts() for point in range(first, last + 1)}

    def save(self, first: int, last: int, payload: bytes) -> None:
        """Write the rows of points `first` to `last`."""
        write_bytes(self.folder / f"part-{first:09d}-{last:09d}.parquet", payload)

    def merge(self, n_points: int) -> pa.Table:
        """Merge the parts, write the table and remove the parts.

        Raises:
            BadFile: a part is unreadable.
            Mismatch: the parts are not exactly the study's points.
        """
        tables = [self._read(path) for _, _, path in sorted(self._parts())]
        table = pa.concat_tables([self.columns.empty_table(), *tables]).combine_chunks()
        if table.column(POINT).to_pylist() != list(range(n_points)):
            raise Mismatch(
                f"the parts in {self.folder} are not the {n_points} points of the study, each "
                "once; delete the folder and run the sweep again."
            )
        table = with_provenance(table, self.study)
        write_bytes(self.output, to_bytes(table))
        shutil.rmtree(self.folder)
        return table

    def _read(self, path: Path) -> pa.Table:
        try:
            return pq.read_table(path).cast(self.columns)
        except (pa.ArrowException, ValueError, OSError) as error:
            raise BadFile(
                f"{path} cannot be read ({error}); delete it and continue with --resume."
            ) from None

    def _parts(self) -> Iterator[tuple[int, int, Path]]:
        for path in self.folder.iterdir() if self.folder.exists() else ():
            if match := PART_NAME.fullmatch(path.name):
                yield int(match[1]), int(match[2]), path
