"""Small models, machines and graphs with round numbers, shared by the tests.

On `unit_machine()` a task lasts exactly as many seconds as `seconds` says: links move one byte
a second and the compute lane passes over one token of `tiny_model()` a second.
"""

from __future__ import annotations

import gc
import os
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st

import planner
from planner import Job, PlanOptions
from planner.decode.lower import lower
from planner.decode.problem import DecodeProblem
from sim.catalog import (
    composed_names,
    compute_names,
    find_compute,
    find_model,
    hardware_names,
    link_names,
    model_names,
)
from sim.engine.api import simulate
from sim.graph.jobs import Workload
from sim.graph.memory import footprint
from sim.graph.tasks import Task, TaskGraph
from sim.graph.timeline import Timeline
from sim.lanes import COMPUTE, D2H, DISK, H2D, HOST, LANES, NET
from sim.machine.links import Dispatch, Interference, Link, Links
from sim.machine.profile import Attention, Elementwise, Gemm, HardwareProfile, Memory
from sim.model.attention import LatentAttention
from sim.model.spec import MixtureOfExperts, ModelSpec

OP_OF_LANE = {
    COMPUTE: "embed",
    H2D: "load_kv",
    D2H: "store_kv",
    HOST: "stage_kv",
    DISK: "read_kv",
    NET: "fetch_kv",
}
JOB = Workload(batch_size=1, prompt_tokens=8, gen_tokens=1)
MHA = {"n_heads": 2, "n_kv_heads": 2}
GQA = {"n_heads": 4, "n_kv_heads": 1, "gated_mlp": True, "rotary": True}


SOAK = float(os.environ.get("KVOVERLAP_SOAK", "0"))
"""Above 0: so many times as many examples, other ones in every run (`make soak`)."""

QUICK = 0.6
"""Part of the examples that `make test` draws, the same in every run."""


def examples(count: int) -> settings:
    """`count` examples at full length, without a time limit for each."""
    number = max(10, round(count * (SOAK or QUICK)))
    return settings(max_examples=number, deadline=None, derandomize=not SOAK)


def freeze_objects() -> None:
    """Let full collections look only at what is made from now on, a hundredth of all objects."""
    gc.collect()
    gc.freeze()


def shipped_machines() -> list[str]:
    """Whole machines, measured devices behind every link, and the others behind their usual one."""
    measured = [name for name in compute_names() if find_compute(name).efficiency is None]
    pairs = [f"{device}+{link}" for device in measured for link in link_names()]
    return sorted({*hardware_names(), *pairs, *composed_names()})


def tiny_model(**changes) -> ModelSpec:
    """An OPT-like model whose X of one token takes 16 bytes and K and V take 32."""
    spec = {
        "name": "tiny",
        "family": "opt",
        "n_layers": 2,
        "hidden_size": 8,
        "head_dim": 4,
        "intermediate_size": 32,
        "vocab_size": 64,
        "max_positions": 4096,
        "dtype": "float16",
        "gated_mlp": False,
        "rotary": False,
        "norm_eps": 1e-5,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "qk_norm": False,
        "tie_embeddings": True,
    }
    return ModelSpec(**{**spec, **MHA, **changes})


ONE_OF_EACH_FAMILY = sorted({find_model(name).family: name for name in model_names()}.values())
"""Names of shipped models."""


def first_layers(name: str, n_layers: int) -> ModelSpec:
    """The first layers of a shipped model."""
    model = find_model(name)
    return replace(model, n_layers=n_layers, layer_order=model.layer_order[:n_layers])


MLA = LatentAttention(kv_lora_rank=4, qk_rope_head_dim=2, qk_nope_head_dim=3, v_head_dim=5)
LATENT = tiny_model(n_kv_heads=1, head_dim=5, gated_mlp=True, mla=MLA)
MOE = MixtureOfExperts(
    n_routed_experts=8,
    n_active_experts=2,
    n_shared_experts=1,
    intermediate_size=6,
    n_dense_layers=1,
)


