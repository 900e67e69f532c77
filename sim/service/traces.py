"""Request traces: when requests arrive, how long they are, and which prefixes they share.

Read are, plain or compressed with gzip:

- Mooncake JSONL: `timestamp` in ms, `input_length`, `output_length`, `hash_ids` of 512 tokens each;
- the same with `chat_id`, as the Qwen-Bailian traces have it: `timestamp` in s, 16 tokens an id;
- CSV: `arrival_s, prompt_tokens, gen_tokens` and, as needed, `prefix_group` and `prefix_tokens`.
  Requests of one group share their first `prefix_tokens` tokens, or all of the shorter prompt.

A line of JSON may name its own `block_size`. Ids are read as a path: two requests share a block if
its id and the ids of all blocks before it are the same.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from array import array
from collections.abc import Iterator
from itertools import islice
from math import inf
from pathlib import Path
from typing import Any

from sim.errors import BadFile, BadInput
from sim.progress import Progress, Silent

MOONCAKE_BLOCK, BAILIAN_BLOCK = 512, 16
"""Tokens of a block that one id of the trace stands for."""

MAX_PROMPT_TOKENS = 10_000_000
MAX_LINE = 2**26
"""Characters of the longest line that is read."""

REPORT_LINES = 50_000
FIRST_LINES = 8
REQUIRED = ("arrival_s", "prompt_tokens", "gen_tokens")
OPTIONAL = ("prefix_group", "prefix_tokens")
ROOT = 0


class RequestTrace:
    """Requests in the order of the file, and the tree of the blocks that their prompts share.

    Letters: N requests, E blocks of all prompts, U different blocks. Arrays, because a trace of a
    million requests must fit in memory.

    Args:
        arrival_s, prompt_tokens, output_tokens: [N].
        first: [N + 1], position in `nodes` of each request's first block.
        nodes: [E], the block as a node of the tree; 1 to U.
        parent: [U + 1], the block before each; the root, 0, is its own.
        skipped: bad lines that were left out.
    """

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.arrival_s = array("d")
        self.prompt_tokens = array("q")
        self.output_tokens = array("q")
        self.first = array("q", (0,))
        self.nodes = array("i")
        self.parent = array("i", (ROOT,))
        self.skipped = 0
        self._node_of_id = array("i")
        self._edges: dict[tuple[int, int], int] = {}
        self._names: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def unique_blocks(self) -> int:
        """Different blocks, U."""
        return len(self.parent) - 1

    def path(self, request: int) -> array[int]:
        """Nodes of a request's prompt, first block first."""
        return self.nodes[self.first[request] : self.first[request + 1]]

    def in_order(self) -> RequestTrace:
        """The same requests by arrival; itself if they are in order already."""
        times = self.arrival_s
        if all(times[at] <= times[at + 1] for at in range(len(times) - 1)):
            return self
        made = RequestTrace(self.block_tokens)
        made.parent, made.skipped = self.parent, self.skipped
        for request in sorted(range(len(self)), key=times.__getitem__):
            made.nodes.extend(self.path(request))
            made._end(times[request], self.prompt_tokens[request], self.output_tokens[request])
        return made

    def add(self, arrival_s: float, prompt: int, output: int, ids: list[int]) -> None:
        """A request whose blocks have ids; the same id after the same blocks is the same block."""
        at = ROOT
        for one in ids:
            at = self._child(at, one)
            self.nodes.append(at)
        self._end(arrival_s, prompt, output)

    def add_shared(
        self, arrival_s: float, prompt: int, output: int, group: list[int], shared: int
    ) -> None:
        """A request whose first `shared` tokens are those of a group.

        Args:
            group: nodes of the group's blocks so far; it grows here.
        """
        n_shared = min(shared, prompt) // self.block_tokens
        while len(group) < n_shared:
            group.append(self._new(group[-1] if group else ROOT))
        self.nodes.extend(group[:n_shared])
        at = group[n_shared - 1] if n_shared else ROOT
        for _ in range(n_shared, -(-prompt // self.block_tokens)):
            at = self._new(at)
            self.nodes.append(at)
        self._end(arrival_s, prompt, output)

    def id_of(self, name: str) -> int:
        """The id that a text stands for; a decimal number is that number."""
        if name.isascii() and name.isdigit() and len(name) < 19 and str(int(name)) == name:
            return int(name)
        return self._names.setdefault(name, -1 - len(self._names))

    def _end(self, arrival_s: float, prompt: int, output: int) -> None:
        self.first.append(len(self.nodes))
        self.arrival_s.append(arrival_s)
        self.prompt_tokens.append(prompt)
        self.output_tokens.append(output)

    def _child(self, at: int, one: int) -> int:
        """The node of id `one` after node `at`.

        An array finds the first node of each id, if ids are about as dense as in public traces; a
        dictionary would take ten times the memory.
        """
        found = self._node_of_id
        if 0 <= one < len(found) or one == len(found):
            if one == len(found):
                found.append(ROOT)
            node = found[one]
            if node == ROOT:
                node = found[one] = self._new(at)
                return node
            if self.parent[node] == at:
                return node
        key = (at, one)
        node = self._edges.get(key, ROOT)
        if node == ROOT:
            if len(found) < one <= len(found) + 4096:
                found.extend([ROOT] * (one - len(found)))
                return self._child(at, one)
            node = self._edges[key] = self._new(at)
        return node

    def _new(self, at: int) -> int:
        self.parent.append(at)
        return len(self.parent) - 1


def read_trace(
    path: Path | str,
    block_tokens: int | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> RequestTrace:
    """The requests of a file, read line by line.

    Args:
        block_tokens: of one id, or of a block of a CSV file's prompts; by default the format's.
        skip_bad: count bad lines instead of refusing the first.

    Raises:
        BadFile: the file cannot be read, has no request, or has a bad line, which is named.
    """
    report = progress or Silent()
    try:
        kind = _CsvLines if ".csv" in Path(path).suffixes else _JsonLines
        return _read(path, kind(block_tokens), skip_bad, report)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadFile(f"cannot read {path}: {reason}; name a trace, plain or gzip.") from None


def holds_requests(path: Path | str) -> bool:
    """Whether a file looks like a request trace, by its first lines."""
    try:
        first = list(islice(_text_lines(path), FIRST_LINES))
    except (OSError, EOFError, zlib.error):
        return False
    header = [cell.strip(' "\r\n').lower() for cell in first[0].split(",")] if first else []
    return set(REQUIRED) <= {*header} or any('"hash_ids"' in line for line in first)


def _text_lines(path: Path | str) -> Iterator[str]:
    """Lines of a file without a byte order mark, unpacked if it begins as gzip does."""
    with open(path, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file: Any = gzip.GzipFile(fileobj=raw) if packed else raw
        encoding = "utf-8-sig"
        while line := file.readline(MAX_LINE):
            yield line.decode(encoding, "replace")
            encoding = "utf-8"


def _read(
    path: Path | str, lines: _JsonLines | _CsvLines, skip_bad: bool, progress: Progress
) -> RequestTrace:
    skipped = 0
    for number, line in enumerate(_text_lines(path), start=1):
        if number % REPORT_LINES == 0:
            progress(f"{number:,} lines of {path} read")
        if not line.strip():
            continue
        try:
            lines.read(line)
        except BadFile as error:
            raise BadFile(f"{path}, line {number}: {error}") from None
        except BadInput as error:
            if not skip_bad:
                raise BadFile(f"{path}, line {number}: {error} --skip-bad leaves it out.") from None
            skipped += 1
    if lines.trace is None or not len(lines.trace):
        raise BadFile(f"{path} has no request; {skipped:,} bad lines.")
    lines.trace.skipped = skipped
    return lines.trace


class _JsonLines:
    """Requests of JSON lines, into `trace`, which the first good line starts."""

    def __init__(self, block_tokens: int | None) -> None:
        self.trace: RequestTrace | None = None
        self._given = block_tokens

    def read(self, line: str) -> None:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise BadInput("it is not a line of JSON.") from None
        if not isinstance(record, dict):
            raise BadInput("it is not a JSON object.")
        bailian = "chat_id" in record
        arrival_s = _number(record, "timestamp") / (1.0 if bailian else 1e3)
        prompt = _count(record, "input_length", 1, MAX_PROMPT_TOKENS)
        output = _count(record, "output_length", 0, MAX_PROMPT_TOKENS)
        block = self._block(record, BAILIAN_BLOCK if bailian else MOONCAKE_BLOCK)
        ids = record.get("hash_ids")
        if not isinstance(ids, list):
            raise BadInput(f"hash_ids(={_shown(ids)}) must be a list of block ids.")
        wrong = [one for one in ids if type(one) is not int and type(one) is not str]
        if wrong:
            raise BadInput(f"hash_ids holds {_shown(wrong[0])}; ids are whole numbers or texts.")
        if len(ids) > MAX_PROMPT_TOKENS:
            raise BadInput(f"hash_ids holds {len(ids):,} ids, more than a prompt can have.")
        if self.trace is None:
            self.trace = RequestTrace(block)
        trace = self.trace
        trace.add(
            arrival_s,
            prompt,
            output,
            [one if type(one) is int else trace.id_of(one) for one in ids],
        )

    def _block(self, record: dict[str, Any], usual: int) -> int:
        if self._given is not None:
            return self._given
        named = record.get("block_size") is not None
        block = _count(record, "block_size", 1, MAX_PROMPT_TOKENS) if named else usual
        if self.trace is not None and block != self.trace.block_tokens:
            raise BadInput(
                f"its blocks have {block} tokens and those above {self.trace.block_tokens}."
            )
        return block


class _CsvLines:
    """Requests of CSV rows, into `trace`."""

    def __init__(self, block_tokens: int | None) -> None:
        self.trace: RequestTrace | None = None
        self._block_tokens = block_tokens or MOONCAKE_BLOCK
        self._columns: list[str] = []
        self._groups: dict[str, list[int]] = {}

    def read(self, line: str) -> None:
        try:
            cells = next(csv.reader([line]), [])
        except csv.Error as error:
            raise BadInput(f"it is not a row of CSV ({error}).") from None
        if self.trace is None:
            self._header([cell.strip().lower() for cell in cells])
            return
        if len(cells) != len(self._columns):
            raise BadInput(f"it has {len(cells)} cells and the header {len(self._columns)}.")
        row = dict(zip(self._columns, cells, strict=True))
        prompt = _count(row, "prompt_tokens", 1, MAX_PROMPT_TOKENS)
        group = row.get("prefix_group", "")
        shared = prompt if group else 0
        if group and row.get("prefix_tokens"):
            shared = _count(row, "prefix_tokens", 0, MAX_PROMPT_TOKENS)
        self.trace.add_shared(
            _number(row, "arrival_s"),
            prompt,
            _count(row, "gen_tokens", 0, MAX_PROMPT_TOKENS),
            self._groups.setdefault(group, []) if group else [],
            shared,
        )

    def _header(self, columns: list[str]) -> None:
        unknown = [name for name in columns if name not in (*REQUIRED, *OPTIONAL)]
        missing = [name for name in REQUIRED if name not in columns]
        if unknown or missing or len(set(columns)) < len(columns):
            raise BadFile(
                f"the header must have {', '.join(REQUIRED)} and may have {', '.join(OPTIONAL)}."
            )
        self._columns = columns
        self.trace = RequestTrace(self._block_tokens)


def _number(record: dict[str, Any], name: str) -> float:
    """A time of at least 0; a text is read as a number."""
    value = record.get(name)
    try:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            number = float(value)
            if 0 <= number < inf:
                return number
    except (ValueError, OverflowError):
        pass
    raise BadInput(f"{name}(={_shown(value)}) must be a number of at least 0.")


def _count(record: dict[str, Any], name: str, least: int, most: int) -> int:
    value = record.get(name)
    try:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            number = float(value)
            if least <= number <= most and number == int(number):
                return int(number)
    except (ValueError, OverflowError):
        pass
    raise BadInput(f"{name}(={_shown(value)}) must be a whole number from {least} to {most:,}.")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
