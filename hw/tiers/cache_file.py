"""A cached prefix in a file: K, V and X in cells of one layer and one chunk of tokens each.

A file has one line of text with the length of the header, the header in JSON, and the cells, each
aligned for direct reads. The cells of one chunk are contiguous, layer after layer, so that loading
a chunk in all layers is one sequential read. The header has a checksum of every cell; a cell with
another checksum is reported lost, and computed instead.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Self

import torch
import xxhash
from torch import Tensor

from hw.backends.pacing import Transfer
from hw.cache.host import HostCache, kv_layout
from hw.model.weights import TORCH_DTYPE, Weights, matrices
from hw.tiers.direct_io import IN_FLIGHT, DirectReader, aligned
from hw.tiers.tiers import KV, Lost, Piece, X, token_bytes
from sim.errors import BadFile, Mismatch
from sim.files import STRICT_KEYS, parse
from sim.model.spec import ModelSpec

MAGIC = "kvoverlap-prefix 1"
MAX_HEADER_BYTES = 2**28


@dataclass(frozen=True, slots=True)
class PrefixKey:
    """Identity of the model and prompt whose K, V and X a file holds.

    Args:
        tokens_xxh3, weights_xxh3: digests of the cached token ids and of some rows of the weights.
    """

    __pydantic_config__ = STRICT_KEYS

    model: str
    dtype: str
    tokens_xxh3: str
    weights_xxh3: str
    cached_tokens: int
    chunk_tokens: int

    @classmethod
    def of(
        cls, weights: Weights, prompt: Tensor, cached_tokens: int, chunk_tokens: int
    ) -> PrefixKey:
        """Key of the first tokens of a prompt, [S] ids on the host."""
        *_, down = matrices(weights.layers[-1])
        rows = [next(matrices(weights.layers[0]))[0], down[0]]
        sample = torch.cat([row.flatten() for row in rows]).cpu()
        return cls(
            weights.model.name,
            weights.model.dtype,
            _digest(prompt[:cached_tokens].contiguous()),
            _digest(sample),
            cached_tokens,
            chunk_tokens,
        )

    @property
    def n_chunks(self) -> int:
        return -(-self.cached_tokens // self.chunk_tokens)


@dataclass(frozen=True, slots=True)
class _Region:
    """Cells of K and V, or of X: offset of the first, stride in bytes, checksums."""

    __pydantic_config__ = STRICT_KEYS

    offset: int
    stride: int
    checksums: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Header:
    __pydantic_config__ = STRICT_KEYS

    key: PrefixKey
    regions: dict[str, _Region]


def _content(rows: Tensor) -> memoryview:
    return rows.reshape(-1).view(torch.uint8).numpy().data


def _digest(rows: Tensor) -> str:
    """xxh3, which is faster than any disk; CRC-32 is five times slower."""
    return xxhash.xxh3_64_hexdigest(_content(rows))


def write_cache_file(path: Path, key: PrefixKey, cache: HostCache) -> None:
    """Write the prefix that `key` identifies, from a cache of all its tokens.

    Raises:
        BadFile: the file cannot be written.
    """
    held = {KV: cache.kv, X: cache.x}
    regions, offset = {}, 0
    for kind, layers in held.items():
        stride = aligned(key.chunk_tokens * token_bytes(layers[0]))
        checksums = tuple(_digest(rows) for rows in _cells(key, layers))
        regions[kind] = _Region(offset, stride, checksums)
        offset += stride * len(checksums)
    header = json.dumps(asdict(_Header(key, regions))).encode()
    first_line = f"{MAGIC} {len(header)}\n".encode()
    start = aligned(len(first_line) + len(header))
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write((first_line + header).ljust(start, b"\0"))
            for kind, layers in held.items():
                _write_cells(file, key, layers, regions[kind].stride)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise BadFile(f"cannot write {path}: {error.strerror}; choose another path.") from error
    finally:
        if temporary.is_file():
            temporary.unlink()


def _cells(key: PrefixKey, layers: Sequence[Tensor]) -> Iterator[Tensor]:
    for chunk in range(key.n_chunks):
        start = chunk * key.chunk_tokens
        stop = min(start + key.chunk_tokens, key.cached_tokens)
        for held in layers:
            yield held[start:stop]


def _write_cells(file: BinaryIO, key: PrefixKey, layers: Sequence[Tensor], stride: int) -> None:
    for rows in _cells(key, layers):
        content = _content(rows)
        file.write(content)
        file.write(bytes(stride - len(content)))


class CacheFile:
    """Tier `ssd`: a cache file, opened for direct reads; use it as a context manager.

    Raises:
        BadFile: unreadable, or not written by `write_cache_file`.
        Mismatch: it holds another prefix, or has another chunk size.
    """

    def __init__(self, path: Path, key: PrefixKey, model: ModelSpec) -> None:
        header, self._start = _read_header(path)
        if header.key != key:
            wanted, found = asdict(key), asdict(header.key)
            name = next(name for name in wanted if wanted[name] != found[name])
            raise Mismatch(
                f"{path} holds another prefix: its {name} is {found[name]!r} and the plan's is "
                f"{wanted[name]!r}; name another file, or remove this one."
            )
        self.path, self.key = path, key
        self._regions = header.regions
        kv_shape, dtype = kv_layout(model, None)
        self._layers = model.n_layers
        self._layout = {KV: (1, *kv_shape), X: (1, model.hidden_size)}
        self._dtype = dtype
        self._token_bytes = {
            KV: model.kv_token_bytes,
            X: model.hidden_size * TORCH_DTYPE[model.dtype].itemsize,
        }
        self._reader = DirectReader(path)

    @property
    def how(self) -> str:
        return f"{self._reader.mode}, {IN_FLIGHT} reads in flight"

    def slot_bytes(self, kind: str, layers: int, n_tokens: int) -> int:
        touched = -(-n_tokens // self.key.chunk_tokens) + 1
        return layers * touched * self._regions[kind].stride

    def bring(
        self,
        kind: str,
        layers: Sequence[int],
        start: int,
        stop: int,
        slot: Tensor | None,
        move: Transfer,
    ) -> tuple[list[Piece], list[Lost]]:
        """Read whole cells: one layer of one chunk, the unit that has a checksum."""
        size, stride = self.key.chunk_tokens, self._regions[kind].stride
        chunks = range(start // size, -(-stop // size))
        cells = [(chunk, layer) for chunk in chunks for layer in layers]
        if slot is None:
            raise ValueError("a file is read into a slot")
        buffers = slot.view(torch.uint8)[: stride * len(cells)].view(len(cells), stride)
        jobs = list(zip(cells, buffers, strict=True))
        faults = self._reader.several(lambda job: self._read_cell(kind, *job[0], job[1]), jobs)
        pieces, lost = [], []
        for ((chunk, layer), buffer), why in zip(jobs, faults, strict=True):
            first, last = max(start, chunk * size), min(stop, (chunk + 1) * size)
            if why:
                lost.append(Lost(layer, first, last, why))
                continue
            n_bytes = self._cell_tokens(chunk) * self._token_bytes[kind]
            rows = buffer[:n_bytes].view(self._dtype).view(-1, *self._layout[kind])
            pieces.append(
                Piece(layer, first, last, rows[first - chunk * size : last - chunk * size])
            )
        move.passed(len(layers) * (stop - start) * self._token_bytes[kind])
        return pieces, lost

    def _cell_tokens(self, chunk: int) -> int:
        size = self.key.chunk_tokens
        return min(size, self.key.cached_tokens - chunk * size)

    def _read_cell(self, kind: str, chunk: int, layer: int, buffer: Tensor) -> str:
        """Read one cell; returns the fault, or an empty string."""
        region, at = self._regions[kind], chunk * self._layers + layer
        n_bytes = self._cell_tokens(chunk) * self._token_bytes[kind]
        try:
            found = self._reader.read(self._start + region.offset + at * region.stride, buffer)
        except OSError as error:
            return f"the disk failed: {error.strerror}"
        if found < n_bytes:
            return "the file is truncated"
        return "" if _digest(buffer[:n_bytes]) == region.checksums[at] else "its checksum differs"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._reader.__exit__(*exc)


def _read_header(path: Path) -> tuple[_Header, int]:
    """The header, and the offset of the cells."""
    try:
        with path.open("rb") as file:
            magic, _, digits = file.readline(64).decode("ascii", "replace").rpartition(" ")
            length = int(digits) if magic == MAGIC and digits.strip().isdigit() else 0
            if not 0 < length < MAX_HEADER_BYTES:
                raise BadFile(f"{path} is not a kvoverlap cache file; remove it, or name another.")
            begun = file.tell()
            content = json.loads(file.read(length))
    except (OSError, ValueError) as error:
        raise BadFile(
            f"{path} has no readable header ({error}); remove it to have it written again."
        ) from None
    return parse(_Header, content, str(path)), aligned(begun + length)
