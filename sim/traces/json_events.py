"""The events of a Chrome trace, from a file of any size.

The file is read in pieces of a megabyte, and the events of a piece are decoded together, so that
memory holds a piece of the file and not the whole. msgspec decodes the fields that are read and
skips the others, in a quarter of the time that a parser takes which builds every value.
"""

from __future__ import annotations

import codecs
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from sim.errors import BadFile

PIECE_BYTES = 2**20
MAX_EVENT_CHARS = 2**24
"""Largest event; a longer one is a fault of the file."""

BORDER_CHARS = 2**14
"""Part of the buffer's end in which a border between two events is looked for."""

LITERAL_CHARS = len("-Infinity")
"""A value that is cut shorter than that has no valid beginning."""

EVENTS = "traceEvents"
GZIP = b"\x1f\x8b"
GZIP_BITS = 31
SALVAGE_BYTES = 4


class Args(msgspec.Struct, gc=False):
    """Details of an event; None is a value that is not there."""

    correlation: Any = None
    stream: Any = None
    device: Any = None
    bytes: Any = 0


class Event(msgspec.Struct, gc=False):
    """What is read of an event: values as the file has them, None where it has none."""

    ph: Any = None
    cat: Any = None
    name: Any = None
    ts: Any = None
    dur: Any = None
    pid: Any = None
    tid: Any = 0
    args: Args | None = None


_decode_events = msgspec.json.Decoder(list[Event]).decode
_decode = json.JSONDecoder().raw_decode
_skip = re.compile(r"[\s,]*").match
_BORDER = re.compile(r"\}\s*,\s*\{")
_NUMBER_END = re.compile(r"[0-9.eE+-]")


