"""The tables that the package aiconfigurator-core ships, read from its files.

Its code is never imported: each table is a Parquet file under
`systems/data/<system>/<family>/<engine>/<version>/`; `systems/<system>.yaml` holds the datasheet's
numbers. Times are in milliseconds there and in seconds here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from sim.errors import BadFile, UnknownName
from sim.model.spec import DTYPE_BYTES

PACKAGE = "aiconfigurator-core"
MODULE = "aiconfigurator_core"

GEMM = "gemm/{}/gemm_perf.parquet"
DECODE = "attention/{}/generation_attention_perf.parquet"
PREFILL = "attention/{}/context_attention_perf.parquet"
EXPERTS = "moe/{}/moe_perf.parquet"
LATENT = "mla/{}/mla_generation_module_perf.parquet"
LATENT_PREFILL = "mla/{}/context_mla_perf.parquet"
INDEXED = "sparse_attention/{}/dsa_generation_module_perf.parquet"
INDEXED_PREFILL = "sparse_attention/{}/glm5_{}_module_perf.parquet"
STATES = "linear_attention/{}/gdn_perf.parquet"
ALL_REDUCE = "comm/{}/custom_allreduce_perf.parquet"

DTYPE = "bfloat16"
EIGHT_BITS = "fp8"

STATE_DECODE = (
    "fused_recurrent_gated_delta_rule",
    "fused_recurrent_gated_delta_rule_packed_decode",
)
STATE_CHUNKED = ("chunk_gated_delta_rule_triton", "chunk_gated_delta_rule_flashinfer")
"""Kernels that update the states, by name in the package."""

STATE_TOKENS = 1024
"""Of each prompt where several were timed at once."""

BUILDS_KV = "trtllm"
"""Engine whose kernel of latent prefill attends to K and V of each head.

