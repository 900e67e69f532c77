"""What stays on the device: the graph, the LP's choice under the memory row, and real tensors."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import (
    examples,
    machine,
    make_plan,
    models,
    straight_machines,
    times,
    tiny_model,
    with_room,
    workloads,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from tiny import JOB, LLAMA, OPT, filled_cache, simulated

from hw import DecodeExecutor, prefilled_caches, random_weights, resident_decode
from planner import DecodePlan
from planner.decode.lower import lower
from planner.decode.planner import DecodePlanner
from planner.decode.policies import BASELINES
from planner.decode.problem import DecodeProblem
from planner.decode.split import Residency, evenly_spaced
from planner.lp.schedule import Relaxation
from sim.cost.model import CostModel
from sim.engine.api import simulate
from sim.errors import BadInput, DoesNotFit
from sim.graph.jobs import Workload
from sim.graph.memory import footprint
from sim.lanes import COMPUTE

ROOM = st.floats(0.0, 1.2)


def test_the_tasks_of_a_layer_by_hand():
    model, job = tiny_model(n_layers=2), Workload(1, 8, 2)
    kept = Residency((3, 8), (2, 0))
    graph = lower("row", model, job, [[4, 0], [4, 0]], residency=kept)
    ranges = {
        one.op: (one.token_start, one.token_stop)
        for one in graph.tasks
        if (one.step, one.layer) == (1, 0)
    }
    assert ranges == {
        "place_kv": (0, 3),
        "recompute_resident": (3, 5),
        "load_x": (5, 7),
        "recompute": (5, 7),
        "load_kv": (7, 9),
        "qkv": (9, 10),
        "store_kv": (9, 10),
        "attention": (9, 10),
        "mlp": (9, 10),
    }
    whole = {one.op for one in graph.tasks if one.layer == 1}
    assert whole == {"qkv", "attention", "mlp"}
    assert graph.slots == 2
    need = footprint(graph)
    # 3 tokens of K and V (32 bytes) and 2 of X (16 bytes), once though there are two steps
    assert need.resident_bytes == 3 * 32 + 2 * 16


def test_a_resident_part_is_ready_before_any_load():
    model, job = tiny_model(n_layers=1), Workload(1, 8, 1)
    kept = Residency((3,), (2,))
    graph = lower("row", model, job, [[2]], residency=kept)
    hardware = machine(h2d=1.0)
    spans = times(simulate(graph, hardware))
    assert spans["s0.L0.load_kv"] == (0.0, 3 * 32.0)
    assert spans["s0.L0.place_kv"][1] < spans["s0.L0.recompute_resident"][1] < 1.0
    assert spans["s0.L0.attention"][0] == pytest.approx(96.0)
    costs = CostModel(hardware, model, job)
    placed = costs.operations.compute("place_kv", 3, 3)
    # 3 tokens of 32 bytes are read and written
    assert placed.seconds == pytest.approx(2 * 3 * 32 / 1e9)


@pytest.mark.parametrize(
    ("kept", "split", "words"),
    [
        (Residency((9, 0), (0, 0)), [[0, 0]], "within the 8 tokens"),
        (Residency((5, 0), (4, 0)), [[0, 0]], "within the 8 tokens"),
        (Residency((0,), (0,)), [[0, 0]], "for 2 layers"),
        (Residency((0, 0), (0, 0), (2,)), [[0, 0]], "among the layers"),
        (Residency((0, 0), (3, 0)), [[2, 0]], "between 3 and the 8"),
        (Residency((6, 0), (0, 0)), [[3, 0]], "between 0 and the 2"),
        (Residency((8, 0), (0, 0)), [[1, 0]], "between 0 and the 0"),
    ],
)
def test_counts_that_do_not_fit_each_other_are_refused(kept, split, words):
    with pytest.raises(BadInput, match=words):
        lower("row", tiny_model(), Workload(1, 8, 1), split, residency=kept)


@given(
    models(4), straight_machines(), workloads(max_gen=2), ROOM, st.sampled_from(["row", "column"])
)
@examples(60)
def test_what_is_kept_fits_pays_and_is_bounded(model, hardware, job, frac, schedule):
    hardware = with_room(hardware, model, job, schedule, frac)
    moved = make_plan(model, hardware, job, schedule=schedule)
    plan = make_plan(model, hardware, job, schedule=schedule, keep=True)
    assert footprint(plan.lower()).device_bytes <= hardware.memory.device_bytes
    assert plan.makespan_s <= moved.makespan_s * (1 + 1e-9)
    assert plan.lower_bound_s <= plan.makespan_s * (1 + 1e-9)
    assert plan.lp_objective_s == pytest.approx(plan.makespan_s, rel=1e-6)
    plan.check()
    assert plan.lower().sha256 == plan.graph_sha256


@given(models(3), straight_machines(), workloads(max_gen=2), ROOM)
@examples(30)
def test_no_uniform_residency_beats_the_plan(model, hardware, job, frac):
    hardware = with_room(hardware, model, job, "row", frac)
    assume(job.prompt_tokens >= 5)
    planner = DecodePlanner(DecodeProblem(model, hardware, job, keep=True))
    best_s = planner.problem.simulate(planner.best.split, planner.best.residency).makespan_s
    n, prompt = model.n_layers, job.prompt_tokens
    costs = CostModel(hardware, model, job)
    one_token_s = n * costs.operations.copy("h2d", job.batch_size * model.kv_token_bytes).seconds
    for kv in range(0, prompt, max(1, prompt // 4)):
        for x in range(0, prompt - kv, max(1, prompt // 4)):
            for count in range(x, prompt - kv + 1, max(1, prompt // 4)):
                kept = Residency((kv,) * n, (x,) * n)
                split = [[count] * n] * job.gen_tokens
                timeline = planner.problem.simulate(split, kept)
                work_s = planner.problem.lane_work_s(split, kept)
                assert work_s <= timeline.makespan_s * (1 + 1e-9)
                if footprint(timeline.graph).device_bytes <= hardware.memory.device_bytes:
                    assert best_s <= timeline.makespan_s * 1.005 + 2 * one_token_s
                    assert planner.lower_bound_s() <= timeline.makespan_s * (1 + 1e-9)


def test_with_room_for_everything_nothing_is_moved():
    model, job = tiny_model(n_layers=3), Workload(2, 20, 3)
    plan = make_plan(model, machine(h2d=2e6), job, keep=True)
    assert plan.makespan_s == pytest.approx(plan.baselines["resident"], rel=1e-9)
    assert {one.op for one in plan.lower().tasks if one.lane != COMPUTE} == set()
    assert plan.steps[2].resident_tokens == (22, 22, 22)


@pytest.mark.parametrize(("value", "tokens"), [(12 - 1e-9, 12), (12.0, 12), (11.9, 11)])
def test_a_count_that_the_solver_rounds_down_stays_whole(value, tokens):
    model, job = tiny_model(), Workload(2, 20, 1)
    planner = DecodePlanner(DecodeProblem(model, machine(h2d=2e6), job, keep=True))
    planner.problem.__dict__["residency_at_start"] = planner.problem.least_resident
    found = Relaxation(1.0, {}, {0: value}, {0: 1 - 1e-9}, {}, (), 0.0, None)
    residency = planner._whole_residency(found)
    assert (residency.kv_tokens, residency.x_tokens) == ((tokens, 0), (1, 0))


def test_memory_is_worth_what_solving_again_says():
    model, job = tiny_model(n_layers=12), Workload(2, 200, 1)
    hardware = with_room(machine(h2d=2e6, flops_per_s=3e7), model, job, "row", 0.3)
    plan = make_plan(model, hardware, job, keep=True)
    (memory,) = (one for one in plan.sensitivities if one.part == "memory")
    assert memory.saved_frac > 0.02
    assert memory.saved_by_duals_frac == pytest.approx(memory.saved_frac, rel=0.05)


def column_planner(model, job, room_bytes, **rates):
    """A planner with so many bytes beside what a column schedule that stages X takes."""
    need = footprint(
        DecodeProblem(model, machine(), job, "column").simulate([[0] * model.n_layers]).graph
    )
    staged_x_bytes = 2 * job.batch_size * job.max_tokens * model.x_token_bytes
    memory = machine().memory
    memory = replace(memory, device_bytes=need.device_bytes + staged_x_bytes + room_bytes)
    return DecodePlanner(
        DecodeProblem(model, machine(memory=memory, **rates), job, "column", keep=True)
    )


@pytest.mark.parametrize("flops_per_s", [1e6, 1e8])
def test_no_other_number_of_layers_is_better_to_keep_the_weights_of(flops_per_s):
    model, job = tiny_model(n_layers=6), Workload(1, 20, 1, 2)
    rates = {"h2d": 2e6, "flops_per_s": flops_per_s}
    made_s = {}
    for count in range(3):
        planner = column_planner(model, job, 2 * model.layer_weight_bytes + 1, **rates)
        kept = replace(planner.problem.least_resident, weight_layers=evenly_spaced(count, 6))
        planner.problem.__dict__["residency_at_start"] = kept
        made_s[count] = planner.problem.simulate(
            planner.best.split, planner.best.residency
        ).makespan_s
    chosen = column_planner(model, job, 2 * model.layer_weight_bytes + 1, **rates)
    best_s = chosen.problem.simulate(chosen.best.split, chosen.best.residency).makespan_s
    assert best_s <= min(made_s.values()) * 1.005


def test_weights_that_stay_lie_apart():
    model, job = tiny_model(n_layers=6), Workload(1, 20, 1, 2)
    room_bytes = 2 * model.layer_weight_bytes + 1
    planner = column_planner(model, job, room_bytes, h2d=2e6, flops_per_s=1e6)
    choice = planner.best
    assert choice.residency.weight_layers == (1, 4)
    graph = planner.problem.simulate(choice.split, choice.residency).graph
    assert {one.layer for one in graph.tasks if one.op == "load_weights"} == {0, 2, 3, 5}


@pytest.mark.parametrize(
    ("count", "layers", "expected"),
    [(1, 4, (2,)), (2, 4, (1, 3)), (4, 4, (0, 1, 2, 3)), (0, 3, ())],
)
def test_evenly_spaced(count, layers, expected):
    assert evenly_spaced(count, layers) == expected


def test_baselines_keep_nothing():
    model, job = tiny_model(), Workload(2, 20, 1)
    for policy in BASELINES:
        plan = make_plan(model, machine(), job, policy, keep=True)
        assert plan.steps[0].resident_tokens == (0, 0)


def test_a_plan_file_holds_what_is_kept(tmp_path):
    hardware = with_room(machine(h2d=2e6), tiny_model(), Workload(2, 20, 3), "row", 0.4)
    plan = make_plan(tiny_model(), hardware, Workload(2, 20, 3), keep=True)
    assert any(plan.residency.kv_tokens) or any(plan.residency.x_tokens)
    plan.save(tmp_path / "plan.json")
    again = DecodePlan.load(tmp_path / "plan.json")
    assert again == plan
    assert again.simulated_graph().sha256 == plan.graph_sha256


def test_a_plan_file_with_a_changed_residency_is_refused():
    plan = make_plan(tiny_model(), machine(h2d=2e6), Workload(2, 20, 3), keep=True)
    step = replace(plan.steps[1], resident_tokens=(20, 21), loaded_tokens=(1, 0))
    with pytest.raises(BadInput, match="the same in every step"):
        replace(plan, steps=(plan.steps[0], step, plan.steps[2])).check()


def test_a_device_too_small_for_the_weights_alone_is_refused():
    small = replace(machine().memory, device_bytes=1000.0)
    with pytest.raises(DoesNotFit, match="weights"):
        make_plan(tiny_model(), machine(memory=small), Workload(1, 20, 1), keep=True)


KEPT = {
    "parts of each layer": Residency((4, 2, 0), (3, 0, 5)),
    "a whole layer among others": Residency((4, 13, 0), (3, 0, 0)),
    "everything": Residency((13, 13, 13), (0, 0, 0)),
}


@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT)
@pytest.mark.parametrize("kv_bits", [None, 8])
@pytest.mark.parametrize("model", [OPT, LLAMA], ids=lambda model: model.name)
def test_a_run_computes_what_the_resident_decode_computes(backend, model, kv_bits, kept):
    row = [0 if count == 13 else 6 for count in kept.kv_tokens]
    job = replace(JOB, kv_bits=kv_bits)
    graph = lower("row", model, job, [row] * job.gen_tokens, residency=kept)
    weights = random_weights(model, 0, backend.device)
    reference = resident_decode(weights, filled_cache(weights, JOB, backend), JOB)
    cache = filled_cache(weights, job, backend)
    executor = DecodeExecutor(simulated(graph), weights, [cache], [reference], backend)
    for _ in range(2):
        executor.run()
        assert executor.check()["tokens_equal"] is True


def test_a_layer_with_a_short_window_keeps_all_or_nothing(backend):
    model = replace(LLAMA, family="mistral", sliding_window=6, full_attention_layers=(1,))
    whole = Residency((13, 4, 0), (0, 3, 0))
    graph = lower("row", model, JOB, [[0, 5, 3]] * JOB.gen_tokens, residency=whole)
    assert {one.op for one in graph.tasks if one.layer == 0} == {"qkv", "attention", "mlp"}
    weights = random_weights(model, 0, backend.device)
    cache = filled_cache(weights, JOB, backend)
    reference = resident_decode(weights, cache, JOB)
    executor = DecodeExecutor(simulated(graph), weights, [cache], [reference], backend)
    executor.run()
    assert executor.check()["tokens_equal"] is True
    with pytest.raises(BadInput, match="tokens leave its sliding window"):
        lower("row", model, JOB, [[0] * 3] * 3, residency=Residency((4, 0, 0), (0, 0, 0)))


def test_the_lp_keeps_no_part_of_a_windowed_layer():
    model, job = tiny_model(n_layers=8, sliding_window=20), Workload(2, 60, 2)
    model = replace(model, full_attention_layers=(1, 3, 5, 7))
    hardware = with_room(machine(h2d=2e6), model, job, "row", 0.2)
    plan = make_plan(model, hardware, job, keep=True)
    plan.check()
    assert plan.makespan_s < make_plan(model, hardware, job).makespan_s
    assert plan.lower_bound_s <= plan.makespan_s
    assert all(plan.residency.kv_tokens[layer] == 0 for layer in (0, 2, 4, 6))
    assert any(plan.residency.kv_tokens) or any(plan.residency.x_tokens)


def test_batches_of_a_column_schedule_keep_their_own(backend):
    job = Workload(batch_size=2, prompt_tokens=13, gen_tokens=3, n_batches=2)
    kept = Residency((4, 13, 0), (2, 0, 3), (0, 1))
    graph = lower("column", OPT, job, [[5, 0, 5]] * 3, residency=kept)
    weights = random_weights(OPT, 0, backend.device)
    caches = prefilled_caches(weights, job, 1, backend)
    references = [resident_decode(weights, cache, job) for cache in caches]
    executor = DecodeExecutor(simulated(graph), weights, caches, references, backend)
    executor.run()
    assert executor.check()["tokens_equal"] is True