def machine(
    *,
    flops_per_s: float = 1e9,
    gemm_bytes_per_s: float | None = None,
    memory_bytes_per_s: float = 1e9,
    h2d: Link | float = 1e8,
    d2h: Link | float = 1e8,
    host: Link | float | None = 1e8,
    **changes,
) -> HardwareProfile:
    """A datasheet machine; with the defaults every cost is a straight line through zero."""
    links = [
        value if value is None or isinstance(value, Link) else Link("datasheet", float(value))
        for value in (h2d, d2h, host)
    ]
    profile = HardwareProfile(
        name="test",
        description="made for tests",
        device_kind="none",
        dtype="float16",
        memory=Memory("datasheet", 1e12, 1e12),
        gemm=Gemm("datasheet", flops_per_s, gemm_bytes_per_s),
        attention=Attention("datasheet", memory_bytes_per_s),
        elementwise=Elementwise("datasheet", memory_bytes_per_s),
        links=Links(*links),
        dispatch=Dispatch("datasheet"),
    )
    return replace(profile, **changes)


def unit_machine(**changes) -> HardwareProfile:
    """One byte a second over each link, one token a second through `embed`."""
    token_bytes = 4 * tiny_model().x_token_bytes
    return machine(memory_bytes_per_s=token_bytes, h2d=1.0, d2h=1.0, host=1.0, **changes)


def dispatch(**costs: float) -> Dispatch:
    return Dispatch("datasheet", **costs)


def slowed(lane: str, while_busy: str, rate: float) -> Interference:
    return Interference(lane, while_busy, rate, "datasheet")


def task(name: str, lane: str, seconds: int, *deps: str, device: int = 0, step: int = 0) -> Task:
    """A task that takes `seconds` on `unit_machine()`."""
    n_bytes = 0 if lane == COMPUTE else seconds
    op = OP_OF_LANE[lane]
    return Task(name, op, lane, step, 0, 0, seconds, -1, n_bytes, 0, deps, device)


def graph(*tasks: Task, workload: Workload = JOB) -> TaskGraph:
    return TaskGraph("row", tiny_model(rotary=True), workload, 2, tasks)


def both_engines(made: TaskGraph, hardware: HardwareProfile, *how) -> Timeline:
    """The timeline of the reference, which that of the fast engine has to equal.

    `how` are the availability and the releases that `simulate` takes.
    """
    reference, fast = (simulate(made, hardware, engine, *how) for engine in ("simpy", "fast"))
    nothing_s = 1e-13 * reference.makespan_s
    assert fast.start_s == pytest.approx(reference.start_s, rel=1e-9, abs=nothing_s)
    assert fast.end_s == pytest.approx(reference.end_s, rel=1e-9, abs=nothing_s)
    return reference


def times(timeline) -> dict[str, tuple[float, float]]:
    """Start and end of each task by name."""
    return {span.task.id: (span.start_s, span.end_s) for span in timeline.spans}


def uniform(model: ModelSpec, workload: Workload, count: int) -> list[list[int]]:
    """The split that recomputes `count` tokens, or all there are, in every layer and step."""
    contexts = map(workload.context_tokens, range(workload.gen_tokens))
    return [[min(count, past)] * model.n_layers for past in contexts]


def decode_graph(recomputed: int = 3, model: ModelSpec | None = None, **job: int) -> TaskGraph:
    """A lowered row-schedule decode with the same split everywhere."""
    model = model or tiny_model()
    workload = Workload(**{"batch_size": 2, "prompt_tokens": 8, "gen_tokens": 2, **job})
    return lower("row", model, workload, uniform(model, workload, recomputed))


def make_plan(
    model: ModelSpec,
    hardware: HardwareProfile,
    workload: Workload,
    policy: str | None = None,
    schedule: str = "row",
    **options,
):
    """`planner.make_plan` with its most used arguments by position."""
    chosen = PlanOptions(policy=policy, schedule=schedule, **options)
    return planner.make_plan(Job(model, hardware, workload), chosen)


