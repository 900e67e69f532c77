"""Reading and writing the program's own JSON files: versioned, atomic, gzip by name."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
import zlib
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

from sim.errors import BadFile, BadInput

SCHEMA_VERSION = 1
VERSION = "0.1.0"
CREATED_BY = f"kvoverlap {VERSION}"
STRICT_KEYS = ConfigDict(extra="forbid")
"""Set as `__pydantic_config__` on a dataclass so that its files reject unknown keys."""

T = TypeVar("T")

_fields = cache(fields)


def write_bytes(path: Path | str, payload: bytes) -> None:
    """Write `payload` so that a reader sees either the old file or the whole new one."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise BadFile(f"cannot write {path}: {error.strerror}; choose a writable path.") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise BadFile(
                f"cannot write {path}: {error.strerror}; choose a writable path."
            ) from error
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
    write_bytes(path, gzip.compress(payload, mtime=0) if str(path).endswith(".gz") else payload)


def read_text(path: Path | str) -> str:
    """The text of a plain or gzipped file.

    Raises:
        BadFile: the file is absent, unreadable, or not UTF-8.
    """
    path = Path(path)
    try:
        payload = path.read_bytes()
        if payload[:2] == b"\x1f\x8b":
            payload = gzip.decompress(payload)
        return payload.decode()
    except FileNotFoundError:
        raise BadFile(f"{path} does not exist; check the path.") from None
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise BadFile(f"{path} cannot be read ({error}); it is corrupt or not ours.") from None


def decode_json(path: Path | str) -> Any:
    """The content of any JSON file.

    Raises:
        BadFile: unreadable, or not JSON.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise BadFile(
            f"{path} is not valid JSON (line {error.lineno}: {error.msg}); write it again."
        ) from None
    except RecursionError:
        raise BadFile(f"{path} is nested too deeply to be a file of ours.") from None


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
        field.name: set_fields(value) if is_dataclass(value) else value
        for field in _fields(cast(Hashable, type(one)))
        if (value := getattr(one, field.name)) != field.default
    }


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
    return TypeAdapter(kind)


def parse(kind: type[T], data: Any, where: str) -> T:
    """Build the dataclass `kind` from file content `data`.

    Raises:
        BadFile: names `where`, the first offending key and the rule it breaks.
    """
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
