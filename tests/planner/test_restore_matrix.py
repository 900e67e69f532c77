"""Every restore policy on every shipped machine: splitting does not lose, faster is not slower.

`make soak` runs the whole matrix of models, machines and prompts; `make test` a part of it.
"""

from __future__ import annotations

from functools import cache

import pytest

from planner.restore.planner import FIXED, PLANNED, RestorePlanner
from sim.catalog import find_hardware, find_model
from sim.cost.model import CostModel
from sim.cost.restore import RestoreCosts
from sim.errors import BadInput, DoesNotFit
from sim.graph.jobs import RestoreRequest
from sim.machine.what_if import in_dtype_of
from tests.builders import SOAK, shipped_machines

MODELS = {
    "opt-125m": 2000,
    "longalpaca-13b": 16_000,
    "qwen2.5-0.5b": 24_000,
    "llama-3.1-8b": 30_000,
    "llama-3.1-70b": 6000,
    "llama-3.1-70b-fp8": 12_000,
    "deepseek-v2-lite": 16_000,
    "mistral-7b-v0.1": 12_000,
    "gemma-2-9b": 8000,
    "qwen3-8b": 20_000,
}
"""Longest prompt: multi-head and grouped-query attention, latent attention and experts, sliding
windows, 8-bit weights, small and large."""

MACHINES = shipped_machines()
LINKS = ("pcie4-x16", "pcie5-x16", "pcie6-x16", "nvlink-c2c")
"""Each faster than the one before."""

DEVICES = {
    "a100-sxm-40g": "a100-sxm-80g",
    "a100-sxm-80g": "h100-sxm",
    "arc-pro-b60": "l40s",
    "l40s": "rtx-pro-6000",
    "rtx-pro-6000": "h100-sxm",
    "h100-sxm": "h200",
    "h200": "b200",
    "b200": "gb200",
    "b300": "gb300",
    "gb200": "gb300",
}
"""A device whose datasheet has no smaller figure."""

SHARE = 1 if SOAK else 20
"""One of so many models and prompts is tried on each machine."""

TOLERANCE = 1.01


def planner(name: str, machine: str, prompt: int) -> RestorePlanner:
    """The planner of a prompt that is cached up to its last 100 tokens."""
    hardware = find_hardware(machine)
    model = in_dtype_of(find_model(name), hardware, chosen=False)
    request = RestoreRequest(prompt_tokens=prompt, cached_tokens=prompt - 100)
    return RestorePlanner(model, hardware, request, engine="fast")


def seconds(made: RestorePlanner, policy: str) -> list[float]:
    """Seconds of each task of a policy."""
    costs = CostModel(made.hardware, made.model, made.request)
    graph = made.choice(policy).timeline.graph
    return [costs.estimate(task).seconds for task in graph.tasks]


@cache
def times_s(name: str, machine: str, prompt: int) -> dict[str, float]:
    """Seconds to first token by policy, of the longest step and of the lookup; {}: no room."""
    made = planner(name, machine, prompt)
    try:
        made.check_fits()
    except (BadInput, DoesNotFit):
        return {}
    found = {policy: made.choice(policy).ttft_s for policy in (*FIXED, *PLANNED)}
    lookup_s = RestoreCosts(made.hardware, made.model, made.request).lookup_s
    return {**found, "step": max(seconds(made, "compute-only")), "lookup": lookup_s}


def points(machine: str) -> list[tuple[str, int]]:
    """Models and prompts tried on a machine."""
    every = [(name, most // part) for name, most in MODELS.items() for part in (1, 4)]
    return every[MACHINES.index(machine) % SHARE :: SHARE]


@pytest.mark.parametrize("machine", MACHINES)
def test_no_policy_loses_to_computing_or_loading_alone(machine):
    for name, prompt in points(machine):
        found = times_s(name, machine, prompt)
        if not found:
            continue
        alone_s = min(found["compute-only"], found["load-only"])
        for policy in PLANNED:
            assert found[policy] <= alone_s, (name, prompt, policy)
        # Cake computes a step while the first chunk is loaded, and loads once the prefix is found.
        most_s = 1.02 * max(alone_s, found["lookup"]) + found["step"]
        assert found["two-ended"] <= most_s, (name, prompt)


def faster_machines(machine: str) -> list[str]:
    """Machines that are the same but for a faster link or device."""
    device, _, link = machine.partition("+")
    faster = [f"{DEVICES[device]}+{link}"] if link and device in DEVICES else []
    if link in LINKS[:-1]:
        faster.append(f"{device}+{LINKS[LINKS.index(link) + 1]}")
    return faster


@pytest.mark.parametrize("machine", [name for name in MACHINES if faster_machines(name)])
def test_a_faster_machine_is_not_slower_unless_it_was_measured_so(machine):
    for name, prompt in points(machine):
        slow = times_s(name, machine, prompt)
        for other in faster_machines(machine) if slow else ():
            fast = times_s(name, other, prompt)
            for policy in (*FIXED, *PLANNED):
                allowed_s = TOLERANCE * slow[policy]
                if policy == "two-ended":
                    allowed_s += slow["step"]
                if fast[policy] > allowed_s:
                    machines = [planner(name, one, prompt) for one in (machine, other)]
                    allowed_s += measured_slower_s(*machines, policy)
                assert fast[policy] <= allowed_s, (name, prompt, other, policy)


def measured_slower_s(slow: RestorePlanner, fast: RestorePlanner, policy: str) -> float:
    """Seconds that measured tables of the faster machine add to the slower machine's choice."""
    costs = [CostModel(one.hardware, one.model, one.request) for one in (slow, fast)]
    added_s = 0.0
    for task in slow.choice(policy).timeline.graph.tasks:
        before, after = (cost.estimate(task).seconds_by_source for cost in costs)
        added_s += max(0.0, after.get("measured", 0.0) - before.get("measured", 0.0))
    return added_s
