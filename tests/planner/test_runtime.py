"""Serving runtimes as data: what each field changes, and that times follow from it."""

from __future__ import annotations

import json
import time
from dataclasses import fields, replace

import pytest
from builders import machine, tiny_model

from measure.run import run
from planner import Job, PlanOptions, make_plan
from planner.decode.other_systems import other_system_graph
from planner.decode.policies import POLICIES
from planner.decode.split import Residency
from planner.restore.planner import RestorePlanner
from planner.runtime import restore_machine, restore_request
from sim import find_hardware, find_model, simulate
from sim.catalog import DATA, find_runtime, runtime_names
from sim.errors import BadFile, BadInput, NotMeasured, UnknownName
from sim.graph.jobs import RestoreRequest, Workload
from sim.lanes import H2D
from sim.machine.runtime import Amount, Flag, Runtime, Word
from sim.progress import Silent

JOB = Workload(batch_size=2, prompt_tokens=8, gen_tokens=2)
LLAMA, H100 = find_model("llama-3.1-8b"), find_hardware("h100-sxm+pcie5-x16")
VLLM = find_runtime("vllm")


def changed(runtime: Runtime, **values) -> Runtime:
    """The runtime with some fields of other values."""
    kinds = {bool: Flag, str: Word}
    return replace(
        runtime,
        **{name: kinds.get(type(one), Amount)(one, "test") for name, one in values.items()},
    )


def ttft_s(
    runtime: Runtime, tokens=2000, hardware=H100, policy="load-only", engine="fast"
) -> float:
    request = restore_request(
        runtime, RestoreRequest(prompt_tokens=tokens, cached_tokens=tokens - 1)
    )
    driven = restore_machine(runtime, hardware, LLAMA)
    by_layer = runtime.restore.value == "by-layer"
    planner = RestorePlanner(LLAMA, driven, request, engine=engine, by_layer=by_layer)
    return planner.choice(policy).ttft_s


@pytest.mark.parametrize("name", runtime_names())
def test_every_shipped_runtime_gives_the_source_of_each_field(name):
    runtime = find_runtime(name)
    assert runtime.name == name
    assert runtime.decode.value in POLICIES
    given_fields = json.loads((DATA / "runtimes" / f"{name}.json").read_text())
    for parts in (runtime, *runtime.variants):
        for field in {one.name for one in fields(Runtime)} & set(given_fields):
            value = getattr(parts, field, None)
            if isinstance(value, Word | Amount | Flag):
                assert len(value.source) > 5, field
    assert runtime.page.startswith("https://")


def test_kvoverlap_is_the_executor_that_plans_are_made_for_anyway():
    own, job = find_runtime("kvoverlap"), Job(tiny_model(n_layers=3), machine(), JOB)
    assert own.plans_itself
    plain, named = (make_plan(job, PlanOptions(runtime=one)) for one in (None, own))
    assert plain.graph_sha256 == named.graph_sha256
    assert plain.makespan_s == named.makespan_s
    request = RestoreRequest(prompt_tokens=200, cached_tokens=199, io_chunk_tokens=64)
    restores = [
        make_plan(Job(tiny_model(n_layers=3), machine(), request), PlanOptions(runtime=one))
        for one in (None, own)
    ]
    assert restores[0].ttft_s == restores[1].ttft_s
    assert "runtime" not in restores[0].to_dict()
    assert restores[1].answer()["runtime"] == "kvoverlap"


def test_vllm_copies_blocks_of_two_mebibytes_and_adds_its_host_time_once():
    assert VLLM.block_bytes(LLAMA) == 2 * 2**20
    driven = VLLM.drives(H100, LLAMA)
    block_s = 3.556e-6 + 2 * 2**20 / 51.75e9
    assert driven.links.h2d.copy_s(20 * 2**20)[0] == pytest.approx(10 * block_s)
    assert driven.dispatch.kernel_s == 0.0
    slower = changed(VLLM, request_s=VLLM.request_s.value + 0.01)
    assert ttft_s(slower) == pytest.approx(ttft_s(VLLM) + 0.01)


def test_larger_blocks_never_slow_a_load():
    times = [ttft_s(changed(VLLM, block_tokens=2**power), 600) for power in range(10)]
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("name", ["vllm", "sglang-hicache"])
def test_layer_wise_loading_is_never_slower_than_loading_first(name):
    runtime = find_runtime(name)
    whole, layers = (ttft_s(changed(runtime, restore=how)) for how in ("whole", "by-layer"))
    assert layers < whole
    assert ttft_s(runtime, policy="joint") <= layers


def test_offloading_changes_times_and_a_faster_link_shortens_them():
    computed, loaded = ttft_s(VLLM, policy="compute-only"), ttft_s(VLLM)
    assert loaded < computed
    assert ttft_s(VLLM, hardware=H100.with_faster("link", 2.0)) < loaded
    assert ttft_s(VLLM, hardware=H100.with_faster("link", 2.0), policy="compute-only") == computed


