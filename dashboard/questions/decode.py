"""A what-if question: a model, a job, and a machine with changes.

`Question.command` is the `kvoverlap plan` that gives the same answer. Rates are rounded as in the
text of that command.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from dashboard.data.machines import profile_key
from planner import DecodePlan, Job, PlanOptions, check_decode, make_plan, memory_needed
from planner.advice import (
    Advice,
    RuntimeGap,
    advise,
    beyond_calibration,
    describe_sources,
    runtime_gap,
)
from sim.catalog import RECORDINGS, find_runtime
from sim.engine.api import fast_engine_installed
from sim.graph.jobs import TASKS_PER_LAYER, UNCOMPRESSED, Workload
from sim.graph.memory import Footprint, footprint
from sim.lanes import D2H, H2D
from sim.machine.links import Interference, Uplink
from sim.machine.profile import HardwareProfile
from sim.machine.what_if import RATES, in_dtype_of, rate_unit, with_memory, with_rate
from sim.model.spec import ModelSpec
from sim.units import parse_bytes, parse_rate

if TYPE_CHECKING:
    from planner.sweep import DecodeTimes

ROW = "row"
AUTO = "auto"
"""The schedule with more tokens a second."""

ENGINE = "fast" if fast_engine_installed() else "simpy"
"""The simulator of the dashboard; both give the same times."""

CHANGED_PROFILE = "what-if.json"
"""File name of the download of a machine that no option describes."""

UNITS = {"GB/s": 1e9, "TFLOP/s": 1e12}


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes of a machine; 1 or None leaves a value as in the profile.

    Args:
        link, flops, hbm: multiples of a rate.
        gpus: devices that share one link, each with a job or a part of one; a profile that has
            uplinks for so many devices uses its own.
        both_ways: rate of one copy direction while the other one works, 1 for no loss.
        device_gib: memory of a device.
    """

    link: float = 1.0
    flops: float = 1.0
    hbm: float = 1.0
    gpus: int = 1
    both_ways: float | None = None
    device_gib: float | None = None

    def settings(self, hardware: HardwareProfile) -> list[str]:
        """The changes as arguments of `kvoverlap plan --set`."""
        multiples = {
            ("link.bandwidth", "GB/s"): self.link,
            ("compute.flops", "TFLOP/s"): self.flops,
            ("hbm.bandwidth", "GB/s"): self.hbm,
        }
        return [
            f"{key}={RATES[key][1](hardware) * multiple / UNITS[unit]:.6g}{unit}"
            for (key, unit), multiple in multiples.items()
            if multiple != 1
        ]

    @property
    def device_memory(self) -> str | None:
        """The value of `--gpu-memory`."""
        return None if self.device_gib is None else f"{self.device_gib:g}GiB"

    def beyond_options(self, hardware: HardwareProfile, tp: int) -> bool:
        """Whether no option describes the changes, so that the command needs a profile."""
        return self.both_ways is not None or self._lacks_uplinks(hardware, tp)

    def _lacks_uplinks(self, hardware: HardwareProfile, tp: int) -> bool:
        reached = {device for uplink in hardware.uplinks for device in uplink.devices}
        return self.gpus > 1 and not set(range(max(self.gpus, tp))) <= reached

    def apply(self, hardware: HardwareProfile, tp: int = 1) -> HardwareProfile:
        """The changed machine, for jobs on `tp` GPUs each."""
        changed = hardware
        for setting in self.settings(hardware):
            key, _, text = setting.partition("=")
            changed = with_rate(changed, key, parse_rate(key, text, rate_unit(key)))
        if self.device_memory is not None:
            changed = with_memory(changed, parse_bytes("--gpu-memory", self.device_memory))
        if self.both_ways is not None:
            entries = _both_ways(changed.interference, self.both_ways)
            changed = replace(changed, interference=entries)
        if self._lacks_uplinks(hardware, tp):
            rates = changed.links.h2d.bytes_per_s, changed.links.d2h.bytes_per_s
            firsts = range(0, max(self.gpus, tp), self.gpus)
            groups = [tuple(range(first, first + self.gpus)) for first in firsts]
            names = (
                ["one switch for all"]
                if len(groups) == 1
                else [f"switch of GPUs {group[0]} to {group[-1]}" for group in groups]
            )
            switches = (Uplink(*pair, *rates) for pair in zip(names, groups, strict=True))
            changed = replace(changed, uplinks=tuple(switches))
        return changed

    def __str__(self) -> str:
        parts = [
            f"link x {self.link:g}" if self.link != 1 else "",
            f"{self.gpus} GPUs" if self.gpus != 1 else "",
            f"FLOP/s x {self.flops:g}" if self.flops != 1 else "",
            f"device memory rate x {self.hbm:g}" if self.hbm != 1 else "",
            f"both-ways factor {self.both_ways:g}" if self.both_ways is not None else "",
            f"{self.device_gib:g} GiB" if self.device_gib is not None else "",
        ]
        return ", ".join(filter(None, parts)) or "nothing"


