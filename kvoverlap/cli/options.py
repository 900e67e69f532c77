"""Options that several verbs share, each with one help text and one default.

A single option is an annotated type. Options that belong together are a frozen dataclass, which a
verb takes as one argument. Counts and sizes are parsed when the command line is read.

This module and the verbs leave out `from __future__ import annotations`: the parser reads the
annotations of a verb at every start, and as texts they would be compiled again, for 0.1 s.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token

from kvoverlap.cli.output import note
from sim.catalog import find_hardware, find_model, find_runtime
from sim.engine.api import NO_NUMBA, check_engine, fast_engine_installed
from sim.errors import BadInput, UnknownName
from sim.files import check_writable
from sim.graph.jobs import Workload
from sim.machine.links import COPY_KINDS
from sim.machine.profile import HardwareProfile
from sim.machine.runtime import Runtime as ServingRuntime
from sim.machine.what_if import (
    RATES,
    in_dtype_of,
    rate_unit,
    with_copies,
    with_memory,
    with_rate,
)
from sim.model.spec import ModelSpec
from sim.units import parse_bytes, parse_count, parse_counts, parse_rate


def parsed_by(parse: Callable[[str, str], Any]) -> Callable[[Any, Sequence[Token]], Any]:
    """A cyclopts converter that gives `parse` the option's name and its text."""

    def convert(_type: Any, tokens: Sequence[Token]) -> Any:
        (token,) = tokens
        return parse(token.keyword or "value", token.value)

    return convert


def parse_gate(name: str, text: str) -> float:
    """A percentage of at least 0.

    Raises:
        BadInput: another text.
    """
    try:
        if (gate := float(text)) >= 0:
            return gate
    except ValueError:
        pass
    raise BadInput(f"{name}(={text}) must be a percentage of at least 0.")


