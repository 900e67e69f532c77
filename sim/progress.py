"""How long work reports its progress."""

from __future__ import annotations

from math import inf
from time import monotonic
from typing import Protocol


class Progress(Protocol):
    """The one way in which long work reports to its caller."""

    def __call__(self, text: str, done: float | None = None) -> None:
        """Report the current action, and the finished fraction of the whole."""

    def note(self, text: str) -> None:
        """Report something that the reader should know and that is not the result."""


class Part:
    """Progress of one part of some work, reported to the progress of the whole.

    Args:
        name: precedes every text; empty for none.
        start: fraction of the whole that is done when the part begins.
        share: fraction of the whole that the part is.
    """

    def __init__(self, whole: Progress, name: str, start: float = 0.0, share: float = 1.0) -> None:
        self._whole, self._prefix = whole, name and f"{name}, "
        self._start, self._share = start, share

    def __call__(self, text: str, done: float | None = None) -> None:
        """Report the part's name and its current action."""
        fraction = None if done is None else self._start + self._share * done
        self._whole(f"{self._prefix}{text}", fraction)

    def note(self, text: str) -> None:
        """Report something that the reader should know."""
        self._whole.note(text)


class Timed:
    """Progress of work with a time limit: every text tells the time left, in steps of 10 s.

    Args:
        until_s: the limit on `time.monotonic()`.
    """

    def __init__(self, whole: Progress, until_s: float) -> None:
        self._whole, self._until_s = whole, until_s

    def __call__(self, text: str, done: float | None = None) -> None:
        """Report the current action and the time left."""
        if self._until_s < inf:
            left_s = max(0, round(self._until_s - monotonic(), -1))
            text = f"{text}; at most {left_s:.0f} s left"
        self._whole(text, done)

    def note(self, text: str) -> None:
        """Report something that the reader should know."""
        self._whole.note(text)


class Silent:
    """Reports nothing."""

    def __call__(self, text: str, done: float | None = None) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""
