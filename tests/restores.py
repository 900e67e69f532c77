"""Requests, machines, random graphs and traces of restores with round numbers, for the tests."""

from __future__ import annotations

from dataclasses import replace

from builders import GQA, machine, task, tiny_model
from hypothesis import strategies as st

from sim.graph.jobs import RestoreRequest
from sim.graph.tasks import Task, TaskGraph
from sim.lanes import COMPUTE, DISK, LANES, TIER_LANES
from sim.machine.availability import Availability, Step
from sim.machine.prefill import Prefill, Restore, Tier
from sim.machine.provenance import SourcedValue

TOKEN_BYTES = 64
"""K and V of one token in both layers of `tiny_model`."""


def figure(value: float) -> SourcedValue:
    return SourcedValue("datasheet", value)


def step_machine(step_s: float, load_tokens_per_s: float, disk_tokens_per_s: float | None = None):
    """A step takes `step_s` however many tokens it has; copies take their bytes' time."""
    tiers = ()
    if disk_tokens_per_s is not None:
        tiers = (Tier(DISK, figure(disk_tokens_per_s * TOKEN_BYTES)),)
    return machine(
        flops_per_s=1e30,
        memory_bytes_per_s=1e30,
        h2d=load_tokens_per_s * TOKEN_BYTES,
        restore=Restore(Prefill(figure(1e30), figure(step_s)), tiers),
    )


def request(prompt: int, **changes) -> RestoreRequest:
    usual = {"cached_tokens": prompt - 1, "chunk_tokens": 4, "io_chunk_tokens": 2}
    return RestoreRequest(prompt_tokens=prompt, **{**usual, **changes})


@st.composite
def restores(draw):
    """A small model, a machine on which loading costs about what computing costs, a request.

    Some, all or none of the model's layers have a window, longer or shorter than the prompt.
    """
    n_layers, window = draw(st.integers(1, 5)), draw(st.none() | st.integers(2, 210))
    full = draw(st.sets(st.integers(0, n_layers - 1))) if window else ()
    model = tiny_model(
        n_layers=n_layers,
        sliding_window=window,
        full_attention_layers=tuple(sorted(full)),
        **draw(st.sampled_from([{}, GQA])),
    )
    rate = st.floats(0.2, 5.0)
    hardware = machine(
        flops_per_s=3e8 * draw(rate),
        memory_bytes_per_s=1e8 * draw(rate),
        h2d=3e6 * draw(rate),
        restore=Restore(Prefill(figure(3e8 * draw(rate)), figure(1e-5))),
    )
    prompt = draw(st.integers(20, 200))
    cached = draw(st.integers(prompt // 2, prompt - 1))
    job = request(
        prompt,
        cached_tokens=cached,
        chunk_tokens=draw(st.sampled_from([16, 32])),
        io_chunk_tokens=draw(st.sampled_from([4, 8])),
        gpu_share=1.0,
    )
    return model, hardware, job


TIERS = Restore(tiers=tuple(Tier(lane, figure(1.0)) for lane in TIER_LANES))
"""One byte a second from disk and network."""


@st.composite
def random_restores(draw, max_tasks: int = 12, devices: int = 1) -> TaskGraph:
    """Any graph of tasks on tokens 0 to 12, on tiers too, some of them under one of two claims.

    A task that waits for one of its claim is often the second leg of the same load.
    """
    tasks: list[Task] = []
    for number in range(draw(st.integers(1, max_tasks))):
        before = draw(st.sampled_from(tasks)) if tasks and draw(st.booleans()) else None
        start, stop = sorted(draw(st.tuples(st.integers(0, 12), st.integers(0, 12))))
        claim = draw(st.sampled_from(["", "a", "b"]))
        if before is not None and draw(st.booleans()):
            start, stop, claim = before.token_start, before.token_stop, before.claim
        lane = draw(st.sampled_from((*LANES, *TIER_LANES)))
        device = draw(st.integers(0, devices - 1))
        deps = () if before is None else (before.id,)
        made = task(f"t{number}", lane, stop - start + (start == stop), *deps, device=device)
        layers = draw(st.sampled_from([1, 1, 2])) if lane == COMPUTE else 1
        where = {"token_start": start, "token_stop": stop, "layers": layers, "claim": claim}
        tasks.append(replace(made, **where))
    request = RestoreRequest(prompt_tokens=13, cached_tokens=12)
    return TaskGraph("restore", tiny_model(rotary=True), request, 2, tuple(tasks))


@st.composite
def traces(draw, lanes: tuple[str, ...] = (*LANES, *TIER_LANES)) -> Availability:
    """Up to three changes of some lanes, standing still included, and all of it at last."""
    rises = draw(st.lists(st.integers(1, 40), max_size=3, unique=True))
    parts = st.dictionaries(st.sampled_from(lanes), st.sampled_from([0.0, 0.25, 0.5, 2.0]))
    steps = [Step(float(at), tuple(draw(parts).items())) for at in sorted(rises)]
    return Availability((*steps, Step(60.0, ())) if steps else ())