Those of SGLang attend to latents on Hopper, which takes three times as long, and vLLM timed whole
layers: what a longer prompt adds to them would be faster than its products.
"""

INDEX_HEADS = {"deepseek-ai/DeepSeek-V3.2": 64, "zai-org/GLM-5": 32}
"""Heads of the index in the models whose attention was timed, from their config.json."""

TIMED_KERNELS = "sglang"
"""Engine whose kernels of sparse attention were timed one by one, for GLM-5."""

Shape = tuple[int, ...]
"""Shape of a timing: (m, n, k), or (batch, heads, KV heads, head size, tokens) of an attention."""


@dataclass(frozen=True, slots=True)
class SystemTables:
    """One system of the package as one engine ran it.

    Args:
        peaks: the `gpu` block of the system's file, in SI units.
        pcie_bytes_per_s: raw rate of its PCIe.
        peer_bytes_per_s: raw rate of the link to other GPUs of the node, each direction.
        device: name of the timed device, as given in the timings.
    """

    system: str
    engine: str
    engine_version: str
    package_version: str
    peaks: dict[str, float]
    pcie_bytes_per_s: float
    peer_bytes_per_s: float
    device: str
    folder: Path

    @classmethod
    def find(cls, system: str, engine: str, engine_version: str | None = None) -> SystemTables:
        """A system and engine by their names in the package, of the newest version of the engine
        or the given one.

        Raises:
            ModuleNotFoundError: the package is not installed.
            UnknownName: it has no such system, engine or version; the message lists what it has.
            BadFile: a file of the package lacks a needed entry.
        """
        known = system_names()
        if system not in known:
            raise UnknownName("system", system, known, f"systems: {', '.join(known)}.")
        versions = engines(system)
        if engine not in versions:
            raise UnknownName("engine", engine, versions, f"{system} has {', '.join(versions)}.")
        if engine_version is not None and engine_version not in versions[engine]:
            raise UnknownName("engine version", engine_version, versions[engine])
        chosen = engine_version or versions[engine][-1]
        folder = _systems_folder() / "data" / system
        return cls(
            system,
            engine,
            chosen,
            _package_version(),
            *_datasheet(_systems_folder() / f"{system}.yaml"),
            _device(folder / GEMM.format(f"{engine}/{chosen}")),
            folder,
        )

    def _path(self, table: str) -> Path:
        return self.folder / table.format(f"{self.engine}/{self.engine_version}")

    def products(self, gemm_dtype: str) -> dict[Shape, float]:
        """Seconds of `[m, k] x [k, n]` by (m, n, k); empty where the dtype was not timed."""
        return _timings(self._path(GEMM), ("m", "n", "k"), {"gemm_dtype": gemm_dtype})

    def decode_attention(self) -> dict[Shape, float]:
        """Seconds by (batch, heads, KV heads, head size, context) of one query token each."""
        shape = ("batch_size", "num_heads", "num_key_value_heads", "head_dim", "isl", "step")
        found = _timings(self._path(DECODE), shape, {"kv_cache_dtype": DTYPE, "window_size": 0})
        return {(*key[:-2], key[-2] + key[-1]): seconds for key, seconds in found.items()}

    def prefill_attention(self) -> dict[Shape, float]:
        """Seconds by (batch, heads, KV heads, head size, tokens) of causal attention of prompts."""
        shape = ("batch_size", "num_heads", "num_key_value_heads", "head_dim", "isl")
        where = {"kv_cache_dtype": DTYPE, "window_size": 0, "step": 0}
        return _timings(self._path(PREFILL), shape, where)

    def experts(self, moe_dtype: str) -> dict[Shape, tuple[float, bool]]:
        """Seconds by (hidden size, width of an expert, active, routed, tokens) of fused experts.

        The whole layer on one GPU, or a part of every expert's width. Also whether the tokens were
        spread evenly over the experts; if not, they were chosen by a power law close to even.
        """
        path = self._path(EXPERTS)
        if not path.is_file():
            return {}
        shape = ("hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "num_tokens")
        found: dict[Shape, tuple[float, bool]] = {}
        for distribution, even in (("power_law_1.01", False), ("balanced", True)):
            where = {"moe_dtype": moe_dtype, "moe_ep_size": 1, "distribution": distribution}
            for (hidden, width, active, routed, parts, n), seconds in _timings(
                path, shape, where
            ).items():
                found[hidden, width // parts, active, routed, n] = seconds, even
        return found

    def latent_attention(self) -> dict[Shape, float]:
        """Seconds by (heads, batch, context) of decoding one token by an attention layer of
        DeepSeek-V3, its products included."""
        path = self._path(LATENT)
        if not path.is_file():
            return {}
        shape = ("num_heads", "batch_size", "isl", "step")
        where = {"kv_cache_dtype": DTYPE, "gemm_type": DTYPE}
        found = _timings(path, shape, where)
        return {(*key[:-2], key[-2] + key[-1]): seconds for key, seconds in found.items()}

    def latent_prefill(self) -> tuple[str, dict[Shape, float]]:
        """The run that timed it, and seconds by (heads, tokens) of causal attention of one prompt,
        whose heads have 192 elements and values 128, as in DeepSeek-V3."""
        path = self._newest(LATENT_PREFILL, BUILDS_KV)
        if path is None:
            return "", {}
        where = {"kv_cache_dtype": DTYPE, "batch_size": 1, "step": 0}
        return _run(path), _timings(path, ("num_heads", "isl"), where)

    def indexed_attention(self) -> dict[Shape, float]:
        """Seconds by (index heads, heads, batch, context) of decoding one token by an attention
        layer of DeepSeek-V3.2 or GLM-5, its products included."""
        path = self._path(INDEXED)
        if not path.is_file():
            return {}
        found: dict[Shape, float] = {}
        for model, index_heads in INDEX_HEADS.items():
            where = {"kv_cache_dtype": DTYPE, "gemm_type": DTYPE, "model": model}
            timings = _timings(path, ("num_heads", "batch_size", "step"), where)
            found |= {(index_heads, *key): seconds for key, seconds in timings.items()}
        return found

    def indexed_prefill(self, kernel: str) -> tuple[str, dict[Shape, float]]:
        """The run that timed it, and seconds by (heads, tokens of a chunk, tokens before it) of
        one kernel of GLM-5: `dsa_attn`, `mqa_logits` (scores) or `topk` (the choice)."""
        path = self._newest(INDEXED_PREFILL.format("{}", kernel), TIMED_KERNELS)
        if path is None:
            return "", {}
        return _run(path), _timings(path, ("num_heads", "isl", "step"), {"batch_size": 1})

    def _newest(self, table: str, engine: str) -> Path | None:
        """A table of another engine than this one, of its newest version."""
        found = self.folder.glob(table.format(f"{engine}/*"))
        return max(found, key=lambda path: _version_key(path.parent.name), default=None)

    def states(self) -> tuple[str, dict[Shape, float], dict[Shape, float], dict[Shape, float]]:
        """The run that timed gated delta, and seconds of one decoded token, of one prompt and of
        prompts of `STATE_TOKENS` tokens.

        By (key heads, their size, value heads, their size, sequences, tokens of one prompt or
        prompts), of the kernel that updates the states alone. The system's own engine, or the
        first other one that timed them; its version may be another one than that of the products.
        """
        found = self.folder.glob(STATES.format("*/*"))
        paths = sorted(
            found,
            key=lambda path: (
                path.parent.parent.name == self.engine,
                path.parent.parent.name,
                _version_key(path.parent.name),
            ),
        )
        if not paths:
            return "", {}, {}, {}
        path = paths[-1]
        shape = ("num_k_heads", "head_k_dim", "num_v_heads", "head_v_dim")
        decode: dict[Shape, float] = {}
        chunked: dict[Shape, float] = {}
        prompts: dict[Shape, float] = {}
        for kernel in STATE_DECODE:
            where = {"kernel_source": kernel, "phase": "generation", "seq_len": 1}
            decode |= _timings(path, (*shape, "batch_size"), where)
        for kernel in STATE_CHUNKED:
            where = {"kernel_source": kernel, "phase": "context"}
            chunked |= _timings(path, (*shape, "seq_len"), {**where, "batch_size": 1})
            where["seq_len"] = STATE_TOKENS
            prompts |= _timings(path, (*shape, "batch_size"), where)
        return _run(path), decode, chunked, prompts

    def all_reduce(self) -> dict[Shape, float]:
        """Seconds by (GPUs, bytes) of summing one tensor over the GPUs of a node.

        The kernels of the engine as a CUDA graph replays them; the newest version that was timed,
        for it may be another one than that of the products. Sizes in the files are elements.
        """
        path = self._newest(ALL_REDUCE, self.engine)
        if path is None:
            return {}
        where = {"backend": f"{self.engine}_graph", "allreduce_dtype": DTYPE}
        timings = _timings(path, ("num_gpus", "message_size"), where)
        size = DTYPE_BYTES[DTYPE]
        return {(gpus, elements * size): seconds for (gpus, elements), seconds in timings.items()}


def system_names() -> list[str]:
    """Systems that the installed package has timings of.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    data = _systems_folder() / "data"
    return sorted(path.name for path in data.glob("*") if engines(path.name))


