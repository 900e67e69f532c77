"""The settings that `kvoverlap record` measures, most valuable first, with estimated times."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, ClassVar

from measure.decode_grid import DecodeGrid, GridOptions
from measure.grid import Grid, PrepareSetting
from measure.interleave import EXTRA_REPEATS
from measure.other_systems import measure_other_systems
from measure.restore_grid import (
    CHUNK_TOKENS,
    IO_CHUNK_TOKENS,
    POLICIES,
    RATE_FACTORS,
    Setting,
    prepare_setting,
    restore_request,
    setting_at,
)
from measure.run import warm_ups
from planner import Job, PlanOptions, make_plan
from planner.restore import RestorePlanner
from sim.files import write_json
from sim.graph.jobs import Workload
from sim.machine.profile import HardwareProfile
from sim.model.kv_format import host_row_bytes
from sim.model.operations import product_flops
from sim.model.spec import ModelSpec
from sim.progress import Progress
from sim.results.accuracy import CASE, CASES

OTHER_SYSTEMS_FILE = "peers.json"
STEPS = 2

FIXED_S = {"cpu": 8.0, "cuda": 18.0}
"""Seconds of every setting for weights, speed probe and planning."""

HOST_BYTES_PER_S = {"cpu": 2e9, "cuda": 2.5e9}
"""Rate at which host memory for a cache is allocated and filled; for a GPU it is also pinned."""

PREFILL_SHARE = {"cpu": 1.2, "cuda": 0.4}
"""Fraction of the best matmul rate that the prefill of prompts reaches; on the cpu device the
prefill uses all cores, and the rate is of one core."""


@dataclass(frozen=True)
class RecordingOptions:
    """Where and how a recording is measured, and until when on `time.monotonic()`."""

    output: Path
    kind: str
    repeats: int
    seed: int
    progress: Progress
    until_s: float = inf

    @property
    def expected_repeats(self) -> int:
        """Repeats to expect: half of the extra ones run."""
        return self.repeats + EXTRA_REPEATS // 2

    def measure(self, prepare: PrepareSetting, spec: ModelSpec) -> dict[str, Any]:
        """Measure a setting and write its cases; returns the environment.

        Raises:
            KeyboardInterrupt: the user pressed Ctrl-C; cases that have run until then are written.
        """
        result = Grid(self.repeats, self.until_s).measure(prepare, self.progress)
        for case in result.cases:
            case.save(self.output / CASES / f"{spec.name}-{case.name}")
        if result.runs.interrupted:
            raise KeyboardInterrupt
        environment: dict[str, Any] = result.cases[0].measured.environment
        return environment


@dataclass(frozen=True)
class JobSetting:
    """A decode job of one model."""

    scenario: ClassVar[str] = "decode"
    other_systems: ClassVar[bool] = False

    model: str
    job: Workload

    @property
    def kv_bits(self) -> int | None:
        return self.job.kv_bits


@dataclass(frozen=True)
class DecodeSetting(JobSetting):
    """A decode job by every policy."""

    options: GridOptions = field(default_factory=GridOptions)

    def name(self, spec: ModelSpec) -> str:
        return f"{spec.name}-{next(iter(self.options.names(self.job))).rpartition('-')[0]}"

    def files(self, spec: ModelSpec, hardware: HardwareProfile) -> list[str]:  # noqa: ARG002
        return [_case_file(spec, name) for name in self.options.names(self.job)]

    def seconds(self, spec: ModelSpec, hardware: HardwareProfile, how: RecordingOptions) -> float:
        plans = self.options.plans(spec, hardware, self.job, without=["lp"]).values()
        makespans_s = [plan.makespan_s for plan in plans]
        makespans_s.append(min(makespans_s))  # upper bound for lp, which takes longest to plan
        runs_s = sum(
            makespan_s * (how.expected_repeats + warm_ups(how.kind, makespan_s))
            for makespan_s in makespans_s
        )
        load_s = _kv_bytes(spec, self.job) / hardware.links.h2d.bytes_per_s
        decode_s = 1.5 * self.job.gen_tokens * load_s
        checks_s = decode_s  # the reference
        if self.job.kv_bits is not None:  # every check decodes what the run has read
            checks_s += decode_s * len(makespans_s) * how.expected_repeats
        return _setup_s(spec, hardware, self.job, how.kind) + checks_s + 1.2 * runs_s

    def record(
        self, spec: ModelSpec, hardware: HardwareProfile, how: RecordingOptions
    ) -> dict[str, Any]:
        from hw import open_backend

        with open_backend(how.kind, hardware.links.h2d.paced_bytes_per_s) as backend:
            grid = DecodeGrid(
                spec, hardware, backend, [self.job], how.seed, how.progress, self.options
            )
            return how.measure(partial(grid.prepare, self.job), spec)


@dataclass(frozen=True)
class OtherSystems(JobSetting):
    """A decode job by other systems, interleaved with our plans."""

    other_systems: ClassVar[bool] = True

    def name(self, spec: ModelSpec) -> str:
        return f"{spec.name} by other systems"

    def files(self, spec: ModelSpec, hardware: HardwareProfile) -> list[str]:  # noqa: ARG002
        return [f"{spec.name}-{OTHER_SYSTEMS_FILE}"]

    def seconds(self, spec: ModelSpec, hardware: HardwareProfile, how: RecordingOptions) -> float:
        plan = make_plan(Job(spec, hardware, self.job), PlanOptions(policy="load-all"))
        load_s = _kv_bytes(spec, self.job) / hardware.links.h2d.bytes_per_s
        offloaded_s = 2 * (2 + self.job.gen_tokens) * load_s  # both ways, and filled each time
        rounds = how.repeats + warm_ups(how.kind, plan.makespan_s)
        round_s = 3 * plan.makespan_s + offloaded_s
        return _setup_s(spec, hardware, self.job, how.kind) + 1.2 * rounds * round_s

    def record(
        self, spec: ModelSpec, hardware: HardwareProfile, how: RecordingOptions
    ) -> dict[str, Any]:
        from hw import open_backend

        with open_backend(how.kind, hardware.links.h2d.paced_bytes_per_s) as backend:
            report = measure_other_systems(
                spec,
                hardware,
                backend,
                self.job,
                how.repeats,
                how.seed,
                how.progress,
                how.until_s,
            )
            write_json(how.output / self.files(spec, hardware)[0], "peers", report)
            return backend.environment()


@dataclass(frozen=True)
class RestoreSetting:
    """A restore of a cached prefix by some policies.

    Args:
        factor: rate of the tier, as a multiple of the one at which loading takes as long as
            computing; a real link stays as it is.
        chunk_tokens, io_chunk_tokens: tokens of one step of compute and of one load.
    """

    scenario: ClassVar[str] = "restore"
    other_systems: ClassVar[bool] = False
    kv_bits: ClassVar[None] = None

    model: str
    prompt_tokens: int
    tier: str
    factor: float
    policies: tuple[str, ...]
    chunk_tokens: int = CHUNK_TOKENS
    io_chunk_tokens: int = IO_CHUNK_TOKENS

    def name(self, spec: ModelSpec) -> str:
        return f"{spec.name}-s{self.prompt_tokens}-{self.tier}"

    def files(self, spec: ModelSpec, hardware: HardwareProfile) -> list[str]:
        setting = self._setting(spec, hardware)
        return [_case_file(spec, f"{setting.name}-{policy}") for policy in setting.policies]

    def _setting(self, spec: ModelSpec, hardware: HardwareProfile) -> Setting:
        request = replace(
            restore_request(self.prompt_tokens),
            tier=self.tier,
            chunk_tokens=self.chunk_tokens,
            io_chunk_tokens=self.io_chunk_tokens,
        )
        return setting_at(spec, hardware, request, self.factor, self.policies)

    def seconds(self, spec: ModelSpec, hardware: HardwareProfile, how: RecordingOptions) -> float:
        setting = self._setting(spec, hardware)
        planner = RestorePlanner(spec, setting.hardware, setting.request)
        times_s = [planner.choice(policy).ttft_s for policy in setting.policies]
        runs_s = sum(one * (how.expected_repeats + warm_ups(how.kind, one)) for one in times_s)
        job = Workload(1, self.prompt_tokens, 1)
        check_s = _kv_bytes(spec, job) / HOST_BYTES_PER_S["cpu"]
        checks_s = len(times_s) * how.expected_repeats * check_s
        return _setup_s(spec, hardware, job, how.kind) + 1.2 * runs_s + checks_s

    def record(
        self, spec: ModelSpec, hardware: HardwareProfile, how: RecordingOptions
    ) -> dict[str, Any]:
        setting = self._setting(spec, hardware)
        return how.measure(partial(prepare_setting, spec, how.kind, how.seed, setting), spec)


RecordSetting = DecodeSetting | OtherSystems | RestoreSetting
"""One entry of a recording.

