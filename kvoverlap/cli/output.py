"""Everything the command prints: results on stdout, progress and notes on stderr.

Text and tables are written here, without rich: loading it takes as long as a short answer. rich
draws progress bars and the help of a verb.
"""

from __future__ import annotations

import json
import operator
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from sim.progress import Progress
from sim.units import ms, percent

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

PLAIN_WIDTH = 160
"""Columns of tables that go to a file or a pipe."""

COLUMN_GAP = 2
STYLES = {"bold": "1", "dim": "2", "bold red": "1;31"}

_NUMBER = re.compile(r"-?|[-+~<>]?\d[\d.,/]*( \S+)?")
"""A number, with its unit or without; also a dash or nothing in its place."""

_UNIT = re.compile(r"(?<=\d) (?=(?:%|[mu]?s|[KMGT]i?B(?:/s)?|[GT]FLOP/s)(?:[\s.,:;)]|$))")
"""The space between a number and its unit."""


class Output:
    """Standard output or standard error, as they are when something is written.

    Args:
        name: in `sys`.
        width: columns, instead of those of the terminal or of a file.
    """

    def __init__(self, name: str, width: int | None = None) -> None:
        self._name = name
        self.width = width

    @property
    def is_terminal(self) -> bool:
        return bool(getattr(sys, self._name).isatty())

    @property
    def columns(self) -> int:
        if self.width is not None:
            return self.width
        if not self.is_terminal:
            return PLAIN_WIDTH
        import shutil  # loads three compressors

        return shutil.get_terminal_size().columns

    def line(self, text: str) -> None:
        """Write text and a line end at once, so that lines of several processes do not mix."""
        stream = getattr(sys, self._name)
        stream.write(f"{text}\n")
        stream.flush()

    def styled(self, text: str, style: str) -> str:
        """The text in a style, where a terminal shows it."""
        plain = not self.is_terminal or os.environ.get("NO_COLOR")
        return text if plain else f"\x1b[{STYLES[style]}m{text}\x1b[0m"

    def console(self) -> Console:
        """The same place for rich."""
        from rich.console import Console

        width = None if self.is_terminal and self.width is None else self.columns
        error = self._name == "stderr"
        return Console(stderr=error, highlight=False, soft_wrap=True, width=width)


out, err = Output("stdout"), Output("stderr")


def print_json(content: Any) -> None:
    """JSON on stdout."""
    sys.stdout.write(json.dumps(content, indent=1, allow_nan=False) + "\n")


def say(text: str) -> None:
    """Lines of the answer; for a terminal they are broken between words."""
    if out.is_terminal:
        lines = (_wrapped(line, out.columns, break_words=False) for line in text.split("\n"))
        text = "\n".join(part for parts in lines for part in parts)
    out.line(text)


def _wrapped(text: str, width: int, break_words: bool = True) -> list[str]:
    """Lines of at most `width` characters, at least one, with each number next to its unit."""
    tied = _UNIT.sub("\N{NO-BREAK SPACE}", text)
    lines = textwrap.wrap(
        tied, width, break_long_words=break_words, break_on_hyphens=False, replace_whitespace=False
    )
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines] or [""]


def note(text: str) -> None:
    """A hint on stderr."""
    err.line(f"{err.styled('note:', 'dim')} {text}")


def fail(text: str) -> None:
    """Why the command failed, on stderr."""
    err.line(f"{err.styled('error:', 'bold red')} {text}")


def annotate(title: str, text: str) -> None:
    """Mark a fault for GitHub Actions, where the command runs there."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        sys.stderr.write(f"::error title={title}::{text}\n")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table, with columns of numbers flush right.

    In a narrow terminal cells take several lines, or each row becomes a paragraph. No word, number
    or unit is cut.
    """
    widths = _column_widths(list(zip(columns, *rows, strict=True)), out.columns)
    if widths is None:
        out.line(out.styled(title, "bold"))
        for name, *cells in rows:
            pairs = zip(columns[1:], cells, strict=True)
            text = ", ".join(" ".join(pair).strip() for pair in pairs if pair[1])
            for indent, part in (("", name), ("  ", text)):
                for line in _wrapped(part, max(1, out.columns - len(indent))):
                    out.line(f"{indent}{line}")
        return
    for line in _wrapped(title, sum(widths) + COLUMN_GAP * (len(widths) - 1)):
        out.line(out.styled(line, "bold"))
    numbers = [all(map(_NUMBER.fullmatch, cells)) for cells in zip(*rows, strict=True)]
    aligned = [str.rjust if number else str.ljust for number in numbers or [False] * len(columns)]
    for at, row in enumerate((columns, *rows)):
        for line in _row_lines(row, widths, aligned):
            out.line(line if at else out.styled(line, "bold"))


def _row_lines(
    row: Sequence[str], widths: Sequence[int], aligned: Sequence[Callable[[str, int], str]]
) -> list[str]:
    """One row of a table as lines; a cell that is too wide takes several."""
    cells = [_wrapped(cell, max(1, width)) for cell, width in zip(row, widths, strict=True)]
    lines = []
    for parts in zip_longest(*cells, fillvalue=""):
        padded = [
            align(part, width) for align, part, width in zip(aligned, parts, widths, strict=True)
        ]
        lines.append((" " * COLUMN_GAP).join(padded).rstrip())
    return lines


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
            err.line(f"{self._title}: {text}")

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
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=err.console(), transient=True) as bar:
        yield _OnBar(title, bar)