def policy_s(model: ModelSpec, hardware: HardwareProfile, workload: Workload, policy: str) -> float:
    """The makespan of a policy's plan, without the other parts of a plan: bounds, baselines."""
    problem = DecodeProblem(model, hardware, workload, gpus=model.tensor_parallel)
    return problem.timeline(problem.choice_of(policy)).makespan_s


@st.composite
def random_graphs(draw, max_tasks: int = 12, devices: int = 1) -> TaskGraph:
    """Any graph of whole-second tasks: random lanes and random deps on earlier tasks."""
    tasks: list[Task] = []
    for number in range(draw(st.integers(1, max_tasks))):
        lane = draw(st.sampled_from(LANES))
        seconds = draw(st.integers(1, 8))
        earlier = [one.id for one in tasks]
        deps = draw(st.sets(st.sampled_from(earlier), max_size=3)) if earlier else ()
        device = draw(st.integers(0, devices - 1))
        tasks.append(task(f"t{number}", lane, seconds, *sorted(deps), device=device))
    return graph(*tasks)


@st.composite
def splits(draw, model: ModelSpec, workload: Workload) -> list[list[int]]:
    """Any split of a job: its own number of recomputed tokens for every step and layer."""
    rows = []
    for step in range(workload.gen_tokens):
        count = st.integers(0, workload.context_tokens(step))
        rows.append(draw(st.lists(count, min_size=model.n_layers, max_size=model.n_layers)))
    return rows


@st.composite
def models(draw, max_layers: int = 8) -> ModelSpec:
    """Small MHA and GQA models, with and without gate and rotary embedding."""
    kv_heads = draw(st.sampled_from([1, 2, 4]))
    groups = draw(st.sampled_from([1, 2, 4]))
    heads = kv_heads * groups
    return tiny_model(
        n_layers=draw(st.integers(1, max_layers)),
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=4,
        hidden_size=heads * 4,
        gated_mlp=draw(st.booleans()),
        rotary=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
    )


@st.composite
def workloads(draw, max_gen: int = 3, max_prompt: int = 40) -> Workload:
    return Workload(
        batch_size=draw(st.integers(1, 4)),
        prompt_tokens=draw(st.integers(1, max_prompt)),
        gen_tokens=draw(st.integers(1, max_gen)),
    )


@st.composite
def straight_machines(draw) -> HardwareProfile:
    """Machines whose costs are straight lines through zero, loads about as dear as recomputing."""
    speed = st.floats(0.25, 4.0)
    return machine(
        flops_per_s=3e7 * draw(speed),
        memory_bytes_per_s=1e8 * draw(speed),
        h2d=2e6 * draw(speed),
        d2h=2e6 * draw(speed),
    )


@st.composite
def bent_machines(draw) -> HardwareProfile:
    """Machines with latency and memory-bound products: costs have a bend and jump from zero."""
    base = draw(straight_machines())
    latency = st.floats(0, 2e-3)
    h2d, d2h = (replace(link, latency_s=draw(latency)) for link in (base.links.h2d, base.links.d2h))
    gemm = replace(base.gemm, bytes_per_s=1e7 * draw(st.floats(0.25, 4.0)))
    return replace(base, gemm=gemm, links=replace(base.links, h2d=h2d, d2h=d2h))


def with_room(hardware, model, job, schedule, frac):
    """The machine with device memory for a job that offloads all, plus `frac` of the rest."""
    problem = DecodeProblem(model, hardware, job, schedule)
    least = footprint(problem.simulate([[0] * model.n_layers] * job.gen_tokens).graph).device_bytes
    sequences = job.n_batches * job.batch_size * job.max_tokens
    cache = model.n_layers * sequences * model.kv_token_bytes
    weights = model.n_layers * model.layer_weight_bytes if schedule == "column" else 0
    # No plan recomputes for want of X slots: they are beside the room.
    slots = 2 * job.batch_size * job.max_tokens * model.x_token_bytes
    budget = least + slots + frac * (cache + weights)
    return replace(hardware, memory=replace(hardware.memory, device_bytes=budget))