def _both_ways(entries: tuple[Interference, ...], rate: float) -> tuple[Interference, ...]:
    """The entries with those between the two copy directions set to `rate`."""
    others = tuple(entry for entry in entries if {entry.lane, entry.while_busy} != {H2D, D2H})
    pairs = ((H2D, D2H), (D2H, H2D))
    return others + tuple(Interference(*pair, rate, "datasheet") for pair in pairs)


def both_ways_rate(hardware: HardwareProfile) -> float:
    """Rate of a host-to-device copy while the other direction works."""
    rate = 1.0
    for entry in hardware.interference:
        if (entry.lane, entry.while_busy) == (H2D, D2H):
            rate *= entry.rate
    return rate


@dataclass(frozen=True)
class PlanFacts:
    """What a page says of a plan that takes its whole graph to find out.

    Args:
        sources: where its task times come from.
        outside: tasks outside the measured range; None without any.
        memory: what it puts in GPU and host memory.
    """

    sources: str
    outside: str | None
    memory: Footprint


def plan_facts(plan: DecodePlan) -> PlanFacts:
    """The facts of a plan; a graph of 50,000 tasks takes seconds."""
    memory = footprint(plan.simulated_graph())
    return PlanFacts(describe_sources(plan), beyond_calibration(plan), memory)


