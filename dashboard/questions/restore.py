"""A restore question: a prompt with a cached prefix, and the time to first token of every policy.

`RestoreQuestion.command` is the `kvoverlap restore` that gives the same answer.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd

from dashboard.data.machines import profile_key
from dashboard.questions.decode import ENGINE
from planner import Job
from planner.advice import RuntimeGap, runtime_gap
from planner.restore import (
    RESTORE_POLICIES,
    RestorePlan,
    RestorePlanner,
    UnforeseenPlanner,
    adapt,
    behind_link,
    plan_choice,
)
from sim.catalog import find_runtime
from sim.engine.api import AUTO as AUTO_ENGINE
from sim.engine.sharing import machine_of_one_gpu
from sim.errors import BadInput
from sim.graph.jobs import KV, RestoreRequest, Workload
from sim.graph.tasks import TaskGraph
from sim.graph.timeline import Timeline
from sim.lanes import COMPUTE, H2D, LANE_OF_TIER
from sim.machine.availability import ALWAYS, Availability
from sim.machine.prefill import Restore, Tier
from sim.machine.profile import HardwareProfile
from sim.machine.provenance import SourcedValue
from sim.machine.what_if import in_dtype_of
from sim.model.kv_format import KV_BITS as HOST_KV_BITS
from sim.model.spec import ModelSpec
from sim.progress import Progress

AUTO = "auto"
POLICIES = tuple(policy for policy in RESTORE_POLICIES if policy != AUTO)
SWEPT = ("compute-only", "load-only", "two-ended", "lp")
"""Policies that are planned in milliseconds, so that a sweep plans them at many rates."""

AVAILABILITY_FILE = "availability.csv"
"""File name of the download of a trace."""

GIB = 2**30
MIN_GIB, OCTAVES = 0.5, 7
"""The sweep goes from half a GiB/s to 64."""

FEW_TASKS, MANY_TASKS = 600, 2000
"""Tasks up to which the fast engine does not pay, and up to which a sweep is fast."""


def request_of(graph: TaskGraph) -> RestoreRequest:
    """The request of a restore graph.

    Raises:
        BadInput: it is the graph of a decode.
    """
    if not isinstance(graph.workload, RestoreRequest):
        raise BadInput("this run is a decode, not a restore: it has no two ends.")
    return graph.workload


@dataclass(frozen=True)
class RestorePlans:
    """Every policy's plan of one question with its predicted run, `auto` among them.

    Args:
        fastest: the policy that `auto` chose.
    """

    plans: dict[str, RestorePlan]
    timelines: dict[str, Timeline]
    fastest: str


@dataclass(frozen=True)
class RestoreQuestion:
    """The inputs: a shipped model, a machine, and a request with a prefix cached on a tier.

    Args:
        whole: a shipped model, or one of an uploaded config, whose name is its file.
        reference: the machine on the command line, a shipped name or a path.
        link_bytes_per_s: rate of the link to the cached prefix; None for the rate of the profile.
        availability: available fraction of each lane over time.
        foresight: whether the policies know the trace in advance; else they plan for the whole
            machine and run under it.
        cached_data: `kv`, or `kv+x` where X is cached too.
        tp: GPUs that share the model.
        ep: of these, GPUs that the routed experts are divided over as a whole.
    """

    whole: ModelSpec
    hardware: HardwareProfile
    reference: str
    request: RestoreRequest
    link_bytes_per_s: float | None = None
    availability: Availability = ALWAYS
    cached_data: str = KV
    tp: int = 1
    foresight: bool = False
    ep: int = 1

    @property
    def model(self) -> ModelSpec:
        """What one GPU holds, in the dtype of the machine's profile."""
        return in_dtype_of(self.whole, self.hardware, chosen=False).shard(self.tp, self.ep)

    @property
    def machine(self) -> HardwareProfile:
        if self.link_bytes_per_s is None:
            return self.hardware
        return behind_link(self.hardware, self.link_bytes_per_s)

    def gap(self, runtime: str) -> RuntimeGap:
        """What a serving runtime leaves on the table for this prefix in host memory.

        Raises:
            KvOverlapError: the machine does not support the request or the runtime's copies.
        """
        bits = self.request.tier_kv_bits
        kv_bits = bits if bits in HOST_KV_BITS else None
        workload = Workload(1, self.request.cached_tokens, 1, kv_bits=kv_bits)
        return runtime_gap(find_runtime(runtime), Job(self.model, self.hardware, workload), ENGINE)

    @property
    def slow_lane(self) -> str:
        """The lane whose rate a sweep varies: that of the tier, or the link to the device."""
        return LANE_OF_TIER.get(self.request.tier, H2D)

    @property
    def lanes(self) -> tuple[str, ...]:
        """The lanes that a restore from this tier uses."""
        return (COMPUTE, H2D) if self.slow_lane == H2D else (COMPUTE, H2D, self.slow_lane)

    @property
    def bytes_per_s(self) -> float:
        """Rate at which the cached prefix is loaded from its tier.

        Raises:
            NotMeasured: the profile has no such rate.
        """
        if self.slow_lane == H2D:
            return self.machine.links.h2d.bytes_per_s
        return self._restore.tier(self.slow_lane).bytes_per_s.value

    @property
    def _restore(self) -> Restore:
        return self.machine.restore or Restore()

    @cached_property
    def key(self) -> str:
        """Text that is equal for equal questions."""
        return repr(self) + profile_key(self.hardware)

    @property
    def n_tasks(self) -> int:
        """Approximate number of tasks in a run."""
        asked = self.request
        loads = asked.cached_tokens / asked.io_chunk_tokens
        return round(loads + asked.prompt_tokens / asked.step_tokens)

    @property
    def engine(self) -> str:
        """The simulator; the fast engine, which takes time to start, only for many tasks."""
        return ENGINE if self.n_tasks > FEW_TASKS else AUTO_ENGINE

    def at_rate(self, bytes_per_s: float) -> RestoreQuestion:
        """The same question with another rate of the tier."""
        if self.slow_lane == H2D:
            faster = self.hardware.with_faster("link", bytes_per_s / self.bytes_per_s)
            return replace(self, hardware=faster)
        if self.link_bytes_per_s is not None:
            return replace(self, link_bytes_per_s=bytes_per_s)
        tier = Tier(self.slow_lane, SourcedValue("datasheet", bytes_per_s, "as asked"))
        hardware = replace(self.hardware, restore=self._restore.with_tier(tier))
        return replace(self, hardware=hardware)

    def planner(self) -> RestorePlanner:
        """The planner of all policies.

        Raises:
            DoesNotFit: the device cannot hold the weights and the K and V of the prompt.
        """
        unforeseen = self.availability.steps and not self.foresight
        made = (UnforeseenPlanner if unforeseen else RestorePlanner)(
            self.model,
            machine_of_one_gpu(self.machine, self.model),
            self.request,
            self.availability,
            self.engine,
            self.cached_data,
        )
        made.check_fits()
        return made

    def answer(self, progress: Progress) -> RestorePlans:
        """Plan by every policy.

        Raises:
            DoesNotFit, NotMeasured: the machine does not support the request.
        """
        planner = self.planner()
        for at, policy in enumerate(POLICIES):
            progress(f"Planning {policy}", at / (len(POLICIES) + 1))
            planner.choice(policy)
        adaptation = None
        if self.availability.steps:
            progress("Following the trace", len(POLICIES) / (len(POLICIES) + 1))
            adaptation = adapt(replace(self, foresight=True).planner())
        return RestorePlans(
            {name: plan_choice(planner, name, adaptation) for name in RESTORE_POLICIES},
            {name: planner.choice(name).timeline for name in RESTORE_POLICIES},
            planner.fastest(),
        )

    def memory(self) -> tuple[dict[str, float], dict[str, float]]:
        """Bytes by purpose on a GPU and in host memory, whether or not they fit."""
        x_bytes = 0 if self.cached_data == KV else self.request.x_bytes(self.model)
        return restore_memory(self.model, self.machine, self.request, x_bytes)

    def command(self, policy: str) -> str:
        """The command that gives the same answer; it needs a trace as a file."""
        asked = self.request
        tier = asked.tier
        if self.link_bytes_per_s is not None:
            tier = f"{self.link_bytes_per_s / GIB:g}GiB/s"
        words = [
            *("kvoverlap", "restore", "--model", self.whole.name, "--hardware", self.reference),
            *("--prompt", str(asked.prompt_tokens)),
        ]
        if asked.cached_tokens != asked.prompt_tokens - 1:
            words += ["--cached", str(asked.cached_tokens)]
        words += ["--tier", tier]
        usual = RestoreRequest(prompt_tokens=2, cached_tokens=1).as_asked(self.whole)
        for option, value, default in (
            ("--tp", self.tp, 1),
            ("--ep", self.ep, 1),
            ("--chunk", asked.chunk_tokens, usual.chunk_tokens),
            ("--io-chunk", asked.io_chunk_tokens, usual.io_chunk_tokens),
            ("--gpu-share", asked.gpu_share, usual.gpu_share),
            ("--kv-bits", asked.tier_kv_bits, usual.tier_kv_bits),
            ("--cached-data", self.cached_data, KV),
            ("--policy", policy, AUTO),
            ("--availability", AVAILABILITY_FILE if self.availability.steps else "", ""),
        ):
            if value != default:
                words += [option, str(value)]
        if self.availability.steps and self.foresight:
            words.append("--foresight")
        return shlex.join(words)


