"""Checks of libraries, device, clocks, link, host, page-locking and attention backends."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hw.backends import Backend
from hw.doctor.check import Check, Durations, judged
from hw.environment import (
    CGROUP,
    attention_backends,
    cuda_environment,
    gpu_state,
    host_environment,
    host_memory_bytes,
)

LIBRARIES = ("numpy", "pulp", "highspy", "simpy", "transformers")
DISTRIBUTION = "kvoverlap"
NODES = Path("/sys/devices/system/node")

SLOW_REASONS = (
    "hardware slowdown",
    "software thermal slowdown",
    "hardware thermal slowdown",
    "power brake",
)
"""Throttle reasons that say that something is wrong; a power cap is normal under full load."""

SLOW_VARIABLES = ("CUDA_LAUNCH_BLOCKING", "TORCH_SHOW_DISPATCH_TRACE", "NVIDIA_TF32_OVERRIDE")
"""Environment variables that change times or numbers on a GPU."""

MIN_PINNED_BYTES_PER_S = 2**30
"""Page-locking 1 GiB usually takes 0.35 to 0.5 s."""

NOT_REPORTED = "not reported"


def check_software() -> Check:
    """Versions of Python, torch and the libraries that plan and simulate."""
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__} ({build})"]
    versions += [f"{name} {_version(name) or 'not installed'}" for name in LIBRARIES]
    return Check("software", "passed", ", ".join(versions))


def check_extras() -> Check:
    """Which optional parts of kvoverlap are installed."""
    try:
        requirements = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        install = "Install it: pip install -e '.[hw]'"
        return judged("extras", "kvoverlap runs from source, not installed", [install])
    missing = missing_packages(requirements)
    present = [extra for extra, packages in missing.items() if not packages]
    absent = {extra: packages for extra, packages in missing.items() if packages}
    measured = f"installed: {', '.join(present) or 'none'}"
    advice = []
    if absent:
        lacks = [f"{extra} (lacks {', '.join(names)})" for extra, names in absent.items()]
        measured += f"; missing: {', '.join(lacks)}"
        advice.append(f"Install what you need: pip install 'kvoverlap[{','.join(absent)}]'")
    return judged("extras", measured, advice)


def missing_packages(requirements: list[str]) -> dict[str, list[str]]:
    """By extra, its packages that are not installed; extra `dev` is left out.

    Args:
        requirements: as in a distribution's metadata: `torch>=2.6; extra == "hw"`.
    """
    found: dict[str, list[str]] = {}
    for requirement in requirements:
        package = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        if package is None or extra is None or extra[1] == "dev":
            continue
        missing = found.setdefault(extra[1], [])
        if _version(package[0]) is None:
            missing.append(package[0])
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def device_state(backend: Backend) -> dict[str, Any]:
    """The GPU's clocks, link and power now; empty on a CPU."""
    return gpu_state(backend.device) if backend.kind == "cuda" else {}


def check_device(backend: Backend) -> Check:
    """Which device this is, and whether other processes use it."""
    if backend.kind == "cpu":
        return Check("device", "passed", f"cpu: {host_environment()['processor']}")
    found = cuda_environment(backend.device)
    measured = (
        f"{found['device']}, {found['device_memory_bytes'] / 2**30:.1f} GiB "
        f"({backend.memory().device_bytes / 2**30:.1f} GiB free), "
        f"{found['multiprocessors']} SMs, driver {_text(found, 'driver')}, CUDA {found['cuda']}, "
        f"ECC {_text(found, 'ecc')}, persistence mode {_text(found, 'persistence')}, "
        f"compute processes: {_text(found, 'compute_processes')}"
    )
    return judged("device", measured, device_advice(found, os.environ))


