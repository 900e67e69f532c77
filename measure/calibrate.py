"""The profile of a device, for the shapes of the models that it will run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

from sim.errors import BadInput, DoesNotFit
from sim.graph.jobs import Workload
from sim.machine.profile import HardwareProfile
from sim.model.kv_format import KV_BITS
from sim.model.spec import ModelSpec
from sim.progress import Progress
from sim.units import parse_rate

DEFAULT_MODELS = {"cpu": ("opt-125m",), "cuda": ("opt-1.3b", "opt-6.7b", "opt-13b", "llama-3.1-8b")}

DEFAULT_DTYPE = {"cpu": "float32", "cuda": "float16"}


def link_pace(kind: str, link: str | None) -> float | None:
    """Bytes per second of `--link`, or None if it is left out.

    Raises:
        BadInput: not a rate, or the device has a real link.
    """
    if link is not None and kind != "cpu":
        raise BadInput(f"--link(={link}) paces the cpu device only; leave it out on {kind}.")
    return None if link is None else parse_rate("--link", link)


def check_weights(kind: str, spec: ModelSpec) -> None:
    """Refuse a model whose weights exceed the memory of the cpu device.

    Raises:
        DoesNotFit: they do.
    """
    from hw.environment import host_memory_bytes

    need, has = spec.weight_bytes, host_memory_bytes()
    if kind == "cpu" and need > has:
        raise DoesNotFit(
            f"the weights of {spec.name} in {spec.dtype} take {need / 2**30:.1f} GiB of host "
            f"memory and {has / 2**30:.1f} GiB are free; choose a smaller model."
        )


def measure_profile(
    kind: str,
    specs: list[ModelSpec],
    name: str,
    link: str | None,
    progress: Progress,
    kv_bits: Sequence[int] = KV_BITS,
    restores: bool = True,
    max_s: float = inf,
    jobs: Sequence[Workload] = (),
) -> HardwareProfile:
    """A profile of device `kind` for the shapes of `specs`; chooses a link pace where needed.

    Args:
        kv_bits: quantised caches whose kernels are sampled.
        restores: also sample chunked prefill and the disk.
        max_s: seconds after which no further pass over the points begins.
        jobs: decodes of the first model; only the sizes that these use are sampled, by default all.
    """
    from hw import SAMPLED, balanced_link_bytes_per_s, open_backend, profile_device

    for spec in specs:
        check_weights(kind, spec)
    pace = link_pace(kind, link)
    if kind == "cpu" and pace is None:
        with open_backend("cpu") as backend:
            pace = balanced_link_bytes_per_s(backend, specs[0])
    ranges = replace(SAMPLED[kind], kv_bits=kv_bits, restores=restores)
    if jobs:
        ranges = ranges.for_decodes(specs[0], jobs)
    with open_backend(kind, pace) as backend:
        return profile_device(backend, specs, name, ranges, pace, progress, max_s)
