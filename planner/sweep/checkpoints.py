"""What a sweep has finished, in files that nothing half-written can spoil.

Beside the table `out.parquet` lies the folder `out.parquet.parts`: `sweep.json` says of which study
it is, and `part-<first>-<last>.parquet` holds the rows of these points, first to last. A part is
written under another name and renamed when it is whole, so that a sweep killed at any moment loses
the batches under way and nothing else. At the end the parts are put together, in order, and go.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from planner.sweep.study import Study
from planner.sweep.table import POINT, provenance, schema, to_bytes, with_provenance
from sim.errors import BadFile, BadInput, Mismatch
from sim.files import VERSION, read_json, write_bytes, write_json

PART_NAME = re.compile(r"part-(\d+)-(\d+)\.parquet")
DESCRIPTION = "sweep.json"


@dataclass(frozen=True)
class Parts:
    """The finished part of one study's sweep into one table."""

    study: Study
    output: Path

    @property
    def folder(self) -> Path:
        return self.output.with_name(self.output.name + ".parts")

    @cached_property
    def columns(self) -> pa.Schema:
        return schema(self.study)

    def begin(self, resume: bool) -> None:
        """Start anew, or go on where an earlier run of the same study stopped.

        Raises:
            BadInput: there are parts already, and nobody said to go on.
            Mismatch: the parts are of another study or version.
        """
        said = {"study_sha256": self.study.sha256, "version": VERSION}
        if not self.folder.exists():
            write_json(self.folder / DESCRIPTION, "sweep-parts", said)
            return
        if not resume:
            raise BadInput(
                f"{self.folder} holds the finished points of a sweep that was stopped: add "
                "--resume to go on with it, or delete the folder."
            )
        if not (self.folder / DESCRIPTION).exists():  # killed before its first part
            write_json(self.folder / DESCRIPTION, "sweep-parts", said)
        found = read_json(self.folder / DESCRIPTION, "sweep-parts")
        if found != said:
            what = "version" if found.get("study_sha256") == said["study_sha256"] else "study"
            raise Mismatch(
                f"{self.folder} was begun with another {what}: its points would not belong to the "
                "same table; delete the folder, or choose another output."
            )

    def is_complete(self) -> bool:
        """Whether the table is there and holds this study's answers by this version."""
        if self.folder.exists() or not self.output.is_file():
            return False
        try:
            said = provenance(pq.read_schema(self.output)) or {}
        except (pa.ArrowInvalid, OSError):
            return False
        return (said.get("study_sha256"), said.get("kvoverlap_version")) == (
            self.study.sha256,
            VERSION,
        )

    def done(self) -> set[int]:
        """Numbers of the points that are finished."""
        return {point for first, last, _ in self._parts() for point in range(first, last + 1)}

    def save(self, first: int, last: int, payload: bytes) -> None:
        """Keep the rows of points `first` to `last`."""
        write_bytes(self.folder / f"part-{first:09d}-{last:09d}.parquet", payload)

    def merge(self, n_points: int) -> pa.Table:
        """Put the parts together, write the table and remove them.

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
                f"{path} cannot be read ({error}); delete it and go on with --resume."
            ) from None

    def _parts(self) -> Iterator[tuple[int, int, Path]]:
        for path in self.folder.iterdir() if self.folder.exists() else ():
            if match := PART_NAME.fullmatch(path.name):
                yield int(match[1]), int(match[2]), path
