"""The first sentence of an answer: its words, and that nothing in the same answer is faster."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from builders import ONE_OF_EACH_FAMILY

from planner import Job, PlanOptions, make_plan
from planner.advice import beyond_calibration, describe_sources, headline
from sim.catalog import find_hardware, find_model
from sim.errors import BadInput, DoesNotFit
from sim.graph.jobs import Workload
from sim.machine.what_if import in_dtype_of, with_memory
from tests.builders import SOAK, shipped_machines

MACHINES = shipped_machines()[:: 1 if SOAK else 5]
SIZES = ((1, 1024), (48, 2000))
LAYERS = 2

FEW = 2
"""Models that are tried on each machine, unless by `make soak`."""


def plan_of(model, hardware, batch, prompt, **options):
    """The plan of a few layers of the model, with that part of the machine's memory."""
    part = LAYERS / model.n_layers
    small = with_memory(hardware, part * hardware.memory.job_device_bytes)
    job = Job(shortened(model), small, Workload(batch, prompt, 1))
    return make_plan(job, PlanOptions(engine="fast", **options))


def shortened(model):
    """The first layers alone."""
    return replace(model, n_layers=LAYERS, layer_order=model.layer_order[:LAYERS])


def seconds_of(text: str) -> float:
    """The first time that a headline names."""
    found = re.search(r"([\d,.]+) (ms|us) a step", text)
    assert found is not None, text
    return float(found[1].replace(",", "")) * {"ms": 1e-3, "us": 1e-6}[found[2]]


@pytest.mark.parametrize("number", range(len(MACHINES)), ids=MACHINES)
def test_the_first_answer_is_never_slower_than_a_resident_cache(number):
    checked = 0
    hardware = find_hardware(MACHINES[number])
    names = ONE_OF_EACH_FAMILY[number:] + ONE_OF_EACH_FAMILY[:number]
    for other, name in enumerate(names):
        if checked == FEW and not SOAK:
            break
        model = in_dtype_of(find_model(name), hardware, chosen=False)
        try:
            plan = plan_of(model, hardware, *SIZES[(number + other) % 2], keep=True)
        except (DoesNotFit, BadInput):
            continue
        assert plan.makespan_s <= plan.baselines.get("resident", plan.makespan_s)
        assert plan.makespan_s <= plan.offloaded.makespan_s
        said_s = seconds_of(headline(plan))
        assert said_s <= min(plan.baselines.values()) + 0.051e-3, (name, headline(plan))
        checked += 1
    assert checked


def test_what_fits_stays_and_the_offloaded_answer_follows():
    model, hardware, job = find_model("opt-13b"), find_hardware("a100-80g"), Workload(32, 1024, 1)
    said = "Keep the cache in GPU memory: 26.1 ms a step."
    offloaded = "If it must be offloaded: 631.3 ms, recomputing 854 of 1,024 tokens."
    for keep in (True, False):
        plan = make_plan(Job(model, hardware, job), PlanOptions(keep=keep, engine="fast"))
        assert headline(plan) == f"{said} {offloaded}"


def test_loading_is_explained_by_the_size_of_x():
    model, hardware = find_model("llama-3.1-8b"), find_hardware("h100-sxm+pcie5-x16")
    small = with_memory(hardware, model.weight_bytes + 4e9)
    job = Job(model, small, Workload(64, 2048, 1))
    plan = make_plan(job, PlanOptions(policy="kvpr", engine="fast"))
    assert headline(plan).startswith("Policy kvpr: ")
    assert ". Load everything: " in headline(plan)
    assert headline(plan).endswith(" X is twice the size of its K and V.")


def test_weights_that_do_not_fit_are_the_first_thing_said():
    model = replace(find_model("llama-3.1-70b"), n_layers=8)
    hardware = with_memory(find_hardware("h100-sxm+pcie5-x16"), 0.7 * model.weight_bytes)
    job = Job(model, hardware, Workload(4, 8192, 1))
    plan = make_plan(job, PlanOptions(schedule="column", keep=True, engine="fast"))
    assert headline(plan).startswith(
        "Does not fit on one GPU: weights take 16.7 of 11.7 GiB (2 GPUs hold them: "
        "--tp 2). With the weights loaded layer by layer: Keep "
    )
    assert plan.makespan_s < plan.baselines["resident"] < plan.offloaded.makespan_s


def test_task_times_are_named_by_source_and_range():
    hardware = find_hardware("h100-sxm+pcie5-x16")
    job = Job(find_model("llama-3.1-8b"), hardware, Workload(4, 1024, 1))
    plan = make_plan(job, PlanOptions(engine="fast"))
    assert "from datasheet values (" in describe_sources(plan)
    assert "output head (" in beyond_calibration(plan)