def parse_seed(name: str, text: str) -> int:
    """A whole number that random generators take.

    Raises:
        BadInput: another text.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) < 2**63):
        raise BadInput(f"{name}(={text}) must be a whole number from 0 to 2^63 - 1, such as 7.")
    return int(text)


def parse_decimal(name: str, text: str) -> float:
    """A decimal number in ASCII digits.

    Raises:
        BadInput: another text.
    """
    try:
        if text.isascii():
            return float(text)
    except ValueError:
        pass
    raise BadInput(f"{name}(={text}) must be a number, such as 0.5.")


Count = Annotated[int, Parameter(converter=parsed_by(parse_count), metavar="COUNT")]
Counts = Annotated[
    tuple[int, ...] | None,
    Parameter(converter=parsed_by(parse_counts), metavar="COUNT,..."),
]
Decimal = Annotated[float, Parameter(converter=parsed_by(parse_decimal), metavar="FLOAT")]
Bytes = Annotated[float, Parameter(converter=parsed_by(parse_bytes), metavar="SIZE")]

CachedKvBits = Annotated[
    int,
    Parameter(
        help="Bits of one value of the cached KV: 16, 8, 4 or 3. By default 16, or 8 if the "
        "checkpoint asks for it."
    ),
]

OutputFile = Annotated[Path, Parameter(converter=parsed_by(check_writable), metavar="PATH")]
"""A file to write, which is refused before anything is measured if that is impossible."""

Model = Annotated[
    str, Parameter(help="Name of a shipped model (`kvoverlap models`) or path of a config.json.")
]
AssumeLike = Annotated[
    str | None,
    Parameter(
        metavar="FAMILY",
        help="Family to read a config of an unknown model_type as, such as llama. The model's name "
        "then says that it is assumed.",
    ),
]
Hardware = Annotated[
    str,
    Parameter(
        help="Name of a shipped machine or device (`kvoverlap hardware` lists them), DEVICE+LINK "
        "such as h100-sxm+pcie5-x16, or path of a profile.json or of a data sheet in TOML."
    ),
]
Runtime = Annotated[
    str | None,
    Parameter(
        metavar="NAME",
        help="Serving runtime that does the job: its copies, order of loads and host time. "
        "kvoverlap (the default: the best plan), vllm, lmcache, sglang-hicache, llama.cpp, "
        "llama.cpp-ring, transformers, flexgen, or path of a file as in data/runtimes.",
    ),
]
Dtype = Annotated[
    str | None,
    Parameter(
        help="float32, float16 or bfloat16. By default the model's, or the profile's if its "
        "element size differs."
    ),
]
Batch = Annotated[Count, Parameter(help="Sequences that are decoded together.")]
Prompt = Annotated[Count, Parameter(help="Tokens of each prompt, such as 4K (4096).")]
Gen = Annotated[Count, Parameter(help="Decode steps.")]
Repeats = Annotated[Count, Parameter(help="Measured repeats of every case, after warm-ups.")]
Seed = Annotated[
    int,
    Parameter(
        converter=parsed_by(parse_seed),
        metavar="INT",
        help="Seed of random weights and prompts.",
    ),
]
Engine = Annotated[
    str,
    Parameter(
        help="Simulator: simpy, the reference; fast (compiled with numba; the same times to 1e-9); "
        "or auto: the longest paths where no task slows another down, which are simpy's times, "
        "else fast for many tasks if numba is installed, else simpy."
    ),
]
Gate = Annotated[
    float | None,
    Parameter(
        converter=parsed_by(parse_gate),
        help="Exit with status 1 if a makespan error exceeds this many per cent.",
    ),
]
Json = Annotated[bool, Parameter(help="Print JSON instead of text.")]
PlanFile = Annotated[
    Path, Parameter(help="A plan written by `kvoverlap plan -o` or `kvoverlap restore -o`.")
]
PlanOutput = Annotated[
    OutputFile | None,
    Parameter(
        name=["--output", "-o"], help="Write the plan here, for `kvoverlap simulate` and `run`."
    ),
]
NewFile = Annotated[OutputFile, Parameter(name=["--output", "-o"], help="Write the profile here.")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model and its precision."""

    model: Model
    dtype: Dtype = None
    assume_like: AssumeLike = None
    dequantise: Annotated[
        bool,
        Parameter(
            help="Plan weights in --dtype, as `kvoverlap run` computes with them, and not in the "
            "bits that they are stored in.",
        ),
    ] = False
    tp: Annotated[
        Count,
        Parameter(
            help="GPUs that share the model (tensor parallelism): heads, MLPs, experts and "
            "vocabulary are divided, and each GPU loads its own part over its own link. They "
            "share the host's SSD and network. Predicted, not run."
        ),
    ] = 1
    ep: Annotated[
        Count,
        Parameter(
            help="Of --tp, GPUs that the routed experts are divided over as a whole (expert "
            "parallelism). By default every GPU holds a part of each expert."
        ),
    ] = 1

    def load(self, hardware: HardwareProfile) -> ModelSpec:
        """One GPU's part of the model in the element size that the profile was measured with.

        Raises:
            BadInput: heads or experts cannot be divided over the GPUs, or the machine has fewer.
        """
        hardware.check_gpus(self.tp)
        found = find_model(self.model, self.dtype, self.assume_like)
        if self.dequantise:
            found = found.dequantised()
        fitting = match_dtype(found, hardware, chosen=self.dtype is not None)
        return fitting.shard(self.tp, self.ep)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """The machine and what-if changes of its rates and memory sizes."""

    hardware: Hardware
    settings: Annotated[
        tuple[str, ...],
        Parameter(
            name="--set",
            metavar="KEY=RATE",
            help="What if a rate were this: link.bandwidth=64GB/s, compute.flops=600TFLOP/s. "
            "Repeat for several.",
        ),
    ] = ()
    gpu_memory: Annotated[
        Bytes | None,
        Parameter(help="What if each GPU had this much memory for the job, such as 24GiB."),
    ] = None
    host_memory: Annotated[
        Bytes | None,
        Parameter(help="What if the host had this much memory for the job, such as 256GiB."),
    ] = None
    runtime: Runtime = None
    copies: Annotated[
        str | None,
        Parameter(
            metavar="KIND",
            help="What if copies were made by a kernel (kernel), from pageable memory (pageable), "
            "or from another NUMA node (far). By default by copy engines from pinned memory of the "
            "GPU's node.",
        ),
    ] = None
    link_from: Annotated[
        Path | None,
        Parameter(
            metavar="TRACE",
            help="What if the link copied as in this trace: rates by size from its pinned copies. "
            "A profiler's trace, or what `kvoverlap trace -o` wrote of one.",
        ),
    ] = None

    @property
    def serving(self) -> ServingRuntime | None:
        """The serving runtime; None for kvoverlap's own executor."""
        return None if self.runtime is None else find_runtime(self.runtime)

    def load(self) -> HardwareProfile:
        """The profile with every change applied: the trace's link, then rates, then memory.

        Raises:
            BadInput: a setting has no `=`, an unknown key, a key that is given twice, or a value
                that is not a rate in the key's unit.
            NotMeasured: the trace has no rate, or the machine no link.
        """
        machine = find_hardware(self.hardware)
        if self.link_from is not None:
            from sim.traces.link import with_link_from

            machine, found = with_link_from(machine, self.link_from)
            for lane, text in found.items():
                note(f"{lane}: {text}")
        if self.copies is not None:
            if self.link_from is not None:
                raise BadInput(
                    f"--copies(={self.copies}) and --link-from both set the link; leave one out."
                )
            if self.copies not in COPY_KINDS:
                raise UnknownName("kind of copies", self.copies, COPY_KINDS)
            machine = with_copies(machine, self.copies)
        given = set()
        for setting in self.settings:
            key, equals, value = setting.partition("=")
            if not equals or key not in RATES:
                raise BadInput(
                    f"--set {setting}: must be KEY=RATE with KEY one of {', '.join(RATES)}."
                )
            if key in given:
                raise BadInput(f"--set {setting}: {key} is given twice; remove one.")
            given.add(key)
            rate = parse_rate(f"--set {key}", value, rate_unit(key))
            machine = with_rate(machine, key, rate)
        return with_memory(machine, self.gpu_memory, self.host_memory)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class StepJob:
    """One decode step of a batch, and the format of the cache on the host."""

    batch: Batch
    prompt: Prompt
    kv_bits: Annotated[
        Count | None,
        Parameter(
            help="8 or 4: quantise K and V on the host, with a 16-bit scale and minimum for each "
            "64 values, and dequantise them on the GPU. A load is about a half or a quarter of its "
            "float16 size; `kvoverlap run` reports the error. 16: the model's dtype, which is the "
            "default unless the checkpoint asks for a cache in 8 bits."
        ),
    ] = None

    def workload(self, model: ModelSpec) -> Workload:
        """The job as the planner reads it."""
        return Workload(self.batch, self.prompt, 1, kv_bits=self.host_kv_bits(model))

    def host_kv_bits(self, model: ModelSpec) -> int | None:
        """Bits of K and V on the host; None for the model's dtype."""
        if self.kv_bits is None and model.kv_bits is not None and not model.quantises_kv:
            note(
                f"{model.name} asks for a cache in {model.kv_bits} bits; latents are planned in "
                f"{model.dtype}"
            )
            return None
        bits = cached_kv_bits(self.kv_bits, model)
        return None if bits == UNQUANTISED else bits


