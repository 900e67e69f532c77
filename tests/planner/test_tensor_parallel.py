"""Tensor parallelism: what each GPU holds, computes and loads, and the all-reduces between them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from builders import (
    LATENT,
    MOE,
    both_engines,
    examples,
    machine,
    make_plan,
    models,
    policy_s,
    straight_machines,
    tiny_model,
    workloads,
)
from hypothesis import given
from hypothesis import strategies as st

import planner.decode.make
import planner.decode.planner
import planner.decode.problem
from measure.run import run
from planner import DecodePlan
from planner.decode.lower import lower, replicate
from planner.restore import RestorePlanner, behind_link
from sim import find_hardware, find_model, simulate
from sim.engine.sharing import machine_of_one_gpu
from sim.errors import BadInput, DoesNotFit
from sim.graph.jobs import RestoreRequest, Workload
from sim.machine.all_reduce import AllReduce, AllReduceTable
from sim.machine.curves import Curve
from sim.machine.links import Uplink
from sim.machine.provenance import SourcedValue
from sim.model.kernels import ExpertsKernel
from sim.model.operations import kernels
from sim.progress import Silent

FREE = AllReduce("datasheet", 1e30, 1e-30)
SIZED = tiny_model(n_heads=4, n_kv_heads=4, hidden_size=16, intermediate_size=64)
JOB = Workload(batch_size=2, prompt_tokens=6, gen_tokens=1)


def matmul_parameters(model) -> int:
    """Elements of the matrices that a token passes through on one GPU, by hand."""
    qkv = model.hidden_size * 4 * (4 + 2 * 4)  # 4 query, 4 key and 4 value heads of 4 elements
    out, mlp = 16 * model.hidden_size, 2 * model.hidden_size * 64
    return model.n_layers * (qkv + out + mlp) + model.hidden_size * 64


def test_a_step_is_half_the_products_and_two_all_reduces_a_layer():
    # The batch of 2 has 2 x 16 x 2 = 64 bytes: a ring of 2 takes 2 x (1 ms + 64 / 2 / 1e6 B/s).
    ring = AllReduce("datasheet", bytes_per_s=1e6, step_s=1e-3)
    fast_memory = machine(flops_per_s=1e6, memory_bytes_per_s=1e30, all_reduce=ring)
    part = SIZED.shard(2)
    plan = make_plan(part, fast_memory, JOB, "resident")
    products_s = 2 * 2 * matmul_parameters(SIZED) / 2 / 1e6
    all_reduces_s = 2 * SIZED.n_layers * 2 * (1e-3 + 64 / 2 / 1e6)
    assert plan.makespan_s == pytest.approx(products_s + all_reduces_s, rel=1e-9)
    both_engines(plan.simulated_graph(), fast_memory)


def test_each_gpu_loads_its_heads_over_its_own_link():
    slow = machine(flops_per_s=1e30, memory_bytes_per_s=1e30, h2d=1e3, d2h=1e30, all_reduce=FREE)
    whole, part = (make_plan(one, slow, JOB, "load-all") for one in (SIZED, SIZED.shard(2)))
    kv_bytes = 2 * 6 * SIZED.n_layers * 2 * 16 * 2
    assert whole.makespan_s == pytest.approx(kv_bytes / 1e3)
    assert part.makespan_s == pytest.approx(kv_bytes / 2 / 1e3)


def test_behind_a_shared_uplink_two_gpus_load_no_faster_than_one():
    shared = (Uplink("switch", (0, 1), 1e3, 1e30),)
    slow = machine(flops_per_s=1e30, memory_bytes_per_s=1e30, h2d=1e3, d2h=1e30, uplinks=shared)
    slow = replace(slow, all_reduce=FREE)
    whole, part = (make_plan(one, slow, JOB, "load-all") for one in (SIZED, SIZED.shard(2)))
    assert part.makespan_s == pytest.approx(whole.makespan_s)
    request = RestoreRequest(prompt_tokens=9, cached_tokens=8, chunk_tokens=4, io_chunk_tokens=4)
    ttft_s = [make_plan(one, slow, request, "load-only").ttft_s for one in (SIZED, SIZED.shard(2))]
    assert ttft_s[1] == pytest.approx(ttft_s[0])


def test_the_time_of_an_all_reduce():
    table = AllReduceTable(4, Curve((100.0, 200.0), (1.0, 3.0)))
    made = AllReduce("measured", bytes_per_s=10.0, step_s=0.5, tables=(table,))
    assert made.seconds(4, 150) == (2.0, "measured", True)
    assert made.seconds(4, 400) == (6.0, "measured", False)
    # A ring of 3: 4 steps, each of half a second and a third of 60 bytes at 10 bytes/s.
    assert made.seconds(3, 60) == (4 * (0.5 + 2.0), "fitted", False)
    links = machine(h2d=50.0, d2h=40.0).links
    pcie_s, source, inside = AllReduce.over_pcie(links).seconds(2, 80)
    assert (pcie_s, source, inside) == (pytest.approx(2 * (10e-6 + 1.0)), "datasheet", True)


@pytest.mark.parametrize("gpus", [2, 4])
@pytest.mark.parametrize("name", ["llama-3.1-70b", "opt-30b", "qwen3-8b", "llama-3.1-70b-fp8"])
def test_parts_add_up_to_the_model(name, gpus):
    whole = find_model(name)
    part = whole.shard(gpus)
    positions = 0 if whole.rotary else whole.max_positions * whole.x_token_bytes  # on every GPU
    shared = whole.weight_bytes - positions
    assert gpus * (part.weight_bytes - positions) == pytest.approx(shared, rel=1e-4)
    assert gpus * part.kv_token_bytes == whole.kv_token_bytes
    assert part.x_token_bytes == whole.x_token_bytes
    job = Workload(batch_size=4, prompt_tokens=64, gen_tokens=1)
    flops = [
        sum(task.flops for task in lower("row", one, job, [[0] * one.n_layers]).tasks)
        for one in (whole, part)
    ]
    assert gpus * flops[1] == pytest.approx(flops[0], rel=1e-4)


def test_what_cannot_be_divided_is_on_every_gpu():
    gqa = tiny_model(n_heads=8, n_kv_heads=2, hidden_size=32)
    assert gqa.shard(4).n_kv_heads == 1  # two GPUs hold the same head
    assert gqa.shard(4).kv_token_bytes == gqa.kv_token_bytes // 2
    latent = replace(LATENT, n_heads=4).shard(2)
    assert latent.kv_token_bytes == LATENT.kv_token_bytes
    experts = replace(SIZED, moe=MOE).shard(2)
    assert (experts.moe.n_routed_experts, experts.moe.intermediate_size) == (8, 3)


def test_experts_are_divided_as_a_whole_or_in_width():
    whole = tiny_model(n_heads=4, n_kv_heads=4, hidden_size=16, gated_mlp=True, moe=MOE)
    width, experts = whole.shard(2), whole.shard(2, expert_gpus=2)
    assert (width.moe.intermediate_size, width.moe.gpus) == (3, 1)
    assert (experts.moe.intermediate_size, experts.moe.gpus) == (6, 2)
    # Half of 8 experts of 3 matrices 16 x 6 either way; the shared one is whole with --ep.
    layers = [part.layers[-1].ffn.matrices(16) for part in (width, experts)]
    assert [one["experts"] for one in layers] == [8 * 3 * 16 * 3, 4 * 3 * 16 * 6]
    assert [one["shared_experts"] for one in layers] == [3 * 16 * 3, 3 * 16 * 6]
    shapes = [
        next(one for one in kernels("mlp", 1, 1, part, 4) if isinstance(one, ExpertsKernel)).shape
        for part in (width, experts)
    ]
    flops = [one.roofline_s(4, one.touched(4), 16, 1.0, 1e30) for one in shapes]
    assert flops == [2 * 4 * 2 * 3 * 16 * 3] * 2
    assert shapes[1].touched(4) == pytest.approx(shapes[0].touched(4) / 2)
    fast = machine(gemm_bytes_per_s=1e6, all_reduce=FREE)
    steps_s = [policy_s(part, fast, JOB, "resident") for part in (width, experts)]
    assert max(steps_s) < policy_s(whole, fast, JOB, "resident")
    for gpus, expert_gpus, words in ((4, 3, "must divide --tp"), (1, 2, "must divide --tp")):
        with pytest.raises(BadInput, match=words):
            whole.shard(gpus, expert_gpus)
    with pytest.raises(BadInput, match="has no experts"):
        SIZED.shard(2, 2)


@examples(25)
@given(
    model=models(max_layers=3),
    hardware=straight_machines(),
    job=workloads(),
    policy=st.sampled_from(["resident", "load-all", "recompute-all"]),
)
def test_more_gpus_are_never_slower_with_free_all_reduces(model, hardware, job, policy):
    free = replace(hardware, all_reduce=FREE)
    sizes = [1, *(n for n in model.tensor_parallel_sizes if n <= model.n_kv_heads)]
    seconds = [policy_s(model.shard(n), free, job, policy) for n in sizes]
    assert all(after <= before * (1 + 1e-9) for before, after in pairwise(seconds))


@pytest.mark.parametrize("hardware", ["h100-sxm+pcie5-x16", "l40s+pcie4-x16", "b200+pcie5-x16"])
@pytest.mark.parametrize("name", ["llama-3.1-70b-fp8", "deepseek-v2-lite"])
def test_verbs_agree_on_what_one_gpu_holds(name, hardware):
    model, where = find_model(name).shard(4), find_hardware(hardware)
    plan = make_plan(model, where, Workload(1, 4096, 1), "resident")
    request = RestoreRequest(prompt_tokens=4096, cached_tokens=4095)
    restore = RestorePlanner(model, machine_of_one_gpu(where, model), request)
    kv_bytes = model.n_layers * 4096 * model.kv_token_bytes
    assert restore.device_bytes == model.weight_bytes + kv_bytes
    assert restore.cached_bytes == 4 * model.n_layers * 4095 * model.kv_token_bytes
    assert plan.model.weight_bytes + kv_bytes <= where.memory.job_device_bytes


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_the_gpus_share_the_host_s_one_network(tp):
    """All K and V cross it, however many GPUs wait for their parts."""
    model, job = SIZED.shard(tp), RestoreRequest(prompt_tokens=65, cached_tokens=64, tier="net")
    endless = machine(flops_per_s=1e30, memory_bytes_per_s=1e30, h2d=1e30, all_reduce=FREE)
    seen = machine_of_one_gpu(behind_link(endless, 1e3), model)
    planner = RestorePlanner(model, seen, job)
    kv_bytes = 64 * SIZED.n_layers * 2 * 16 * 2
    assert planner.choice("load-only").ttft_s == pytest.approx(kv_bytes / 1e3)


def test_all_gpus_copy_from_one_host_memory():
    """Links of 1 kB/s each, and 2.5 kB/s of host memory: 1, 2 and 2.5 kB/s in all."""
    endless = machine(flops_per_s=1e30, memory_bytes_per_s=1e30, h2d=1e3, d2h=1e30, all_reduce=FREE)
    host = replace(endless, host_dram=SourcedValue("datasheet", 2.5e3))
    kv_bytes = 2 * 6 * SIZED.n_layers * 2 * 16 * 2
    for gpus, rate in ((1, 1e3), (2, 2e3), (4, 2.5e3)):
        one = make_plan(SIZED, host, JOB, "load-all", gpus=gpus)
        assert one.makespan_s == pytest.approx(gpus * kv_bytes / rate)
        both_engines(one.simulated_graph(), host)
        assert make_plan(SIZED.shard(gpus), host, JOB, "load-all").makespan_s == pytest.approx(
            kv_bytes / rate
        )


def test_jobs_that_share_a_machine_add_up():
    free = machine(all_reduce=FREE)
    one = make_plan(SIZED.shard(2), free, JOB, "load-all")
    two = make_plan(SIZED.shard(2), free, JOB, "load-all", gpus=2)
    assert (one.gpus, one.jobs, two.gpus, two.jobs) == (2, 1, 4, 2)
    assert one.tokens_per_s == pytest.approx(JOB.batch_size / one.makespan_s)
    assert two.tokens_per_s == pytest.approx(2 * one.tokens_per_s)


def test_a_plan_file_holds_the_part_of_one_gpu(tmp_path):
    plan = make_plan(SIZED.shard(2), machine(all_reduce=FREE), JOB)
    plan.save(tmp_path / "plan.json")
    loaded = DecodePlan.load(tmp_path / "plan.json")
    assert loaded == plan
    assert loaded.simulate().makespan_s == plan.makespan_s


def test_refusals():
    with pytest.raises(BadInput, match=r"--tp\(=3\) must divide the 4 query heads .* 1, 2, 4\."):
        SIZED.shard(3)
    with pytest.raises(BadInput, match="already divided over 2 GPUs"):
        SIZED.shard(2).shard(2)
    with pytest.raises(BadInput, match="can be planned and simulated but not run"):
        run(make_plan(SIZED.shard(2), machine(), JOB), "cpu", 1, 0, Silent())
    small = find_hardware("h100-sxm+pcie5-x16")
    with pytest.raises(DoesNotFit, match=r"2 GPUs hold them: --tp 2"):
        make_plan(find_model("llama-3.1-70b"), small, Workload(1, 64, 1))
    uneven = machine(uplinks=(Uplink("a", (0,), 1e3, 1e3), Uplink("b", (1,), 2e3, 2e3)))
    with pytest.raises(BadInput, match="uplinks of different rates"):
        make_plan(SIZED.shard(2), uneven, RestoreRequest(prompt_tokens=9, cached_tokens=8))


@pytest.mark.parametrize("uplinks", [(), (Uplink("switch", tuple(range(4)), 3e9, 3e9),)])
def test_gpus_that_do_the_same_are_simulated_once_with_the_times_of_all(uplinks, monkeypatch):
    """The graph of all four is built for the plan's hash only."""
    hardware = replace(machine(h2d=2e9, d2h=2e9), uplinks=uplinks)
    sizes = []

    def counted(graph, devices):
        sizes.append(devices)
        return replicate(graph, devices)

    for module in (planner.decode.make, planner.decode.problem, planner.decode.planner):
        monkeypatch.setattr(module, "replicate", counted)
    job = Workload(2, 40, 2, kv_bits=8)  # no other system keeps a cache in 8 bits
    plan = make_plan(SIZED.shard(4), hardware, job, keep=True)
    assert sizes.count(4) == 1
    whole = plan.lower()
    assert (whole.n_devices, whole.sha256) == (4, plan.graph_sha256)
    assert simulate(whole, hardware).makespan_s == pytest.approx(plan.makespan_s, rel=1e-12)
    assert plan.simulate().makespan_s == pytest.approx(plan.makespan_s, rel=1e-12)