class JsonEvents:
    """The events of a file in batches, and what else its top level says.

    Args:
        path: a Chrome trace, plain or gzipped: an object with `traceEvents`, or a list of events.

    Attributes:
        header: small values of the top level, as far as they were read.
        broken: why reading ended early; empty if the file is complete.
        done_frac: fraction of the file that was read.
    """

    def __init__(self, path: Path) -> None:
        self.header: dict[str, Any] = {}
        self.broken = ""
        self._path = path
        try:
            if path.exists() and not path.is_file():
                raise BadFile(f"{path} is not a file; give a trace.")
            self._size = max(path.stat().st_size, 1)
            self._raw = path.open("rb")
        except FileNotFoundError:
            raise BadFile(f"{path} does not exist; check the path.") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise BadFile(f"{path} cannot be read ({reason}); check the path.") from None
        self._text = self._decoded()
        self._buffer, self._at, self._ended = "", 0, False
        self._one_by_one = False

    def close(self) -> None:
        self._raw.close()

    @property
    def done_frac(self) -> float:
        return min(self._raw.tell() / self._size, 1.0)

    def __iter__(self) -> Iterator[list[Event | None]]:
        """All events, some at a time, with None for a value that is no object; ends early, with
        the reason in `broken`, where the file is damaged.

        Raises:
            BadFile: it is not a trace.
        """
        first = self._next_char()
        if first == "[":
            self._at += 1
            yield from self._items()
            return
        if first != "{":
            raise BadFile(
                f"{self._path} is not a trace in JSON{self._because()}; give a Chrome trace "
                "(.json, .json.gz), or what `nsys export --type sqlite` or `nsys stats "
                "--report cuda_gpu_trace --format csv` writes."
            )
        self._at += 1
        yield from self._members()

    def _members(self) -> Iterator[list[Event | None]]:
        """The events inside the object of the top level."""
        found = False
        while not self.broken and self._next_char() not in ("}", ""):
            key = self._value()
            if self._next_char() != ":" or not isinstance(key, str):
                self._break("a key without a value")
                break
            self._at += 1
            first = self._next_char()
            if key == EVENTS and first == "[":
                found = True
                self._at += 1
                yield from self._items()
            else:
                value = self._value()
                if not self.broken:
                    self.header[key] = value
        if not self.broken and self._next_char() == "":
            self._break("")
        self._refill()  # reads the checksum of compressed data
        if not found:
            raise BadFile(
                f"{self._path} holds no list traceEvents{self._because()}; it is not a trace of a "
                "profiler."
            )

    def _items(self) -> Iterator[list[Event | None]]:
        while (char := self._next_char()) != "]":
            if char == "":
                self._break("")
                return
            batch = self._batch()
            if not batch:
                item = self._value()
                if self.broken:
                    return
                batch = [_event(item)]
            yield batch
        self._at += 1

    def _batch(self) -> list[Event | None]:
        """Many events at once, up to a place in the buffer that looks like the end of one.

        Decoding proves the place right: a text that is cut inside an event is no list of events.
        Events of another form, such as `args` that are no object, are read one by one.
        """
        if len(self._buffer) - self._at < PIECE_BYTES // 8:
            self._refill()
        if self._one_by_one:
            return []
        end = self._at
        for found in _BORDER.finditer(self._buffer, max(len(self._buffer) - BORDER_CHARS, end)):
            end = found.start() + 1
        if end == self._at:
            return []
        try:
            batch: list[Event | None] = [*_decode_events(f"[{self._buffer[self._at : end]}]")]
        except (ValueError, RecursionError):
            self._one_by_one = True
            return []
        self._at = end
        return batch

    def _next_char(self) -> str:
        """The next character that is neither white space nor a comma; empty at the end."""
        while True:
            found = _skip(self._buffer, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._refill():
                return ""

    def _value(self) -> Any:
        """The value that begins here; None, and `broken` set, if there is none."""
        while True:
            try:
                value, end = _decode(self._buffer, self._at)
            except ValueError as error:
                held = len(self._buffer) - self._at
                cut = self._is_cut(error)
                if cut and held < MAX_EVENT_CHARS and self._refill(held):
                    continue
                reason = str(error.args[0]).partition(":")[0].lower()
                self._break("" if cut and self._ended else f"invalid JSON, {reason}")
                return None
            except RecursionError:
                self._break("lists in lists, nested too deeply")
                return None
            if end == len(self._buffer) and _NUMBER_END.match(self._buffer[-1]) and self._refill():
                continue  # the rest of a number may follow
            self._at = end
            return value

    def _is_cut(self, error: ValueError) -> bool:
        """Whether a value may be invalid only because the buffer ends inside it."""
        at = getattr(error, "pos", 0)
        return at >= len(self._buffer) - LITERAL_CHARS or "Unterminated" in str(error)

    def _refill(self, least_chars: int = 1) -> bool:
        """Drop what was decoded and append the next pieces of the file; False at its end."""
        pieces = [self._buffer[self._at :]]
        added = 0
        while added < max(least_chars, 1) and (piece := next(self._text, "")):
            pieces.append(piece)
            added += len(piece)
        self._buffer, self._at = "".join(pieces), 0
        self._ended = not added
        self._one_by_one = self._one_by_one and not added
        return added > 0

    def _decoded(self) -> Iterator[str]:
        """The text of the file in pieces, none of which is empty."""
        decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
        head = self._raw.read(len(GZIP))
        self._raw.seek(0)
        for piece in self._unpacked() if head == GZIP else self._plain():
            if text := decoder.decode(piece):
                yield text

    def _plain(self) -> Iterator[bytes]:
        while piece := self._raw.read(PIECE_BYTES):
            yield piece

    def _unpacked(self) -> Iterator[bytes]:
        """Unpacked pieces of a gzipped file, which may have several members."""
        unzip, packed = zlib.decompressobj(GZIP_BITS), b""
        while packed or (packed := self._raw.read(PIECE_BYTES)):
            before = unzip.copy()
            try:
                yield unzip.decompress(packed, PIECE_BYTES)
            except zlib.error:
                yield from _salvaged(before, packed)
                self._break("the compressed data are damaged")
                return
            packed = unzip.unconsumed_tail
            if unzip.eof:
                packed = unzip.unused_data.lstrip(b"\0")
                if packed or (packed := self._raw.read(PIECE_BYTES)):
                    unzip = zlib.decompressobj(GZIP_BITS)
        if not unzip.eof:
            self._break("the compressed data end early")

    def _break(self, reason: str) -> None:
        self.broken = self.broken or reason or "the file ends early"

    def _because(self) -> str:
        return f" ({self.broken})" if self.broken else ""


def _event(value: Any) -> Event | None:
    """A value as the standard library decodes it; None if it is no object."""
    if not isinstance(value, dict):
        return None
    args = value.get("args")
    fields = {name: value[name] for name in Event.__struct_fields__ if name in value}
    known = (
        {name: args[name] for name in Args.__struct_fields__ if name in args}
        if isinstance(args, dict)
        else None
    )
    return Event(**{**fields, "args": None if known is None else Args(**known)})


def _salvaged(unzip: zlib._Decompress, packed: bytes) -> Iterator[bytes]:
    """What can be unpacked of damaged data, in small steps up to the damage."""
    for at in range(0, len(packed), SALVAGE_BYTES):
        try:
            yield unzip.decompress(packed[at : at + SALVAGE_BYTES])
        except zlib.error:
            return
