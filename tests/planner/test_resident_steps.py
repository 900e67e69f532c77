"""A resident step of every model takes about as long as reading its weights and cache.

The bound is bytes at the peak rate of device memory, and 1.6 times that with 5 us a launch and the
all-reduces. Where the package's own rows take longer than that, what they take beyond it is added.
"""

from __future__ import annotations

from importlib.util import find_spec
from itertools import pairwise
from math import log

import pytest
from builders import SOAK

from planner.decode.lower import lower
from planner.decode.split import Residency
from sim.catalog import find_hardware, find_model, model_names
from sim.cost.model import CostModel
from sim.engine.api import simulate
from sim.graph.jobs import Workload
from sim.lanes import COMPUTE
from sim.machine.aiconfigurator import SystemTables
from sim.model.kernels import AllReduceKernel, MatMul
from sim.model.layers import Experts
from sim.model.operations import LAYER_OPS, kernels

LAUNCH_S = 5e-6
PAST = 1024
MOST = 1.6
MACHINES = ("a100-sxm-80g+pcie4-x16", "h100-sxm+pcie5-x16", "h200+pcie5-x16", "b200+pcie5-x16")
OTHERS = (
    *("rtx-pro-6000", "l40s", "b300", "gb200", "gb300", "rtx-3090", "rtx-4070", "rtx-4090"),
    *("rtx-5070-ti", "rtx-5090", "a10", "l4", "rtx-a6000", "rtx-6000-ada", "mi300x", "gh200"),
)
MODELS = model_names() if SOAK else ["qwen3.5-27b", "gemma-4-26b-a4b", "llama-3.1-8b"]


def parts_that_fit(name, machine):
    """The model on as few GPUs as hold its weights; None with more than 16."""
    model, free_bytes = find_model(name), 0.9 * machine.memory.job_device_bytes
    sizes = [n for n in (1, *model.tensor_parallel_sizes) if n <= 16]
    fitting = (n for n in sizes if model.shard(n).weight_bytes < free_bytes)
    found = next(fitting, None)
    return None if found is None else model.shard(found)


def read_bytes(model):
    """Weights that one token passes through, rows that it reads, index keys, and states twice."""
    bits, hidden = model.bits, model.hidden_size
    weight_bits = model.vocab_size * hidden * bits.head
    for layer in model.layers:
        ffn = layer.ffn.matrices(hidden)
        weight_bits += sum(layer.attention.matrices(hidden).values()) * bits.attention
        weight_bits += layer.other_elements * bits.shared
        if isinstance(layer.ffn, Experts):
            active = layer.ffn.n_active / layer.ffn.n_routed
            weight_bits += active * ffn.pop("experts") * bits.experts
            weight_bits += sum(ffn.values()) * bits.shared
        else:
            weight_bits += sum(ffn.values()) * bits.dense
    layers = range(model.n_layers)
    rows = sum(model.layer_context(at, PAST) * model.row_bytes(at) for at in layers)
    return weight_bits / 8 + rows + model.index_bytes(PAST) + 2 * model.state_bytes


def peak_bytes_per_s(machine):
    tables = (*machine.gemm.utilisation, *machine.gemm.experts)
    return max([table.bytes_per_s for table in tables] or [machine.gemm.bytes_per_s])


def step_s(model, machine):
    """Seconds of a resident step, and of its launches and all-reduces."""
    job = Workload(1, PAST, 1)
    kept = Residency.whole_cache(model, job)
    graph = lower("row", model, job, [[0] * model.n_layers], residency=kept)
    operations = CostModel(machine, model, job).operations
    extra_s = 0.0
    for task in (one for one in graph.tasks if one.lane == COMPUTE):
        kind = model.kind_of[task.layer]
        extra_s += LAUNCH_S * operations.launches(task.op, kind)
        reduced = [
            one
            for one in kernels(task.op, 1, 1, model, 1, kind=kind)
            if isinstance(one, AllReduceKernel)
        ]
        extra_s += sum(operations.kernel(one).seconds for one in reduced)
    return simulate(graph, machine, "fast").makespan_s, extra_s


def timed_excess_s(model, machine):
    """Seconds by which the package's own rows of products exceed the bound of each.

    Of one row and the nearest shape that was timed, in the bits of the weights or in 16.
    """
    environment = machine.environment or {}
    if "system" not in environment or find_spec("aiconfigurator_core") is None:
        return 0.0
    tables = SystemTables.find(environment["system"], *environment["engine"].split())
    rows = {}
    for dtype in ("bfloat16", "fp8"):
        for (m, n, k), seconds in tables.products(dtype).items():
            if m == 1:
                rows[n, k] = min(seconds, rows.get((n, k), seconds))
    excess_s = 0.0
    for kind in model.kind_of:
        for op in LAYER_OPS:
            for one in kernels(op, 1, PAST, model, 1, kind=kind):
                if isinstance(one, MatMul):
                    near = min(
                        rows, key=lambda at: abs(log(at[0] / one.n)) + abs(log(at[1] / one.k))
                    )
                    bits = getattr(model.bits, one.weights)
                    least_s = near[0] * near[1] * bits / 8 / peak_bytes_per_s(machine)
                    excess_s += max(0.0, rows[near] - MOST * least_s - LAUNCH_S)
    return excess_s


@pytest.mark.parametrize("machine", (*MACHINES, *OTHERS) if SOAK else MACHINES[1:3])
@pytest.mark.parametrize("name", MODELS)
def test_a_step_takes_as_long_as_its_bytes(name, machine):
    hardware = find_hardware(machine)
    model = parts_that_fit(name, hardware)
    if model is None:
        pytest.skip("does not fit 16 GPUs")
    seconds, extra_s = step_s(model, hardware)
    least_s = read_bytes(model) / peak_bytes_per_s(hardware)
    most_s = MOST * least_s + extra_s
    if seconds >= most_s:
        most_s += timed_excess_s(model, hardware)
    assert least_s < seconds < most_s


@pytest.mark.parametrize("name", MODELS)
def test_a_faster_device_is_not_slower(name):
    """Of those that hold the whole model; on several GPUs launches and all-reduces rule."""
    model, steps_s = find_model(name), []
    for machine in MACHINES:
        hardware = find_hardware(machine)
        if parts_that_fit(name, hardware) == model:
            steps_s.append(step_s(model, hardware)[0])
    if len(steps_s) < 2:
        pytest.skip("fits fewer than two of the machines")
    assert all(after <= 1.01 * before for before, after in pairwise(steps_s))
