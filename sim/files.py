"""Reading and writing the program's own JSON files: versioned, atomic, gzip by name.

Readers of other formats are imported where they are used: most commands need none of them.
"""

from __future__ import annotations

import errno
import io
import json
import os
import select
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sim.errors import BadFile, BadInput
from sim.exact import Inexact, builder

if TYPE_CHECKING:
    from pydantic import ConfigDict, TypeAdapter

SCHEMA_VERSION = 1
VERSION = "0.1.0"
CREATED_BY = f"kvoverlap {VERSION}"
STRICT_KEYS: ConfigDict = {"extra": "forbid"}
"""Set as `__pydantic_config__` on a dataclass so that its files reject unknown keys."""

MAX_FILE_BYTES = 2**28
"""Largest file that is read, unpacked; a timeline of a million tasks takes a quarter of it."""

OPEN_FILES = ("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/")
"""Paths that stand for a file which is open already."""

MAX_WAIT_S = 10.0
"""Longest wait for the content of a pipe."""

T = TypeVar("T")

_fields = cache(fields)


def write_bytes(path: Path | str, payload: bytes) -> None:
    """Write `payload` as `write_chunks` does."""
    write_chunks(path, (payload,))


def write_chunks(path: Path | str, chunks: Iterable[bytes]) -> None:
    """Write a file so that a reader sees either the old file or the whole new one.

    A link is followed. A device, a pipe and an open file such as /dev/stdout are written in place.

    Raises:
        BadFile: the path cannot be written.
    """
    path = Path(path)
    try:
        if str(path.absolute()).startswith(OPEN_FILES) or (path.exists() and not path.is_file()):
            _write_in_place(path, chunks)
        else:
            target = Path(os.path.realpath(path))
            if target.is_symlink():
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            _replace(target, chunks)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadFile(f"cannot write {path}: {reason}; choose a writable path.") from error


def check_writable(name: str, text: str) -> Path:
    """The path of a file that could be written now; nothing is left there.

    Args:
        name: option that gives the path.

    Raises:
        BadFile: a folder, a path below a file, or an unwritable place.
    """
    from tempfile import TemporaryFile

    path = Path(text)
    try:
        if not text or path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if str(path.absolute()).startswith("/dev/") or (path.exists() and not path.is_file()):
            return path
        folder = Path(os.path.realpath(path)).parent
        while not folder.exists():
            folder = folder.parent
        with TemporaryFile(dir=folder):
            return path
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        shown = text or "''"
        raise BadFile(f"{name}: cannot write {shown}: {reason}; choose a writable path.") from None


