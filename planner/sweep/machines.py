"""Models and machines of a study's points, each built once per process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from planner.decode.sensitivity import NUDGE
from planner.parts import PARTS
from planner.restore.reproduce import behind_link, link_rate
from sim.catalog import find_hardware, find_model, find_runtime
from sim.lanes import HOST, TIERS
from sim.machine.profile import HardwareProfile
from sim.machine.runtime import Runtime
from sim.machine.what_if import RATES, in_dtype_of, with_copies, with_memory, with_rate
from sim.model.spec import MODEL_SIZES, ModelSpec
from sim.traces.link import with_link_from

Pairs = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, eq=False)
class Machine:
    """A point's machine.

    Args:
        nudged: for each part that the machine has, the machine with that part slightly faster.
    """

    hardware: HardwareProfile
    nudged: Mapping[str, HardwareProfile]

    @classmethod
    def of(cls, hardware: HardwareProfile) -> Machine:
        """A machine with its faster variants."""
        nudged = {}
        for part in PARTS:
            if part == HOST and hardware.links.host is None:
                continue
            if part == "uplink" and not hardware.uplinks:
                continue
            nudged[part] = hardware.with_faster(part, 1 + NUDGE)
        return cls(hardware, nudged)

    def changed(self, change: Callable[[HardwareProfile], HardwareProfile]) -> Machine:
        """The machine and its faster variants with a change."""
        return Machine(
            change(self.hardware), {part: change(one) for part, one in self.nudged.items()}
        )


def machine_of(values: Mapping[str, Any]) -> Machine:
    """The machine of a point: profile, link of a trace, rates, memory sizes, link to the tier.

    Raises:
        NotMeasured: the study sets a rate that the profile lacks, or the trace has none.
    """
    keys = ("hardware", "link_from", "copies", "gpu_memory", "host_memory", "tier", *RATES)
    return _machine(tuple((key, values[key]) for key in keys if key in values))


@lru_cache(maxsize=256)
def _machine(pairs: Pairs) -> Machine:
    values = dict(pairs)
    hardware = _profile(values["hardware"], values.get("link_from"))
    if "copies" in values:
        hardware = with_copies(hardware, values["copies"])
    for key in RATES:
        if key in values:
            hardware = with_rate(hardware, key, values[key])
    hardware = with_memory(hardware, values.get("gpu_memory"), values.get("host_memory"))
    tier = values.get("tier", TIERS[0])
    if tier not in TIERS:
        hardware = behind_link(hardware, link_rate("tier", tier))
    return Machine.of(hardware)


@lru_cache(maxsize=64)
def _profile(name: str, trace: str | None) -> HardwareProfile:
    found = find_hardware(name)
    return found if trace is None else with_link_from(found, trace)[0]


def runtime_of(values: Mapping[str, Any]) -> Runtime | None:
    """The serving runtime of a point; None for kvoverlap's own executor."""
    return find_runtime(values["runtime"]) if "runtime" in values else None


def model_of(values: Mapping[str, Any], hardware: HardwareProfile) -> ModelSpec:
    """The model of a point, in the element size of the machine's profile.

    Raises:
        BadInput: inconsistent sizes, or a dtype of another element size.
    """
    sizes = tuple((size, values[key]) for size in MODEL_SIZES if (key := f"model.{size}") in values)
    spec = _model(values["model"], values.get("dtype"), values.get("assume_like"), sizes)
    if values.get("dequantise", False):
        spec = spec.dequantised()
    return in_dtype_of(spec, hardware, chosen="dtype" in values).shard(
        values.get("tp", 1), values.get("ep", 1)
    )


@lru_cache(maxsize=64)
def _model(name: str, dtype: str | None, like: str | None, sizes: Pairs) -> ModelSpec:
    return replace(find_model(name, dtype, like), **dict(sizes))
