"""Weights from a Hugging Face directory: config.json and safetensors files, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hw.backends import Backend
from hw.model.layout import assemble_weights
from hw.model.stored import BLOCKS, EXPONENTS, Block, plain
from hw.model.weights import Weights
from sim.errors import BadFile, DoesNotFit, Mismatch
from sim.files import decode_json
from sim.model.config import language_part, load_model_config
from sim.model.spec import ModelSpec
from sim.progress import Progress, Silent

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth")
STORED_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
UNUSED = ("rotary_emb.inv_freq", "lm_head.weight", ".input_scale")
"""Ends of names that may go unread: a table we compute, a head that is tied, and a scale of
activations in FP8, which are computed with in more bits here."""

SILENT = Silent()
META = torch.device("meta")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Position, shape and dtype of a tensor in its file, from the file's header."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on disk whose headers agree with its config; nothing of the weights is read yet.

    Args:
        model: from config.json, under the directory's name. Weights have the bits that are computed
            with: those stored in FP8 or MXFP4 are dequantised as they are loaded.
        tensors: by name, as stored.
        stored_bits: of most weights, if fewer than are computed with.
        block: rows and columns of a matrix in FP8 that share a scale.
    """

    directory: Path
    model: ModelSpec
    tensors: dict[str, StoredTensor]
    stored_bits: int | None = None
    block: Block | None = None

    @classmethod
    def open(cls, directory: Path, assume_like: str | None = None) -> Checkpoint:
        """Read the config and every header, and check that they describe the same model.

        Args:
            assume_like: family to read a config of an unknown family as.

        Raises:
            BadFile: no such directory, no config, no safetensors, a missing, corrupt or truncated
                file, or a tensor in a dtype that is not computed with.
            Mismatch: config.json and the tensors disagree in a name or shape.
        """
        if not directory.is_dir():
            raise BadFile(
                f"weights {directory} is not a directory; give the one that holds config.json and "
                f"{SINGLE}."
            )
        if not (directory / "config.json").is_file():
            raise BadFile(
                f"{directory} holds no config.json; give the directory of one Hugging Face model."
            )
        described = load_model_config(directory, directory.resolve().name, assume_like)
        model = described.dequantised()
        tensors, bits = _stored_tensors(directory), described.weight_bits
        found = cls(directory, model, tensors, bits, _block(directory / "config.json"))
        read: set[str] = set()

        def outline(name: str) -> Tensor | None:
            stored = found.find(name)
            if stored is None:
                return None
            read.add(stored.name)
            return torch.empty(stored.shape, dtype=stored.dtype, device="meta")

        assemble_weights(model, partial(plain, read=outline, block=found.block), META)
        left = sorted(name for name in found.tensors if name not in read)
        left = [name for name in left if not name.endswith(UNUSED)]
        if left:
            raise Mismatch(
                f"{directory} holds {len(left)} tensors that its config.json has no place for, "
                f"such as {left[0]!r}; use the config.json of these weights."
            )
        return found

    def find(self, name: str) -> StoredTensor | None:
        """The tensor of that name; the files of a model without a head leave out `model.`."""
        return self.tensors.get(name) or self.tensors.get(name.removeprefix("model."))

    def load(self, model: ModelSpec, backend: Backend, progress: Progress = SILENT) -> Weights:
        """Copy the weights to the device, one tensor after the other.

        Memory peaks at the weights plus one tensor: a file is mapped only while one is copied.

        Args:
            model: the checkpoint's shape under any name, in the dtype to compute with.
            progress: receives the file that is read and the fraction done.

        Raises:
            DoesNotFit: the weights are larger than the device's memory.
            Mismatch: `model` has another shape than the checkpoint.
            BadFile: a file changed since it was opened.
        """
        room = backend.memory().device_bytes
        if model.weight_bytes > room:
            raise DoesNotFit(
                f"the weights of {model.name} take {model.weight_bytes / 2**30:.1f} GiB in "
                f"{model.dtype} and this {backend.kind} device has {room / 2**30:.1f} GiB for "
                "them; choose a smaller model or --dtype."
            )
        n_read = 0

        def read(name: str) -> Tensor | None:
            nonlocal n_read
            stored = self.find(name)
            if stored is None:
                return None
            progress(f"loading {stored.path.name}", n_read / len(self.tensors))
            n_read += 1
            with _opened(stored.path) as file:
                tensor: Tensor = file.get_tensor(stored.name)
            return tensor

        return assemble_weights(model, partial(plain, read=read, block=self.block), backend.device)


def _block(config: Path) -> Block | None:
    """`weight_block_size` of the config's quantisation."""
    stored = language_part(decode_json(config)).get("quantization_config") or {}
    found = stored.get("weight_block_size")
    return None if found is None else (int(found[0]), int(found[1]))


def _stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """All tensors of a directory, from one file or from the shards that its index names."""
    if (directory / SINGLE).is_file():
        return _header(directory / SINGLE)
    if not (directory / INDEX).is_file():
        raise BadFile(_nothing_to_load(directory))
    shards = _shards(directory / INDEX)
    headers = {shard: _header(directory / shard) for shard in sorted(set(shards.values()))}
    for name, shard in shards.items():
        if name not in headers[shard]:
            raise BadFile(
                f"{directory / INDEX} places tensor {name!r} in {shard}, which does not hold it; "
                "download index and shards of one revision."
            )
    return {name: headers[shard][name] for name, shard in shards.items()}


def _shards(index: Path) -> dict[str, str]:
    """File name of each tensor; every file is in the folder of the index."""
    content = decode_json(index)
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(at, str) for at in shards.values()):
        raise BadFile(f"{index} has no weight_map from tensor to file; download it again.")
    for shard in sorted(set(shards.values())):
        if Path(shard).name != shard or not (index.parent / shard).is_file():
            raise BadFile(
                f"{index} names the file {shard!r}, which is missing in its folder; "
                "download all shards."
            )
    return shards


def _header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file.

    Raises:
        BadFile: corrupt, truncated, or with a dtype that is not read.
    """
    tensors = {}
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118
            stored = file.get_slice(name)
            dtype = STORED_DTYPES.get(stored.get_dtype())
            if stored.get_dtype() == "U8" and name.endswith((BLOCKS, EXPONENTS)):
                dtype = torch.uint8
            if dtype is None:
                raise BadFile(
                    f"tensor {name!r} in {path} is stored as {stored.get_dtype()}, which is not "
                    "float32, float16, bfloat16, FP8 or MXFP4; use a checkpoint in one of these."
                )
            tensors[name] = StoredTensor(path, name, tuple(stored.get_shape()), dtype)
    return tensors


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise BadFile(
            f"{path} is not a whole safetensors file ({error}); download it again."
        ) from None


def _nothing_to_load(directory: Path) -> str:
    """Why a directory without our two file names cannot be loaded."""
    pickles = sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))
    if pickles:
        return (
            f"{directory} holds pickle checkpoints ({pickles[0]}) and only safetensors is loaded, "
            "since a pickle can run code; convert it with transformers: "
            f"AutoModelForCausalLM.from_pretrained({str(directory)!r}).save_pretrained('NEW')."
        )
    return f"{directory} holds neither {SINGLE} nor {INDEX}; download the model's weights."
