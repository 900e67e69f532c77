"""Description of the machine of a measurement: host, GPU, clocks, link, attention backends."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

CGROUP = Path("/sys/fs/cgroup")
PCI_DEVICES = Path("/sys/bus/pci/devices")

THROTTLE_REASONS = {
    0x1: "idle",
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
    0x100: "display clocks",
    0x200: "board limit",
    0x400: "reliability limit",
}
"""NVML's bits for the reasons why an SM clock is below its maximum (nvmlClocksEventReasons)."""

NVML_STATE: dict[str, Callable[[ModuleType, Any], Any]] = {
    "driver": lambda nvml, _: _text(nvml.nvmlSystemGetDriverVersion()),
    "sm_clock_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
    "sm_clock_max_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM),
    "memory_clock_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),
    "memory_clock_max_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetMaxClockInfo(
        gpu, nvml.NVML_CLOCK_MEM
    ),
    "throttle_reasons": lambda nvml, gpu: throttle_names(_throttle_bits(nvml, gpu)),
    "power_w": lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
    "power_limit_w": lambda nvml, gpu: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1e3,
    "temperature_c": lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(
        gpu, nvml.NVML_TEMPERATURE_GPU
    ),
    "ecc": lambda nvml, gpu: bool(nvml.nvmlDeviceGetEccMode(gpu)[0]),
    "persistence": lambda nvml, gpu: bool(nvml.nvmlDeviceGetPersistenceMode(gpu)),
    "pcie_generation": lambda nvml, gpu: nvml.nvmlDeviceGetCurrPcieLinkGeneration(gpu),
    "pcie_generation_max": lambda nvml, gpu: nvml.nvmlDeviceGetMaxPcieLinkGeneration(gpu),
    "pcie_width": lambda nvml, gpu: nvml.nvmlDeviceGetCurrPcieLinkWidth(gpu),
    "pcie_width_max": lambda nvml, gpu: nvml.nvmlDeviceGetMaxPcieLinkWidth(gpu),
    "compute_processes": lambda nvml, gpu: len(nvml.nvmlDeviceGetComputeRunningProcesses(gpu)),
    "numa_node": lambda nvml, gpu: gpu_numa_node(_text(nvml.nvmlDeviceGetPciInfo(gpu).busId)),
}
"""One NVML query per key of `gpu_state`."""


def host_memory_bytes() -> int:
    """Host memory that is free within the container's limit, in bytes."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdigit():
        available = min(available, int(limit.read_text()) - int(used.read_text()))
    return available


def gpu_memory_bytes() -> int:
    """Memory of the current GPU that is free, in bytes."""
    free, _ = torch.cuda.mem_get_info()
    return int(free)


def host_environment() -> dict[str, Any]:
    """Processor, memory, operating system and library versions; no names of people or paths."""
    return {
        "measured_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def cuda_environment(device: torch.device) -> dict[str, Any]:
    """GPU, driver, clocks, link and attention backends; link and clocks need `nvidia-ml-py`."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "device_memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "attention_backends": attention_backends(),
        **gpu_state(device),
    }


def attention_backends() -> list[str]:
    """Backends that torch's scaled dot-product attention may choose on a GPU now."""
    backends = torch.backends.cuda
    enabled = {
        "flash": backends.flash_sdp_enabled,
        "memory-efficient": backends.mem_efficient_sdp_enabled,
        "cudnn": backends.cudnn_sdp_enabled,
        "math": backends.math_sdp_enabled,
    }
    return [name for name, is_enabled in enabled.items() if is_enabled()]


def gpu_state(device: torch.device) -> dict[str, Any]:
    """Clocks, link, power and health of a GPU as NVML reports them now.

    The keys are those of `NVML_STATE`. A key is absent if NVML does not report it, as is common in
    virtual machines. Without `nvidia-ml-py` the result is empty; if NVML fails as a whole, key
    `nvml` holds its error.
    """
    try:
        import pynvml
    except ModuleNotFoundError:
        return {}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return {"nvml": str(error)}
    try:
        uuid = torch.cuda.get_device_properties(device).uuid
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        return nvml_state(pynvml, handle)
    except pynvml.NVMLError as error:
        return {"nvml": str(error)}
    finally:
        pynvml.nvmlShutdown()


def nvml_state(nvml: ModuleType, handle: Any) -> dict[str, Any]:
    """State of one GPU by the keys of `NVML_STATE`, without the queries that NVML refuses."""
    found = {}
    for key, query in NVML_STATE.items():
        try:
            value = query(nvml, handle)
        except (nvml.NVMLError, AttributeError):
            continue
        if value is not None:
            found[key] = value
    return found


def throttle_names(bits: int) -> list[str]:
    """Names of the reasons in NVML's bit mask; unknown bits are given as hexadecimal numbers."""
    names = [name for bit, name in THROTTLE_REASONS.items() if bits & bit]
    unknown = bits & ~sum(THROTTLE_REASONS)
    return [*names, hex(unknown)] if unknown else names


def gpu_numa_node(bus_id: str) -> int | None:
    """NUMA node of the PCI device `bus_id` (`00000000:17:00.0`), or None if it has none."""
    file = PCI_DEVICES / bus_id.lower()[-12:] / "numa_node"
    try:
        node = int(file.read_text())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


def _throttle_bits(nvml: ModuleType, handle: Any) -> int:
    """The mask under NVML's present or former name."""
    present = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
    return int((present or nvml.nvmlDeviceGetCurrentClocksThrottleReasons)(handle))


def _text(value: str | bytes) -> str:
    """Older versions of `nvidia-ml-py` return bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