def test_the_predictor_s_own_time_never_enters_a_clock(monkeypatch):
    before = ttft_s(VLLM)

    def slow() -> float:
        raise AssertionError("a prediction read the clock")

    for name in ("time", "perf_counter", "monotonic", "process_time"):
        monkeypatch.setattr(time, name, slow)
    assert ttft_s(VLLM, engine="simpy") == pytest.approx(before, rel=1e-9)


def test_more_kinds_of_layers_never_shrink_the_capacity():
    """Layers with a window hold no more than without one, so that as many tokens fit or more."""
    plain = replace(tiny_model(n_layers=4), max_positions=10_000)
    mixed = replace(plain, sliding_window=64, full_attention_layers=(0, 2))
    request = RestoreRequest(prompt_tokens=5000, cached_tokens=4999)
    needs = [RestorePlanner(one, machine(), request).device_bytes for one in (plain, mixed)]
    assert needs[1] <= needs[0]
    assert RestorePlanner(mixed, machine(), request).cached_bytes <= (
        RestorePlanner(plain, machine(), request).cached_bytes
    )


def test_llama_cpp_copies_a_layer_and_then_attends_to_it():
    model, hardware = tiny_model(n_layers=3), machine()
    timeline = simulate(other_system_graph("llama.cpp", model, JOB), hardware)
    stores = [task.op == "store_kv" for task in timeline.graph.tasks]
    in_series = sum(
        one for one, store in zip(timeline.duration_s, stores, strict=True) if not store
    )
    assert timeline.makespan_s == pytest.approx(in_series)
    ring = simulate(other_system_graph("llama.cpp-ring", model, JOB), hardware)
    assert ring.makespan_s < timeline.makespan_s
    assert ring.makespan_s >= ring.busy_s((0, H2D))


def test_each_resident_layer_saves_its_copies():
    model = tiny_model(n_layers=3)
    times, loaded = [], []
    for kept in range(4):
        residency = Residency(tuple(8 if at < kept else 0 for at in range(3)), (0, 0, 0))
        timeline = simulate(other_system_graph("llama.cpp", model, JOB, residency), machine())
        times.append(timeline.makespan_s)
        loaded.append(sum(one.bytes for one in timeline.graph.tasks if one.op == "load_kv"))
    assert times == sorted(times, reverse=True)
    assert loaded == [loaded[0] * left // 3 for left in (3, 2, 1, 0)]


def test_a_runtime_s_plan_comes_back_from_disk_with_its_graph(tmp_path):
    options = PlanOptions(runtime=find_runtime("llama.cpp"), resident_layers=1)
    made = make_plan(Job(tiny_model(n_layers=3), machine(), JOB), options)
    made.save(tmp_path / "plan.json")
    again = type(made).load(tmp_path / "plan.json")
    assert again.simulate().makespan_s == pytest.approx(made.makespan_s)
    assert again.runtime == made.runtime
    assert made.residency.kv_tokens == (8, 0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"restore": {"value": "soon", "source": "x"}}, "restore(='soon') must be one of best"),
        (
            {"decode": {"value": "swap", "source": "x"}},
            "decode(='swap') must be one of lp, resident",
        ),
        ({"copies": {"value": "dma", "source": "x"}}, "copies(='dma') must be one of engine, kern"),
        ({"request_s": {"value": 2, "source": "x"}}, "request_s(=2) must be below 0.5 s"),
        ({"block_tokens": {"value": 1.5, "source": "x"}}, "block_tokens(=1.5) must be a whole"),
        ({"prefill_frac": {"value": 0, "source": "x"}}, "prefill_frac(=0) must be above 0"),
        ({"blocks": 3}, "blocks"),
        ({"request_s": 0.1}, "request_s"),
    ],
)
def test_a_wrong_runtime_file_is_refused(tmp_path, change, message):
    content = json.loads((DATA / "runtimes" / "vllm.json").read_text()) | change
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content))
    with pytest.raises(BadFile) as caught:
        find_runtime(str(path))
    assert message in str(caught.value)


def test_a_plan_of_a_runtime_is_not_run():
    options = PlanOptions(runtime=find_runtime("llama.cpp"))
    made = make_plan(Job(tiny_model(n_layers=3), machine(), JOB), options)
    with pytest.raises(BadInput, match=r"the plan predicts llama\.cpp, and runs are of"):
        run(made, "cpu", 1, 0, Silent())


def test_what_a_runtime_cannot_do_is_said():
    job = Job(tiny_model(n_layers=3), machine(), JOB)
    with pytest.raises(BadInput, match="vllm does not choose whole layers"):
        make_plan(job, PlanOptions(runtime=VLLM, resident_layers=1))
    with pytest.raises(BadInput, match="from 0 to the 3 layers"):
        make_plan(job, PlanOptions(runtime=find_runtime("llama.cpp"), resident_layers=4))
    with pytest.raises(NotMeasured, match="no figures of kernel copies"):
        make_plan(job, PlanOptions(runtime=find_runtime("lmcache")))
    with pytest.raises(UnknownName, match="runtime 'vlm' is unknown; did you mean"):
        find_runtime("vlm")
