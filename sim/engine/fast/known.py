"""Fields that the fast engine reads. It refuses a graph or machine that uses any other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, Field, fields
from typing import Any

from sim.errors import BadInput
from sim.graph.tasks import Task, TaskGraph
from sim.machine.availability import Availability, Step
from sim.machine.links import Dispatch, Interference, Link, Links, Uplink
from sim.machine.profile import HardwareProfile

KNOWN_FIELDS: dict[type, str] = {
    TaskGraph: "schedule model workload slots tasks",
    Task: "id op lane step layer token_start token_stop slot bytes flops deps device batch layers "
    "claim",
    HardwareProfile: "name description device_kind dtype memory gemm attention elementwise links "
    "dispatch interference uplinks environment samples restore checks efficiency all_reduce "
    "host_dram",
    Links: "h2d d2h host",
    Link: "source bytes_per_s latency_s curve paced_bytes_per_s note kinds block_bytes",
    Interference: "lane while_busy rate source",
    Dispatch: "source task_s kernel_s copy_s gap_s handover_s head_start_s turn_s "
    "compute_task_s copy_task_s start_s",
    Uplink: "name devices h2d_bytes_per_s d2h_bytes_per_s",
    Availability: "steps",
    Step: "start_s fractions",
}
"""Fields whose meaning this engine shares with the reference; any other must have its default."""


class UnsupportedField(BadInput):
    """A field that the fast engine does not read has a value other than its default."""


def check_known(parts: Iterable[object]) -> None:
    """Raise UnsupportedField where one of `parts` uses a field that the engine does not read."""
    new = {kind: _new_fields(kind) for kind in KNOWN_FIELDS}
    if not any(new.values()):
        return
    for part in parts:
        for field in new.get(type(part), ()):
            if getattr(part, field.name) != _default(field):
                raise UnsupportedField(
                    f"engine 'fast' does not know {type(part).__name__}.{field.name}; "
                    "use engine 'simpy'."
                )


def _new_fields(kind: type) -> list[Field[Any]]:
    known = KNOWN_FIELDS[kind].split()
    return [field for field in fields(kind) if field.name not in known]


def _default(field: Field[Any]) -> object:
    return field.default if field.default_factory is MISSING else field.default_factory()
