"""Everything the command prints: results on stdout, progress and notes on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from sim.progress import Progress

PLAIN_WIDTH = 160
"""Columns of tables that go to a file or a pipe."""

out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(content: Any) -> None:
    """JSON on stdout."""
    sys.stdout.write(json.dumps(content, indent=1, allow_nan=False) + "\n")


def say(text: str) -> None:
    """One line of the answer."""
    out.print(escape(text))


def note(text: str) -> None:
    """A hint on stderr."""
    err.print(f"[dim]note:[/dim] {escape(text)}")


def fail(text: str) -> None:
    """Why the command failed, on stderr."""
    err.print(f"[bold red]error:[/bold red] {escape(text)}")


def annotate(title: str, text: str) -> None:
    """Mark a fault for GitHub Actions, where the command runs there."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        sys.stderr.write(f"::error title={title}::{text}\n")


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], n_text: int = 1
) -> None:
    """A table whose first columns are text and whose other columns are numbers."""
    grid = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for position, column in enumerate(columns):
        grid.add_column(column, justify="left" if position < n_text else "right", no_wrap=True)
    for row in rows:
        grid.add_row(*(escape(cell) for cell in row))
    out.print(grid)


class _Lines:
    """Progress without a terminal: one line for each new text."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._seen: set[str] = set()

    def __call__(self, text: str, done: float | None = None) -> None:  # noqa: ARG002
        if text not in self._seen:
            self._seen.add(text)
            err.print(f"{self._title}: {text}")

    def note(self, text: str) -> None:
        note(text)


class _OnBar:
    """Progress as a bar on a terminal."""

    def __init__(self, title: str, bar: Bar) -> None:
        self._title, self._bar = title, bar
        self._job = bar.add_task(title, total=None)

    def __call__(self, text: str, done: float | None = None) -> None:
        total = None if done is None else 1.0
        self._bar.update(
            self._job, description=f"{self._title}: {text}", completed=done or 0.0, total=total
        )

    def note(self, text: str) -> None:
        note(text)


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """A progress bar on stderr; without a terminal, lines."""
    if not err.is_terminal:
        yield _Lines(title)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=err, transient=True) as bar:
        yield _OnBar(title, bar)