def restore_memory(
    model: ModelSpec, hardware: HardwareProfile, request: RestoreRequest, x_bytes: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Bytes by purpose on a GPU and in host memory, which holds the prefix if that is its tier.

    Args:
        x_bytes: of the cached X of one GPU.
    """
    planner = RestorePlanner(model, hardware, request)
    weights = float(model.weight_bytes)
    device = {"weights": weights, "KV": planner.device_bytes - weights}
    if request.tier in LANE_OF_TIER:
        return device, {}
    return device, {"KV": planner.cached_bytes, "X": model.tensor_parallel * x_bytes}


@dataclass(frozen=True)
class RateSweep:
    """Time to first token of every policy over the rate of the tier.

    The policies of `SWEPT` are planned at all rates, the others at every power of two, and both at
    the present rate.
    """

    question: RestoreQuestion

    @cached_property
    def rates(self) -> list[float]:
        """In GiB/s, rising; fewer for requests of many tasks."""
        n_tasks = self.question.n_tasks
        per_octave = 4 if n_tasks <= FEW_TASKS else 2 if n_tasks <= MANY_TASKS else 1
        steps = range(OCTAVES * per_octave + 1)
        return sorted({self.here, *(MIN_GIB * 2 ** (at / per_octave) for at in steps)})

    @cached_property
    def coarse_rates(self) -> list[float]:
        return sorted({self.here, *(MIN_GIB * 2.0**octave for octave in range(OCTAVES + 1))})

    @property
    def here(self) -> float:
        """The present rate in GiB/s."""
        return self.question.bytes_per_s / GIB

    def fast_points(self, progress: Progress) -> pd.DataFrame:
        """Time to first token by the policies of `SWEPT` at all rates.

        Columns `gib_per_s` and `<policy>_s`.
        """
        return self._points(self.rates, SWEPT, progress)

    def slow_points(self, progress: Progress) -> pd.DataFrame:
        """As `fast_points`, by the other policies at `coarse_rates`."""
        rest = [policy for policy in POLICIES if policy not in SWEPT]
        return self._points(self.coarse_rates, rest, progress)

    def _points(
        self, rates: Sequence[float], policies: Sequence[str], progress: Progress
    ) -> pd.DataFrame:
        rows = []
        for done, rate in enumerate(rates):
            progress(f"Planned {done} of {len(rates)} rates", done / len(rates))
            planner = self.question.at_rate(rate * GIB).planner()
            times = {f"{policy}_s": planner.choice(policy).ttft_s for policy in policies}
            rows.append({"gib_per_s": rate, **times})
        return pd.DataFrame(rows)