@dataclass(frozen=True)
class Question:
    """A model, a job, a profiled machine and its changes.

    Args:
        whole: a shipped model, or one of an uploaded config, whose name is its file.
        reference: the machine on the command line, a shipped name or a path.
        keep: whether the LP may keep K, V, X and weights in free GPU memory.
        tp: GPUs that share the model.
        ep: of these, GPUs that the routed experts are divided over as a whole.
    """

    whole: ModelSpec
    hardware: HardwareProfile
    reference: str
    workload: Workload
    schedule: str = "row"
    changes: Changes = Changes()
    keep: bool = False
    tp: int = 1
    ep: int = 1

    @property
    def machine(self) -> HardwareProfile:
        return self.changes.apply(self.hardware, self.tp)

    @property
    def jobs(self) -> int:
        """Jobs that share the link: one for each GPU, or for as many as share the model."""
        return max(1, self.changes.gpus // self.tp)

    @property
    def needs_profile(self) -> bool:
        """Whether the command needs the changed machine as a file."""
        return self.changes.beyond_options(self.hardware, self.tp)

    @property
    def model(self) -> ModelSpec:
        """What one GPU holds, in the dtype of the machine's profile."""
        return in_dtype_of(self.whole, self.hardware, chosen=False).shard(self.tp, self.ep)

    @cached_property
    def key(self) -> str:
        """Text that is equal for equal questions."""
        return repr(self) + profile_key(self.hardware)

    @property
    def n_tasks(self) -> int:
        """About how many tasks the graph of the job has."""
        job = self.workload
        gpus = self.changes.gpus * self.tp
        return TASKS_PER_LAYER * gpus * job.gen_tokens * job.n_batches * self.whole.n_layers

    def plan(self, policy: str = "lp") -> DecodePlan:
        """The answer.

        Raises:
            BadInput, DoesNotFit, PlannerFailed: as `make_plan`.
        """
        return make_plan(self._job, self._options(policy))

    def times(self) -> DecodeTimes:
        """Makespans of all policies, in a fraction of the time of `plan`.

        Raises:
            BadInput, DoesNotFit, PlannerFailed: as `make_plan`.
        """
        from planner.sweep import decode_times

        return decode_times(self._job, self._options("lp"))

    def check(self, policy: str = "lp") -> None:
        """Refuse what `plan` refuses, in a fraction of its time."""
        check_decode(self._job, self._options(policy))

    def memory(self) -> Footprint:
        """Memory of a step that loads the whole cache, whether or not it fits.

        Raises:
            BadInput: the schedule does not support the job.
        """
        schedule = ROW if self.schedule == AUTO else self.schedule
        job = replace(self._job, workload=replace(self.workload, gen_tokens=1))
        return memory_needed(job, replace(self._options("lp"), schedule=schedule))

    @property
    def _job(self) -> Job[Workload]:
        return Job(self.model, self.machine, self.workload)

    def _options(self, policy: str) -> PlanOptions:
        return PlanOptions(
            policy=policy,
            schedule=self.schedule,
            gpus=self.jobs,
            keep=self.keep,
            engine=ENGINE,
        )

    def advise(self, slo_ms: float | None = None) -> Advice:
        """The recommendation for one decode step.

        Args:
            slo_ms: limit of a step in milliseconds.

        Raises:
            BadInput, DoesNotFit, PlannerFailed: as `planner.advice.advise`.
        """
        slo_s = None if slo_ms is None else slo_ms / 1e3
        return advise(self.model, self.machine, self.workload, RECORDINGS, slo_s, ENGINE)

    def gap(self, runtime: str) -> RuntimeGap:
        """What a serving runtime leaves on the table for this batch.

        Raises:
            KvOverlapError: the machine does not support the job or the runtime's copies.
        """
        job = Job(self.model, self.machine, self.workload)
        return runtime_gap(find_runtime(runtime), job, ENGINE)

    def command(self, policy: str = "lp") -> str:
        """The command that gives the same plan; it may need the downloaded profile."""
        job = self.workload
        words = [*self._words("plan"), "--gen", str(job.gen_tokens)]
        if self.schedule != "row":
            words += ["--schedule", self.schedule, "--n-batches", str(job.n_batches)]
        if self.jobs != 1:
            words += ["--gpus", str(self.jobs)]
        if policy != "lp":
            words += ["--policy", policy]
        if self.keep != (policy == "lp"):
            words.append("--keep" if self.keep else "--no-keep")
        return shlex.join(words)

    def advise_command(self, slo_ms: float | None = None, runtime: str | None = None) -> str:
        """The command that gives the same recommendation."""
        words = self._words("advise")
        if slo_ms is not None:
            words += ["--slo-ms", f"{slo_ms:g}"]
        if runtime is not None:
            words += ["--runtime", runtime]
        return shlex.join(words)

    def _words(self, verb: str) -> list[str]:
        """The command with what every verb takes: model, machine, batch and prompt."""
        job, changes = self.workload, self.changes
        words = [
            *("kvoverlap", verb, "--model", self.whole.name),
            *("--hardware", CHANGED_PROFILE if self.needs_profile else self.reference),
            *("--batch", str(job.batch_size), "--prompt", str(job.prompt_tokens)),
        ]
        if job.kv_bits != self.whole.host_kv_bits:
            words += ["--kv-bits", str(job.kv_bits or UNCOMPRESSED)]
        if self.tp != 1:
            words += ["--tp", str(self.tp)]
        if self.ep != 1:
            words += ["--ep", str(self.ep)]
        if not self.needs_profile:
            for setting in changes.settings(self.hardware):
                words += ["--set", setting]
            if changes.device_memory is not None:
                words += ["--gpu-memory", changes.device_memory]
        return words
