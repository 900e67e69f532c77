"""Streams and events that note what is enqueued on them, for `CudaBackend` without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

import torch

from sim.lanes import LANES, TIER_LANES


class _Stream:
    """A stream that notes what is enqueued on it."""

    def __init__(self, calls: list[tuple[str, ...]], name: str) -> None:
        self.calls, self.name = calls, name

    def wait_event(self, event: _Event) -> None:
        self.calls.append((self.name, "waits for", event.name))


class _Event:
    """An event, named after the stream that recorded it and its number there."""

    def __init__(self, **_: object) -> None:
        self.name = ""

    def record(self, stream: _Stream) -> None:
        number = sum(call[:2] == (stream.name, "records") for call in stream.calls)
        self.name = f"{stream.name}.{number}"
        stream.calls.append((stream.name, "records", self.name))

    def synchronize(self) -> None:
        """Everything has happened already."""


@dataclass
class FakeStreams:
    """Stands for the streams and events of `torch.cuda`, so that `CudaBackend` itself can run.

    Attributes:
        calls: (stream, what it does, event) in the order of the calls.
        current: the stream that operations of the calling thread go to.
    """

    calls: list[tuple[str, ...]] = field(default_factory=list)
    made: int = 0

    def __post_init__(self) -> None:
        self.outside = self.current = _Stream(self.calls, "outside")

    def _make(self, _device: object) -> _Stream:
        lane = (*LANES, *TIER_LANES)[self.made]
        self.made += 1
        return _Stream(self.calls, lane)

    def _set(self, stream: _Stream) -> None:
        self.current = stream

    @contextmanager
    def installed(self) -> Iterator[FakeStreams]:
        """`torch.cuda` with these streams, for one block."""

        def nothing(*_: object) -> None:
            return None

        @contextmanager
        def on(stream: _Stream) -> Iterator[None]:
            before, self.current = self.current, stream
            yield
            self.current = before

        fakes = {
            "current_device": lambda: 0,
            "current_stream": lambda _device: self.current,
            "set_stream": self._set,
            "stream": on,
            "Stream": self._make,
            "Event": _Event,
            "synchronize": nothing,
            "empty_cache": nothing,
            "_sleep": nothing,
        }
        with ExitStack() as patches:
            for name, fake in fakes.items():
                patches.enter_context(patch.object(torch.cuda, name, fake))
            patches.enter_context(patch.object(torch.backends.cuda, "enable_cudnn_sdp", nothing))
            yield self
