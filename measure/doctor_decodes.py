"""The doctor's checks of numbers: tiny decodes and restores against their resident references."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from measure.run import PreparedDecode, ReadyPlan, prepare_restore
from planner import DecodePlan, Job, PlanOptions, make_plan, plan_split
from planner.decode.split import Residency
from sim.catalog import find_hardware, find_model
from sim.errors import WrongNumbers
from sim.graph.jobs import KV, KV_AND_X, RestoreRequest, Workload
from sim.machine.profile import Gemm, HardwareProfile
from sim.model.spec import ModelSpec
from sim.progress import Silent

if TYPE_CHECKING:
    from hw.backends import Backend
    from hw.doctor import Check, Named

DTYPES = {"cpu": ("float32", "float16"), "cuda": ("float16", "bfloat16")}

RUNS = {"cpu": 1, "cuda": 2}
"""Runs of each case; the first on a GPU loads kernels, and a race shows in the second."""

HEAD_DIM = 64
"""The smallest head size that flash attention and real models share."""

SIZES: dict[str, Any] = {
    "n_layers": 3,
    "hidden_size": 2 * HEAD_DIM,
    "head_dim": HEAD_DIM,
    "intermediate_size": 256,
    "vocab_size": 512,
    "max_positions": 256,
}

JOB = Workload(batch_size=2, prompt_tokens=160, gen_tokens=2)
FIXED = 64
POLICIES = ("lp", "kvpr", "load-all", "recompute-all", f"fixed:{FIXED}")
QUANTISED_POLICIES = ("lp", f"fixed:{FIXED}")

REQUEST = RestoreRequest(
    prompt_tokens=160, cached_tokens=150, chunk_tokens=32, io_chunk_tokens=16, tier="dram"
)
RESTORE_POLICIES = ("two-ended", "joint")

BALANCED_FLOPS_PER_S = 4e12
"""At this rate and 32 GB/s, recomputing a token of `tiny_models` takes as long as loading it."""

WRONG = "This device computes wrong numbers: trust no time measured on it, and report this."
BROKEN = "These jobs cannot run on this device: trust no comparison with them, and report this."

MAX_LISTED = 3
MAX_TEXT = 160


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one case.

    Args:
        difference: largest difference from the reference, relative to its largest magnitude.
        error: why the case failed; empty if the numbers are right.
    """

    name: str
    difference: float = 0.0
    error: str = ""


def number_checks(backend: Backend) -> list[Named]:
    """One check per element type of the device: all cases of both tiny models."""
    return [
        (f"numbers, {dtype}", partial(check_numbers, backend, dtype))
        for dtype in DTYPES[backend.kind]
    ]


def check_numbers(backend: Backend, dtype: str) -> Check:
    """Compare decodes of every schedule, policy and cache format with resident decodes."""
    outcomes = [
        outcome
        for model in tiny_models(dtype)
        for outcome in (*decode_outcomes(backend, model), *restore_outcomes(backend, model))
    ]
    return numbers_check(dtype, outcomes)


def numbers_check(dtype: str, outcomes: Sequence[Outcome]) -> Check:
    """Failed if one case is wrong or raises."""
    from hw.doctor import Check

    name = f"numbers, {dtype}"
    wrong = [outcome for outcome in outcomes if outcome.error]
    if not wrong:
        worst = max(outcome.difference for outcome in outcomes)
        text = (
            f"{len(outcomes)} decodes and restores equal the resident reference; largest relative "
            f"difference {worst:.1e}"
        )
        return Check(name, "passed", text)
    listed = "; ".join(f"{one.name}: {one.error[:MAX_TEXT]}" for one in wrong[:MAX_LISTED])
    more = f"; and {len(wrong) - MAX_LISTED} more" if len(wrong) > MAX_LISTED else ""
    differ = any(one.error.startswith(WrongNumbers.__name__) for one in wrong)
    advice = WRONG if differ else BROKEN
    return Check(name, "failed", f"{len(wrong)} of {len(outcomes)} wrong: {listed}{more}", advice)


