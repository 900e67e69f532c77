"""The profile of a device, for the shapes of the models that it will run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

from sim.catalog import find_model
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
    """Refuse a model whose weights exceed the free memory of the device.

    Raises:
        DoesNotFit: they do.
    """
    from hw.environment import gpu_memory_bytes, host_memory_bytes

    where, free_bytes = ("host", host_memory_bytes) if kind == "cpu" else ("GPU", gpu_memory_bytes)
    need, has = spec.weight_bytes, free_bytes()
    if need > has:
        raise DoesNotFit(
            f"the weights of {spec.name} in {spec.dtype} take {need / 2**30:.1f} GiB of {where} "
            f"memory and {has / 2**30:.1f} GiB are free; choose a smaller model."
        )


def specs_to_profile(
    kind: str, models: Sequence[str], assume_like: str | None = None
) -> list[ModelSpec]:
    """The models by name; without names, the default ones whose weights fit the device.

    Weights are in the dtype that the device computes with.
    """
    names, dtype = models or DEFAULT_MODELS[kind], DEFAULT_DTYPE[kind]
    specs = [find_model(name, dtype, assume_like).dequantised() for name in names]
    if models or kind == "cpu":
        return specs
    from hw.environment import gpu_memory_bytes

    free_bytes = gpu_memory_bytes()
    return [spec for spec in specs if spec.weight_bytes <= free_bytes] or specs[:1]


@dataclass(frozen=True)
class ProfileScope:
    """What a profile is measured for.

    Args:
        kv_bits: quantised caches whose kernels are sampled.
        restores: also sample chunked prefill and the disk.
        jobs: decodes of the first model; only the sizes that these use are sampled, by default all.
        max_s: seconds after which no further pass over the points begins.
        layerwise: on a GPU, only the weights of a few layers are in its memory at a time.
    """

    kv_bits: Sequence[int] = KV_BITS
    restores: bool = True
    jobs: Sequence[Workload] = ()
    max_s: float = inf
    layerwise: bool = False


EVERYTHING = ProfileScope()
DECODES = ProfileScope(restores=False)


def measure_profile(
    kind: str,
    specs: list[ModelSpec],
    name: str,
    link: str | None,
    progress: Progress,
    scope: ProfileScope = EVERYTHING,
) -> HardwareProfile:
    """A profile of device `kind` for the shapes of `specs`; chooses a link pace where needed.

    Raises:
        DoesNotFit: the weights of a model exceed the device's memory.
    """
    from hw import SAMPLED, balanced_link_bytes_per_s, open_backend, profile_device

    for spec in specs:
        check_weights("cpu" if scope.layerwise else kind, spec)
    pace = link_pace(kind, link)
    if kind == "cpu" and pace is None:
        with open_backend("cpu") as backend:
            pace = balanced_link_bytes_per_s(backend, specs[0])
    ranges = replace(SAMPLED[kind], kv_bits=scope.kv_bits, restores=scope.restores)
    if scope.jobs:
        ranges = ranges.for_decodes(specs[0], scope.jobs)
    with open_backend(kind, pace) as backend:
        return profile_device(backend, specs, name, ranges, pace, progress, scope.max_s)