def engines(system: str) -> dict[str, list[str]]:
    """Engines that all three tables of a system exist for, with their versions, oldest first."""
    folder = _systems_folder() / "data" / system
    found: dict[str, list[str]] = {}
    for path in folder.glob(GEMM.format("*/*")):
        engine, number = path.parts[-3:-1]
        run = f"{engine}/{number}"
        if all((folder / table.format(run)).is_file() for table in (DECODE, PREFILL)):
            found.setdefault(engine, []).append(number)
    return {engine: sorted(found[engine], key=_version_key) for engine in sorted(found)}


def _run(path: Path) -> str:
    """Engine and version of a table."""
    return f"{path.parent.parent.name} {path.parent.name}"


def _version_key(text: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", text)]


def _systems_folder() -> Path:
    spec = find_spec(MODULE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {MODULE!r}", name=MODULE)
    return Path(spec.submodule_search_locations[0]) / "systems"


def _package_version() -> str:
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return "of unknown version"


def _datasheet(path: Path) -> tuple[dict[str, float], float, float]:
    """The numbers of a system's `gpu` block, and its rates of PCIe and between GPUs, bytes/s."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
        peaks = {name: float(value) for name, value in content["gpu"].items()}
        node = content["node"]
        pcie_bytes_per_s = float(node["pcie_bw"])
        return peaks, pcie_bytes_per_s, float(node.get("intra_node_bw", pcie_bytes_per_s))
    except (OSError, KeyError, TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise BadFile(f"{path} cannot be read ({error}); reinstall {PACKAGE}.") from None


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong inside a table into a `BadFile` that names it."""
    import pyarrow

    try:
        yield
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise BadFile(f"{path} cannot be read ({reason}); reinstall {PACKAGE}.") from None


def _device(path: Path) -> str:
    import pyarrow.parquet as pq

    with _reading(path):
        names = pq.read_table(path, columns=["device"])["device"].unique().to_pylist()
    return ", ".join(map(str, names))


def _timings(path: Path, shape: Sequence[str], where: dict[str, Any]) -> dict[Shape, float]:
    """Seconds by the columns of `shape` in the rows that match `where`.

    A column that a table lacks does not restrict it. A shape that was timed more than once has the
    median of its times.
    """
    import pyarrow.parquet as pq

    with _reading(path):
        present = set(pq.read_schema(path).names)
        filters = [(name, "==", value) for name, value in where.items() if name in present]
        table = pq.read_table(path, columns=[*shape, "latency"], filters=filters)
    times: dict[Shape, list[float]] = {}
    columns = [table[name].to_pylist() for name in (*shape, "latency")]
    for *key, latency in zip(*columns, strict=True):
        if latency is not None and latency > 0:
            times.setdefault(tuple(key), []).append(latency * 1e-3)
    return {key: median(values) for key, values in times.items()}
