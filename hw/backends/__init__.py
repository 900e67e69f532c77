"""Devices by name; each backend is one file behind one protocol."""

from __future__ import annotations

from collections.abc import Mapping

from hw.backends.base import Backend, Handle, Memory
from sim.errors import DeviceUnavailable, UnknownName

DEVICES = ("auto", "cpu", "cuda")

__all__ = ["DEVICES", "Backend", "Handle", "Memory", "open_backend", "resolve_device"]


def resolve_device(device: str) -> str:
    """The device to use: `cpu` or `cuda`; `auto` prefers `cuda`.

    Raises:
        UnknownName: no such device.
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
    """An open device that runs tasks; use it as a context manager.

    Args:
        device: `auto`, `cpu` or `cuda`.
        link_bytes_per_s: pace of the emulated link of `cpu`; None copies at memory speed. `cuda`
            ignores it, because its link is real.
        tier_bytes_per_s: pace of the emulated lanes behind host memory.
    """
    if resolve_device(device) == "cuda":
        from hw.backends.cuda import CudaBackend

        return CudaBackend(tier_bytes_per_s)
    from hw.backends.cpu import CpuBackend

    return CpuBackend(link_bytes_per_s, tier_bytes_per_s)
