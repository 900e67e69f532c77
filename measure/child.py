"""`python -m measure.child`: a validation in a process that another program starts and follows.

The child reads one JSON object from stdin: the fields of `ValidationRequest`, and `out`, the folder
to fill. It writes JSON objects to stdout, one a line:

    {"progress": text, "fraction": number or null}
    {"note": text}
    {"result": path}     the last line of a successful run
    {"error": text}      the last line of a failed one
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from measure.validation import ValidationRequest, check_out_folder, validate
from sim.errors import BadInput, KvOverlapError

COMMAND = (sys.executable, "-m", "measure.child")


class LineWriter:
    """A `Progress` that writes protocol lines."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, text: str, done: float | None = None) -> None:
        self.write(progress=text, fraction=done)

    def note(self, text: str) -> None:
        self.write(note=text)

    def write(self, **message: Any) -> None:
        """Write one line at once, so that a reader sees it even if the process is killed later."""
        self._stream.write(json.dumps(message, allow_nan=False) + "\n")
        self._stream.flush()


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a child by its lines so far.

    Args:
        fraction: finished fraction of the whole; it never falls.
        texts: of progress and notes, in order.
        result: the filled folder; None until the child has succeeded.
        error: one sentence; None unless the child has failed.
    """

    fraction: float = 0.0
    texts: tuple[str, ...] = ()
    result: str | None = None
    error: str | None = None


def read_status(lines: str) -> Status:
    """The state by a child's output; an incomplete last line and foreign lines do not count."""
    fraction = 0.0
    texts: list[str] = []
    result = error = None
    complete, _, _ = lines.rpartition("\n")
    for line in complete.split("\n"):
        try:
            message = json.loads(line)
        except ValueError:
            continue
        if not isinstance(message, dict):
            continue
        text = message.get("progress", message.get("note"))
        if isinstance(text, str) and text not in texts[-1:]:
            texts.append(text)
        if isinstance(message.get("fraction"), int | float):
            fraction = max(fraction, min(1.0, message["fraction"]))
        result, error = message.get("result", result), message.get("error", error)
    return Status(fraction, tuple(texts), result, error)


def run(request_text: str, writer: LineWriter) -> int:
    """Serve one request; returns the exit status."""
    try:
        try:
            fields = json.loads(request_text)
            out = Path(fields.pop("out"))
            request = ValidationRequest(**fields)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise BadInput(f"The request is not valid: {error!r}.") from None
        check_out_folder(out)
        validate(request, writer).save(out)
    except KvOverlapError as error:
        writer.write(error=" ".join(str(error).split()))
        return 2
    except Exception as error:  # the reader needs a reason, whatever failed
        writer.write(error=" ".join(f"{type(error).__name__}: {error}".split()))
        raise
    writer.write(result=str(out))
    return 0


def main() -> int:
    """Serve the request on stdin; text that libraries print goes to stderr."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as protocol:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        return run(sys.stdin.read(), LineWriter(protocol))


if __name__ == "__main__":
    sys.exit(main())