def device_advice(found: Mapping[str, Any], variables: Mapping[str, str]) -> list[str]:
    """Advice on the use and settings of a GPU.

    Args:
        found: a `gpu_state`.
        variables: environment variables.
    """
    advice = []
    if "nvml" in found:
        advice.append(f"NVML does not work ({found['nvml']}): clocks and link are unknown.")
    elif "driver" not in found:
        advice.append("To see clocks, link and throttle reasons: pip install nvidia-ml-py")
    if found.get("compute_processes", 1) > 1:
        advice.append("Other processes use this GPU: stop them (nvidia-smi lists them).")
    slow = [name for name in SLOW_VARIABLES if variables.get(name, "0") not in ("", "0")]
    if slow:
        advice.append(f"Unset {', '.join(slow)}: kernels run differently with it.")
    return advice


def check_clocks(during: Mapping[str, Any]) -> Check:
    """Clocks, power and throttle reasons of a `gpu_state` read under load."""
    reasons = during.get("throttle_reasons")
    listed = ", ".join(reasons) or "none" if reasons is not None else NOT_REPORTED
    measured = (
        f"under load: SM {_text(during, 'sm_clock_mhz', ' MHz')} of "
        f"{_text(during, 'sm_clock_max_mhz', ' MHz')}, memory "
        f"{_text(during, 'memory_clock_mhz', ' MHz')} of "
        f"{_text(during, 'memory_clock_max_mhz', ' MHz')}, power {_text(during, 'power_w', ' W')} "
        f"of {_text(during, 'power_limit_w', ' W')}, temperature "
        f"{_text(during, 'temperature_c', ' C')}, "
        f"throttle reasons: {listed}"
    )
    advice = []
    slow = [name for name in reasons or () if name in SLOW_REASONS]
    if slow:
        advice.append(f"The GPU slows down ({', '.join(slow)}): check cooling and power supply.")
    if "sm_clock_mhz" not in during:
        advice.append("Clocks are unknown: a drift of the clock will look like an error.")
    return judged("clocks", measured, advice)


def check_link(during: Mapping[str, Any]) -> Check:
    """PCIe generation, width and NUMA node of a `gpu_state` read under load."""
    measured = (
        f"under load: PCIe generation {_text(during, 'pcie_generation')} of "
        f"{_text(during, 'pcie_generation_max')}, width {_text(during, 'pcie_width')} of "
        f"{_text(during, 'pcie_width_max')}; NUMA node {_text(during, 'numa_node')} of "
        f"{len(numa_cores())}"
    )
    advice = []
    for key, what in (("pcie_generation", "generation"), ("pcie_width", "width")):
        if during.get(key, 0) < during.get(f"{key}_max", 0):
            advice.append(f"The link runs below its {what}: check slot, riser and BIOS settings.")
    node, nodes = during.get("numa_node"), numa_cores()
    if node is not None and len(nodes) > 1 and not available_cores() <= nodes.get(node, set()):
        advice.append(
            f"This process may run away from the GPU's memory: use numactl --cpunodebind={node} "
            f"--membind={node}."
        )
    return judged("link", measured, advice)


def check_attention(backend: Backend) -> Check:
    """Which attention backends torch may choose after the device was opened."""
    names = attention_backends()
    if backend.kind == "cpu":
        return Check("attention", "passed", "cpu: torch chooses among its CPU kernels")
    measured = f"enabled: {', '.join(names) or 'none'}"
    advice = []
    if "cudnn" in names:
        advice.append(
            "cuDNN attention plans each new shape for 30 to 450 ms: call "
            "torch.backends.cuda.enable_cudnn_sdp(False)."
        )
    else:
        measured += "; cuDNN attention is off"
    return judged("attention", measured, advice)


