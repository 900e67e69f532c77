"""The profile of a device, with the sizes that are sampled on each kind."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from sim.errors import BadInput
from sim.machine.profile import HardwareProfile
from sim.model.kv_format import KV_BITS
from sim.model.spec import ModelSpec
from sim.progress import Progress
from sim.units import parse_rate

DEFAULT_MODELS = {"cpu": ("opt-125m",), "cuda": ("opt-1.3b", "opt-6.7b", "opt-13b", "llama-3.1-8b")}

DEFAULT_DTYPE = {"cpu": "float32", "cuda": "float16"}

SAMPLED = {
    "cpu": {"max_batch": 8, "max_rows": 4096, "max_copy_bytes": 2**26},
    "cuda": {"max_batch": 32, "max_rows": 32768, "max_copy_bytes": 2**30},
}
"""Largest batch, recomputation and copy that `profile` samples."""


def link_pace(kind: str, link: str | None) -> float | None:
    """Bytes per second of `--link`, or None if it is left out.

    Raises:
        BadInput: not a rate, or the device has a real link.
    """
    if link is not None and kind != "cpu":
        raise BadInput(f"--link(={link}) paces the cpu device only; leave it out on {kind}.")
    return None if link is None else parse_rate("--link", link)


def measure_profile(
    kind: str,
    specs: list[ModelSpec],
    name: str,
    link: str | None,
    progress: Progress,
    kv_bits: Sequence[int] = KV_BITS,
    restores: bool = True,
    max_s: float = inf,
) -> HardwareProfile:
    """A profile of device `kind` for the shapes of `specs`; chooses a link pace where needed.

    Args:
        kv_bits: quantised caches whose kernels are sampled.
        restores: also sample chunked prefill and the disk.
        max_s: seconds after which no further pass over the points begins.
    """
    from hw import balanced_link_bytes_per_s, open_backend, profile_device

    pace = link_pace(kind, link)
    if kind == "cpu" and pace is None:
        with open_backend("cpu") as backend:
            pace = balanced_link_bytes_per_s(backend, specs[0])
    with open_backend(kind, pace) as backend:
        return profile_device(
            backend,
            specs,
            name,
            **SAMPLED[kind],
            link_bytes_per_s=pace,
            kv_bits=kv_bits,
            restores=restores,
            progress=progress,
            max_s=max_s,
        )