UNQUANTISED = 16
"""Bits of K and V that are not quantised, whatever the dtype."""


def match_dtype(model: ModelSpec, hardware: HardwareProfile, chosen: bool) -> ModelSpec:
    """The model in the profile's element size, with a note if that changes its dtype.

    Raises:
        BadInput: the user chose a dtype of another size than the profile's.
    """
    fitting = in_dtype_of(model, hardware, chosen)
    if fitting is not model:
        note(f"using {fitting.dtype}, which profile {hardware.name} is for, not {model.dtype}")
    return fitting


def cached_kv_bits(chosen: int | None, model: ModelSpec) -> int:
    """Bits of cached K and V: as chosen, or else as the checkpoint asks for, with a note."""
    if chosen is not None or model.kv_bits is None:
        return chosen or UNQUANTISED
    note(
        f"K and V outside GPU memory in {model.kv_bits} bits, as {model.name} asks for; "
        "--kv-bits 16 for its dtype"
    )
    return model.kv_bits


def installed_engine(name: str) -> str:
    """The engine `name`, or SimPy with a note if numba is missing.

    Raises:
        UnknownName: no such engine.
    """
    check_engine(name)
    if name == "fast" and not fast_engine_installed():
        note(f"{NO_NUMBA} Simulating with SimPy.")
        return "simpy"
    return name