def tiny_models(dtype: str) -> tuple[ModelSpec, ModelSpec]:
    """An OPT with multi-head and a Qwen2 with grouped-query attention, 3 layers each."""
    mha, gqa = find_model("opt-125m", dtype), find_model("qwen2.5-0.5b", dtype)
    return (
        replace(mha, name="tiny-opt", n_heads=2, n_kv_heads=2, **SIZES),
        replace(gqa, name="tiny-qwen2", n_heads=4, n_kv_heads=2, **SIZES),
    )


@cache
def machine() -> HardwareProfile:
    """A profile on which the LP mixes loading and recomputing; its times do not matter here."""
    shipped = find_hardware("kvpr-a100")
    return replace(shipped, gemm=Gemm("datasheet", BALANCED_FLOPS_PER_S))


def decode_cases(model: ModelSpec) -> Iterator[tuple[str, Callable[[], DecodePlan]]]:
    """Every schedule and policy, quantised caches, and a partly resident cache: name and plan."""

    def planned(job: Workload, options: PlanOptions) -> DecodePlan:
        return make_plan(Job(model, machine(), job), options)

    jobs = [
        ("row", JOB, POLICIES),
        ("column", replace(JOB, n_batches=2), POLICIES),
        *(("row", replace(JOB, kv_bits=bits), QUANTISED_POLICIES) for bits in (8, 4)),
    ]
    for schedule, job, policies in jobs:
        bits = f" {job.kv_bits} bits" if job.kv_bits else ""
        for policy in policies:
            options = PlanOptions(policy=policy, schedule=schedule)
            yield f"{model.name} {schedule} {policy}{bits}", partial(planned, job, options)
    residency = Residency((FIXED // 2, JOB.prompt_tokens, 0), (FIXED // 4, 0, 0))
    split = [[FIXED, 0, FIXED]] * JOB.gen_tokens
    plan = partial(plan_split, Job(model, machine(), JOB), split, residency)
    yield f"{model.name} row, partly resident", plan


def decode_outcomes(backend: Backend, model: ModelSpec) -> list[Outcome]:
    """Run every decode case and compare its last run with the resident decode.

    Cases of one job share caches and references.
    """
    from hw import prefilled_caches, random_weights, resident_decode

    weights = random_weights(model, 0, backend.device)

    @cache
    def prepared(job: Workload) -> PreparedDecode:
        caches = prefilled_caches(weights, job, 0, backend)
        references = [resident_decode(weights, cache, job) for cache in caches]
        return PreparedDecode(backend, weights, caches, references)

    def difference(make: Callable[[], DecodePlan]) -> float:
        plan = make()
        return largest_difference(prepared(plan.workload).ready(plan.simulate()), backend.kind)

    return [attempt(name, partial(difference, make)) for name, make in decode_cases(model)]


def restore_outcomes(backend: Backend, model: ModelSpec) -> list[Outcome]:
    """Restore a prefix from host memory and compare it with the resident prefill."""
    hardware = find_hardware("h100")

    def difference(policy: str, cached_data: str) -> float:
        options = PlanOptions(policy=policy, cached_data=cached_data)
        plan = make_plan(Job(model, hardware, REQUEST), options)
        with prepare_restore(plan, backend, 0, Silent()).ready(plan.simulate()) as ready:
            return largest_difference(ready, backend.kind)

    cases = [*((policy, KV) for policy in RESTORE_POLICIES), ("joint", KV_AND_X)]
    return [
        attempt(f"{model.name} restore {policy} {data}", partial(difference, policy, data))
        for policy, data in cases
    ]


def largest_difference(ready: ReadyPlan, kind: str) -> float:
    """Largest relative difference of the last of some runs from the reference."""
    for _ in range(RUNS[kind]):
        ready.run()
    found = ready.check()
    return max(value for name, value in found.items() if name.endswith("_difference"))


def attempt(name: str, difference: Callable[[], float]) -> Outcome:
    """The outcome of one case; any exception makes it a wrong one."""
    try:
        return Outcome(name, difference())
    except Exception as error:
        return Outcome(name, error=" ".join(f"{type(error).__name__}: {error}".split()))