def _write_in_place(path: Path, chunks: Iterable[bytes]) -> None:
    """Write to a device or pipe; a pipe that nobody reads is refused instead of waited for."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
    os.set_blocking(handle, True)
    with os.fdopen(handle, "wb") as file:
        file.writelines(chunks)


def _replace(path: Path, chunks: Iterable[bytes]) -> None:
    from uuid import uuid4

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:200]}.{uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.writelines(chunks)
        if path.exists():
            temporary.chmod(path.stat().st_mode & 0o777)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path | str, kind: str, content: dict[str, Any]) -> None:
    """Write one document of the given `kind` with its schema version; `.gz` names compress."""
    document = {
        "kind": kind,
        "schema_version": SCHEMA_VERSION,
        "created_by": CREATED_BY,
        **content,
    }
    text = json.dumps(document, indent=None if str(path).endswith(".gz") else 1, allow_nan=False)
    payload = text.encode() + b"\n"
    if str(path).endswith(".gz"):
        import gzip

        payload = gzip.compress(payload, mtime=0)
    write_bytes(path, payload)


def read_text(path: Path | str) -> str:
    """The text of a plain or gzipped file, without a byte order mark.

    Raises:
        BadFile: the file is absent, unreadable, not UTF-8, or larger than `MAX_FILE_BYTES`.
    """
    path = Path(path)
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            if not path.is_file():
                _wait_for_writer(path, file.fileno())
            payload = file.read(MAX_FILE_BYTES + 1)
        if payload[:2] == b"\x1f\x8b":
            payload = _unpacked(payload)
        if len(payload) > MAX_FILE_BYTES:
            raise BadFile(
                f"{path} holds more than {MAX_FILE_BYTES // 2**20} MiB; it is not a file of ours."
            )
        return payload.decode("utf-8-sig")
    except FileNotFoundError:
        raise BadFile(f"{path} does not exist; check the path.") from None
    except (OSError, EOFError, ValueError) as error:
        raise BadFile(f"{path} cannot be read ({error}); it is corrupt or not ours.") from None


def _unpacked(payload: bytes) -> bytes:
    """The start of a gzipped payload, as far as a reader may need it."""
    import gzip
    import zlib

    try:
        with gzip.open(io.BytesIO(payload)) as unpacked:
            return unpacked.read(MAX_FILE_BYTES + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error


def _open_without_waiting(path: str, flags: int) -> int:
    handle = os.open(path, flags | os.O_NONBLOCK)
    os.set_blocking(handle, True)
    return handle


def _wait_for_writer(path: Path, handle: int) -> None:
    """Wait until a pipe has content or its writer has closed it."""
    if not select.select([handle], [], [], MAX_WAIT_S)[0]:
        raise BadFile(f"{path} got no content for {MAX_WAIT_S:.0f} s; write to it first.")


def decode_json(path: Path | str) -> Any:
    """The content of any JSON file.

    Raises:
        BadFile: unreadable, or not JSON.
    """
    try:
        with naming_file(str(path)):
            return json.loads(read_text(path), object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        raise BadFile(
            f"{path} is not valid JSON (line {error.lineno}: {error.msg}); write it again."
        ) from None
    except ValueError as error:
        raise BadFile(f"{path}: {error}") from None
    except RecursionError:
        raise BadFile(f"{path} is nested too deeply to be a file of ours.") from None


def decode_toml(path: Path | str) -> dict[str, Any]:
    """The content of any TOML file.

    Raises:
        BadFile: unreadable, or not TOML.
    """
    import tomllib

    try:
        return tomllib.loads(read_text(path))
    except BadFile:
        raise
    except (RecursionError, ValueError) as error:  # also an integer of thousands of digits
        raise BadFile(f"{path} is not valid TOML: {str(error) or 'nested too deep'}.") from None


def decode_csv(path: Path | str) -> list[dict[str, str]]:
    """The rows of a CSV file with a header.

    Raises:
        BadFile: unreadable, no rows, a column given twice, or a row of another length.
    """
    import csv

    try:
        header, *rows = csv.reader(read_text(path).splitlines(), strict=True)
    except (csv.Error, ValueError):
        raise BadFile(f"{path} has no rows; give a header and at least one.") from None
    names = [name.strip() for name in header]
    for number, row in enumerate(rows, start=2):
        if row and len(row) != len(names):
            raise BadFile(f"{path}, line {number} has {len(row)} values for {len(names)} columns.")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadFile(f"{path}: column {twice!r} is given twice; remove one.")
    content = [dict(zip(names, row, strict=True)) for row in rows if row]
    if not content:
        raise BadFile(f"{path} has no rows; give a header and at least one.")
    return content


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadInput(f"key {twice!r} is given twice; remove one.")
    return content


def document_kind(path: Path | str) -> str | None:
    """The kind of a document written by `write_json`; None for other content.

    Raises:
        BadFile: unreadable, or not JSON.
    """
    content = decode_json(path)
    kind = content.get("kind") if isinstance(content, dict) else None
    return kind if isinstance(kind, str) else None


def read_json(path: Path | str, kind: str) -> dict[str, Any]:
    """A document written by `write_json`, without its envelope.

    Raises:
        BadFile: not JSON, another kind of document, or a schema this version cannot read.
    """
    document = decode_json(path)
    if not isinstance(document, dict) or document.get("kind") != kind:
        found = document.get("kind") if isinstance(document, dict) else type(document).__name__
        raise BadFile(
            f"{path} holds {found!r}, not a kvoverlap {kind!r} document: see its key 'kind'."
        )
    if document.get("schema_version") != SCHEMA_VERSION:
        raise BadFile(
            f"{path} has schema_version {document.get('schema_version')!r}; this version reads "
            f"{SCHEMA_VERSION}; write it again with this version."
        )
    return {
        key: value
        for key, value in document.items()
        if key not in ("kind", "schema_version", "created_by")
    }


def set_fields(one: Any) -> dict[str, Any]:
    """The fields of a dataclass that do not have their default value, dataclasses inside too."""
    return {
        field.name: _set_value(value)
        for field in _fields(cast(Hashable, type(one)))
        if (value := getattr(one, field.name)) != field.default
    }


def _set_value(value: Any) -> Any:
    if isinstance(value, tuple) and value and is_dataclass(value[0]):
        return [set_fields(one) for one in value]
    return set_fields(value) if is_dataclass(value) else value


@contextmanager
def naming_file(where: str) -> Iterator[None]:
    """Turn a broken rule about content of the file `where` into a `BadFile` that names it."""
    try:
        yield
    except BadFile:
        raise
    except BadInput as error:
        raise BadFile(f"{where}: {error}") from None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def parse(kind: type[T], data: Any, where: str) -> T:
    """Build the dataclass `kind` from file content `data`.

    Raises:
        BadFile: names `where`, the first offending key and the rule it breaks.
    """
    try:
        exact: T = builder(cast(Hashable, kind))(data)
        return exact
    except (Inexact, BadInput, ArithmeticError, ValueError):
        return _parse_leniently(kind, data, where)


def _parse_leniently(kind: type[T], data: Any, where: str) -> T:
    """As `parse`, with the conversions and messages of pydantic."""
    from pydantic import ValidationError

    try:
        with naming_file(where):
            made: T = _adapter(cast(Hashable, kind)).validate_python(data)
        return made
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "document"
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            raise BadFile(
                f"{where}: key {key!r} is unknown; remove it or fix its spelling."
            ) from None
        if first["type"] in ("missing", "missing_argument"):
            raise BadFile(f"{where}: key {key!r} is missing; add it.") from None
        raise BadFile(f"{where}: {key}(={first['input']!r}): {first['msg']}.") from None