def check_host() -> Check:
    """Cores, memory, NUMA nodes, limits and load of the host."""
    cores, usable = os.cpu_count() or 1, len(available_cores())
    load = os.getloadavg()[0]
    quota, limit = cgroup_cores(CGROUP), cgroup_memory_bytes(CGROUP)
    measured = (
        f"{usable} of {cores} cores, load {load:.1f}, {host_memory_bytes() / 2**30:.1f} GiB of "
        f"memory available, {len(numa_cores())} NUMA nodes; limits: "
        f"{'none' if quota is None else f'{quota:g}'} on cores, "
        f"{'none' if limit is None else f'{limit / 2**30:.1f} GiB'} on memory, "
        f"{memlock_limit()} on locked memory"
    )
    advice = []
    if quota is not None and quota < usable:
        advice.append(
            f"The container may use {quota:g} of {usable} cores: threads will be paused; raise its "
            "limit or restrict the process with taskset."
        )
    if load > max(1.0, usable / 2):
        advice.append("Other processes use the cores: close them before measuring.")
    return judged("host", measured, advice)


def available_cores() -> set[int]:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def numa_cores(nodes: Path = NODES) -> dict[int, set[int]]:
    """Cores of each NUMA node; node 0 with all cores if the system reports none."""
    found = {}
    for file in sorted(nodes.glob("node[0-9]*/cpulist")):
        found[int(file.parent.name.removeprefix("node"))] = parse_cpulist(file.read_text())
    return found or {0: set(range(os.cpu_count() or 1))}


def parse_cpulist(text: str) -> set[int]:
    """The numbers in a list of ranges such as `0-3,8`."""
    cores: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cores |= set(range(int(first), int(last or first) + 1))
    return cores


def cgroup_cores(group: Path) -> float | None:
    """Cores that a container may use, from cgroup version 2 or 1; None without a limit."""
    quota, period = _fields(group / "cpu.max")[:2] or (None, None)
    if quota is None:
        quota = next(iter(_fields(group / "cpu" / "cpu.cfs_quota_us")), None)
        period = next(iter(_fields(group / "cpu" / "cpu.cfs_period_us")), None)
    if quota is None or period is None or not quota.isdigit():
        return None
    return int(quota) / int(period)


def cgroup_memory_bytes(group: Path) -> int | None:
    """Memory that a container may use, from cgroup version 2 or 1; None without a limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        for field in _fields(group / name):
            if field.isdigit() and int(field) < 2**60:
                return int(field)
    return None


def memlock_limit() -> str:
    """The limit of locked memory with its unit."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return "none" if soft == resource.RLIM_INFINITY else f"{soft / 2**20:.0f} MiB"


def page_lock_bytes_per_s(backend: Backend, n_bytes: int) -> float:
    """Rate at which `host_empty` makes memory that the copy lanes can use, page faults included."""
    start_s = time.perf_counter()
    buffer = backend.host_empty((n_bytes,), torch.uint8)
    if backend.kind == "cpu":
        buffer.fill_(1)
    return n_bytes / (time.perf_counter() - start_s)


def check_page_locking(backend: Backend, durations: Durations) -> Check:
    """How fast host memory is page-locked; on the CPU device, how fast it is first touched."""
    n_bytes = min(durations.pinned_bytes, host_memory_bytes() // 8)
    rate = page_lock_bytes_per_s(backend, n_bytes)
    done = "page-locked" if backend.kind == "cuda" else "touched for the first time (no pinning)"
    measured = f"{rate / 2**30:.2g} GiB/s {done}, {n_bytes / 2**20:.0f} MiB at once"
    advice = []
    if rate < MIN_PINNED_BYTES_PER_S:
        advice.append(
            "Host caches will take long to set up: use smaller caches, or enable huge pages."
        )
    return judged("page-locking", measured, advice)


def _text(found: Mapping[str, Any], key: str, unit: str = "") -> str:
    """A reported value with its unit."""
    value = found.get(key)
    if value is None:
        return NOT_REPORTED
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:.0f}{unit}" if isinstance(value, float) else f"{value}{unit}"


def _fields(file: Path) -> list[str]:
    """The file's text, split at white space; empty if it cannot be read."""
    try:
        return file.read_text().split()
    except OSError:
        return []
