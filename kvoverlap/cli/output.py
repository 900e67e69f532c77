"""Everything the command prints: results on stdout, progress and notes on stderr."""

from __future__ import annotations

import json
import operator
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from sim.progress import Progress
from sim.units import ms, percent

PLAIN_WIDTH = 160
"""Columns of tables that go to a file or a pipe."""

COLUMN_GAP = 2

_NUMBER = re.compile(r"-?|[-+~<>]?\d[\d.,/]*( \S+)?")
"""A number, with its unit or without; also a dash or nothing in its place."""

_UNIT = re.compile(r"(?<=\d) (?=(?:%|[mu]?s|[KMGT]i?B(?:/s)?|[GT]FLOP/s)(?:[\s.,:;)]|$))")
"""The space between a number and its unit."""

out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(content: Any) -> None:
    """JSON on stdout."""
    sys.stdout.write(json.dumps(content, indent=1, allow_nan=False) + "\n")


def say(text: str) -> None:
    """Lines of the answer; for a terminal they are broken between words."""
    shown = "\n".join(_wrapped(line) for line in text.split("\n")) if out.is_terminal else text
    out.print(escape(shown))


def _wrapped(line: str) -> str:
    """A line broken at the width of the terminal, with each number next to its unit."""
    tied = _UNIT.sub("\N{NO-BREAK SPACE}", line)
    broken = textwrap.fill(tied, out.width, break_long_words=False, break_on_hyphens=False)
    return broken.replace("\N{NO-BREAK SPACE}", " ")


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


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table, with columns of numbers flush right.

    In a narrow terminal cells take several lines, or each row becomes a paragraph. No word, number
    or unit is cut.
    """
    widths = _column_widths(list(zip(columns, *rows, strict=True)), out.width)
    if widths is None:
        out.print(f"[bold]{escape(title)}[/bold]")
        for name, *cells in rows:
            pairs = zip(columns[1:], cells, strict=True)
            text = ", ".join(" ".join(pair).strip() for pair in pairs if pair[1])
            out.print(escape(name), Padding(escape(text), (0, 0, 0, 2)), sep="\n", soft_wrap=False)
        return
    grid = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column, width, *cells in zip(columns, widths, *rows, strict=True):
        justify: JustifyMethod = "right" if all(map(_NUMBER.fullmatch, cells)) else "left"
        grid.add_column(column, justify=justify, overflow="fold", width=width)
    for row in rows:
        grid.add_row(*(escape(cell) for cell in row))
    out.print(grid, soft_wrap=False)


def shown_frac(fraction: float | None) -> str:
    """A share in per cent, or a dash where there is none."""
    return "-" if fraction is None else percent(fraction)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def policy_table(title: str, what: str, times_s: Mapping[str, float], base: str) -> None:
    """Times of policies, fastest first, and how many times as fast as `base` each is."""
    rows = [
        (policy, ms(seconds), f"{times_s[base] / seconds:.2f}")
        for policy, seconds in sorted(times_s.items(), key=lambda item: item[1])
    ]
    table(title, ("policy", what, f"times as fast as {base}"), rows)


def _column_widths(columns: Sequence[Sequence[str]], total: int) -> list[int] | None:
    """Widths of columns, header first, in a line of `total` characters; None if too narrow.

    The widest column shrinks first, and no further than its longest part that a line keeps whole.
    If the words of the headers do not fit, they are broken.
    """
    available = total - COLUMN_GAP * (len(columns) - 1)
    widths = [max(len(cell) for cell in column) for column in columns]
    for least in (
        [max(map(_longest_part, column)) for column in columns],
        [max(map(_longest_part, column[1:]), default=1) for column in columns],
    ):
        while sum(widths) > available and any(map(operator.gt, widths, least)):
            spare = [width if width > low else 0 for width, low in zip(widths, least, strict=True)]
            widths[spare.index(max(spare))] -= 1
    return widths if sum(widths) <= available else None


def _longest_part(cell: str) -> int:
    """Length of the longest word; a number and its unit are one word."""
    return max(map(len, re.findall(r"[-+]?[\d.,]+ [^\s(]+|\S+", cell)), default=1)


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
