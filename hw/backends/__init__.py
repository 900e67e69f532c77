"""Devices by name: one file per backend behind one protocol."""

from __future__ import annotations

from collections.abc import Mapping

from hw.backends.base import Backend, Handle, Memory
from sim.errors import DeviceUnavailable, UnknownName

DEVICES = ("auto", "cpu", "cuda")

__all__ = ["DEVICES", "Backend", "Handle", "Memory", "open_backend", "resolve_device"]


def resolve_device(device: str) -> str:
    """`cpu` or `cuda`; `auto` is `cuda` where there is a CUDA device.

    Raises:
        UnknownName: not a device we have.
        DeviceUnavailable: `cuda` on a machine or torch build without CUDA.
    """
    from hw.backends.cuda import cuda_available

    if device not in DEVICES:
        raise UnknownName("device", device, DEVICES)
    if device == "auto":
        return "cuda" if cuda_available() else "cpu"
    if device == "cuda" and not cuda_available():
        raise DeviceUnavailable(
            "device 'cuda' is not available: torch sees no CUDA GPU; use --device cpu, or install "
            "a CUDA build of torch on a machine with an NVIDIA GPU."
        )
    return device


def open_backend(
    device: str,
    link_bytes_per_s: float | None = None,
    tier_bytes_per_s: Mapping[str, float] | None = None,
) -> Backend:
    """Open a device for running tasks; use it as a context manager.

    Args:
        device: `auto`, `cpu` or `cuda`.
        link_bytes_per_s: pace of the emulated link of `cpu`; None copies at memory speed. A CUDA
            device has a real link and ignores it.
        tier_bytes_per_s: pace of the lanes behind host memory that are emulated.
    """
    if resolve_device(device) == "cuda":
        from hw.backends.cuda import CudaBackend

        return CudaBackend(tier_bytes_per_s)
    from hw.backends.cpu import CpuBackend

    return CpuBackend(link_bytes_per_s, tier_bytes_per_s)
