"""The memory of a model is free when its last user is gone, without the garbage collector.

`gc` is off in these tests: a reference cycle would hold tensors until it happens to run, and the
next model would not fit.
"""

from __future__ import annotations

import gc
import platform
from dataclasses import replace
from functools import partial
from itertools import pairwise
from statistics import median

import pytest
from allocations import Allocations, resident_bytes
from builders import freeze_objects, machine
from run_restores import RestoreCase, policy_graphs
from run_restores import request as restore_request
from tiny import LLAMA, OPT, decode_case, shorten_samples

import hw.backends
import hw.calibrate.speed_probe
import measure.decode_grid
import measure.restore_grid
import planner.lp.schedule  # noqa: F401  # now: a first import in a test leaves cycles with its frames
from hw import DecodeExecutor, open_backend
from measure.decode_grid import DecodeGrid, GridOptions
from measure.grid import Grid
from measure.restore_grid import Setting, prepare_setting
from sim.graph.jobs import Workload
from sim.lanes import DISK, NET
from sim.machine.links import Link
from sim.machine.prefill import Prefill, Restore, Tier
from sim.machine.provenance import SourcedValue
from sim.progress import Silent

RATE = 2e7
JOBS = [Workload(2, 24, 2), Workload(3, 40, 2)]
"""The first takes its part of the tokenizer of the second."""


@pytest.fixture(autouse=True)
def without_collector():
    freeze_objects()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(autouse=True)
def short_grids(monkeypatch):
    shorten_samples(monkeypatch)
    monkeypatch.setattr(measure.decode_grid, "PROBE_SAMPLES", 1)
    monkeypatch.setattr(measure.decode_grid, "POLICIES", ("lp", "recompute-all"))
    monkeypatch.setattr(measure.restore_grid, "PROBE_SAMPLES", 1)


def hardware(device):
    """A machine whose links are slow enough for every policy; on a GPU they are real."""
    link = Link("datasheet", RATE, paced_bytes_per_s=RATE if device == "cpu" else None)
    prefill = Prefill(SourcedValue("datasheet", 1e9), SourcedValue("datasheet", 1e-3))
    tiers = tuple(Tier(lane, SourcedValue("datasheet", RATE)) for lane in (DISK, NET))
    return machine(
        flops_per_s=1e9,
        h2d=link,
        d2h=link,
        device_kind=device,
        dtype="float32",
        restore=Restore(prefill, tiers),
    )


def measured(model, device, backend, jobs, options):
    """Measure a grid, and let go of it."""
    grid = DecodeGrid(model, hardware(device), backend, jobs, 0, Silent(), options)
    results = Grid(1).measure_all(jobs, grid.prepare, Silent())
    return [case.comparison for result in results for case in result.cases]


ROW = GridOptions(fixed_fracs=())
GRIDS = {
    "row": (LLAMA, JOBS, ROW),
    "kept": (OPT, JOBS[:1], replace(ROW, gpu_memory_bytes=2**20)),
    "quantised": (OPT, [replace(JOBS[0], kv_bits=8)], ROW),
    "column": (OPT, [Workload(2, 24, 2, 2)], replace(ROW, schedule="column")),
}


@pytest.mark.parametrize(("model", "jobs", "options"), GRIDS.values(), ids=GRIDS)
def test_a_grid_leaves_nothing_behind(backend, device, monkeypatch, model, jobs, options):
    allocations = Allocations()
    monkeypatch.setattr(backend, "host_empty", allocations.watching(backend.host_empty))
    with allocations:
        assert measured(model, device, backend, jobs, options)
    assert allocations.made_bytes() > model.n_layers * model.layer_weight_bytes
    assert allocations.held() == []


@pytest.mark.parametrize("tier", ["dram", "ssd", "net"])
def test_a_grid_of_restores_leaves_nothing_behind(device, monkeypatch, tier):
    allocations = Allocations()
    opened = hw.open_backend

    def watched(*args):
        backend = opened(*args)
        backend.host_empty = allocations.watching(backend.host_empty)
        return backend

    monkeypatch.setattr(hw, "open_backend", watched)
    policies = ("two-ended", "joint", "load-only")
    setting = Setting(tier, hardware(device), restore_request(tier=tier), policies)
    with allocations:
        prepare = partial(prepare_setting, OPT, device, 0)
        assert Grid(1).measure_all([setting], prepare, Silent())[0].cases
    assert allocations.held() == []


def test_buffers_go_with_their_executor_and_the_rest_stays(backend):
    with Allocations() as of_case:
        case = decode_case(backend)
    before = of_case.held()
    with Allocations(of_case) as of_executor:
        executor = case.executor(backend)
        executor.run()
        executor.check()
        assert of_executor.held()
        del executor
    assert of_executor.held() == []
    assert of_case.held() == before
    del case
    assert of_case.held() == []


def test_buffers_of_a_restore_go_with_its_executor(backend):
    with Allocations() as of_case:
        case = RestoreCase.of(backend, OPT, restore_request())
    graph = policy_graphs(OPT, case.job)["joint"]
    with Allocations(of_case) as allocations:
        executor = case.executor(graph)
        executor.run()
        executor.check()
        assert allocations.held()
        del executor
    assert allocations.held() == []


def test_a_run_that_fails_leaves_nothing_behind(device, monkeypatch):
    """`record` goes on with the next model when one has failed."""

    def fail(_executor, _task):
        raise RuntimeError("the device fell off the bus")

    monkeypatch.setitem(DecodeExecutor.operations, "attention", fail)
    with Allocations() as allocations:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="off the bus"), open_backend(device) as backend:
                measured(OPT, device, backend, JOBS[:1], ROW)
    assert allocations.held() == []


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc/self/statm")
def test_each_model_takes_the_memory_of_the_one_before():
    """The median over several models, since one growth may be of the allocator or of a thread."""
    model = replace(OPT, hidden_size=512, intermediate_size=2048)
    model_bytes = model.n_layers * model.layer_weight_bytes
    assert model_bytes > 20e6
    sizes = []
    for _ in range(4):
        with Allocations() as allocations, open_backend("cpu") as backend:
            measured(model, "cpu", backend, [Workload(1, 8, 1)], ROW)
        assert allocations.made_bytes() > model_bytes
        assert allocations.held() == []
        sizes.append(resident_bytes())
    growths = [later - earlier for earlier, later in pairwise(sizes)]
    assert median(growths) < 0.3 * model_bytes
