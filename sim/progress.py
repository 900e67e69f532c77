"""Where long work says how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """The one way in which long work reports to whoever asked for it."""

    def __call__(self, text: str, done: float | None = None) -> None:
        """Say what is done now, and which fraction of the whole is done."""

    def note(self, text: str) -> None:
        """Say something that the reader should know and that is not the answer."""


class Part:
    """Reports to somebody else's progress which part of the work is going on."""

    def __init__(self, whole: Progress, name: str) -> None:
        self._whole, self._name = whole, name

    def __call__(self, text: str, done: float | None = None) -> None:
        """Say the part's name and what it does now."""
        self._whole(f"{self._name}, {text}", done)

    def note(self, text: str) -> None:
        """Say something that the reader should know."""
        self._whole.note(text)


class Silent:
    """Reports nothing."""

    def __call__(self, text: str, done: float | None = None) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""