Each has a `name`, the `files` that complete it in a recording, an estimate of its `seconds` with
set-up and checks, and `record`, which measures it and returns the environment.
"""


def _case_file(spec: ModelSpec, name: str) -> str:
    """The file of a case that is written last."""
    return f"{CASES}/{spec.name}-{name}/{CASE}"


def _kv_bytes(spec: ModelSpec, job: Workload) -> float:
    """Bytes of K and V of all prompts on the host."""
    tokens = job.n_batches * job.batch_size * job.prompt_tokens
    return spec.n_layers * tokens * host_row_bytes(spec, job.kv_bits)


def _setup_s(spec: ModelSpec, hardware: HardwareProfile, job: Workload, kind: str) -> float:
    """Estimated seconds for weights, prompts and their caches on the host."""
    tokens = job.n_batches * job.batch_size * job.prompt_tokens
    host_bytes = _kv_bytes(spec, job) + spec.n_layers * tokens * spec.x_token_bytes
    flops = spec.n_layers * tokens * product_flops(spec)
    prefill_s = flops / (PREFILL_SHARE[kind] * hardware.gemm.flops_per_s)
    return FIXED_S[kind] + host_bytes / HOST_BYTES_PER_S[kind] + prefill_s


def _cuda_restore(prompt_tokens: int) -> RestoreSetting:
    policies = ("two-ended", "load-only", "compute-only", "lp")
    return RestoreSetting("llama-3.1-8b", prompt_tokens, "dram", 1.0, policies, 1024, 512)


def _cpu_restores() -> list[RestoreSetting]:
    """Every tier at every rate; policy `compute-only` once, since it loads nothing."""
    rates = [(tier, factor) for tier, factors in RATE_FACTORS.items() for factor in factors]
    return [
        RestoreSetting("opt-125m", 700, tier, factor, POLICIES[: len(POLICIES) - bool(number)])
        for number, (tier, factor) in enumerate(rates)
    ]


NO_FIXED = GridOptions(fixed_fracs=())

SETTINGS: dict[str, list[RecordSetting]] = {
    "cpu": [
        DecodeSetting("opt-125m", Workload(7, 500, STEPS)),
        OtherSystems("opt-125m", Workload(7, 500, STEPS)),
        DecodeSetting("opt-125m", Workload(4, 300, STEPS)),
        DecodeSetting("qwen2.5-0.5b", Workload(6, 400, STEPS)),
        *_cpu_restores(),
    ],
    "cuda": [
        DecodeSetting("opt-30b", Workload(16, 1024, STEPS)),
        DecodeSetting("opt-6.7b", Workload(32, 1024, STEPS)),
        OtherSystems("opt-6.7b", Workload(32, 1024, STEPS)),
        DecodeSetting(
            "opt-6.7b", Workload(32, 1024, STEPS), replace(NO_FIXED, gpu_memory_bytes=24 * 2**30)
        ),
        DecodeSetting("opt-6.7b", Workload(32, 1024, STEPS, kv_bits=8), NO_FIXED),
        DecodeSetting(
            "opt-6.7b", Workload(16, 512, STEPS, 4), replace(NO_FIXED, schedule="column")
        ),
        _cuda_restore(8 * 1024),
        _cuda_restore(32 * 1024),
        DecodeSetting("llama-3.1-8b", Workload(24, 1500, STEPS)),
        DecodeSetting("opt-13b", Workload(32, 1024, STEPS)),
        OtherSystems("opt-13b", Workload(32, 1024, STEPS)),
        DecodeSetting("opt-6.7b", Workload(12, 700, STEPS)),
        DecodeSetting("opt-13b", Workload(10, 500, STEPS)),
        DecodeSetting("opt-1.3b", Workload(20, 900, STEPS)),
    ],
}
"""By kind of device."""

DEFAULT_JOBS = {"cpu": Workload(4, 300, STEPS), "cuda": Workload(16, 1000, STEPS)}
"""The job of a model that is not among the settings."""
