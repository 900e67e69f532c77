"""No copy races a kernel: the check against every pair of tasks, and against missing deps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from builders import LATENT, MOE, examples, machine, make_plan, tiny_model, with_room
from builders import graph as made
from builders import task as unit_task
from hypothesis import given
from hypothesis import strategies as st
from race_graphs import GRAPHS, RESTORE_GRAPHS, WINDOWED_RESTORES, decode_graphs
from restores import TIERS, request, restores
from touching import Pair, declared_conflicts

from planner import POLICIES
from planner.decode.lower import replicate
from planner.restore import RESTORE_POLICIES, RestorePlanner
from planner.restore.lower import split_graph, two_ended_graph
from planner.restore.split import RestoreSplit
from sim.errors import BadInput, RaceFound
from sim.graph.accesses import RESTORED_KV, Buffer, buffer_name, graph_accesses
from sim.graph.jobs import Workload
from sim.graph.races import Race, check_races, find_races
from sim.graph.tasks import Task, TaskGraph
from sim.lanes import COMPUTE, H2D
from sim.results.accuracy import case_folders
from sim.results.recording import Recording

FOLDERS = case_folders(Path(__file__).resolve().parents[2] / "data" / "recordings")


def without(graph: TaskGraph, later: str, earlier: str) -> TaskGraph:
    """The graph in which task `later` does not wait for task `earlier` any more."""
    at = graph.index[later]
    deps = tuple(dep for dep in graph.tasks[at].deps if dep != earlier)
    assert len(deps) == len(graph.tasks[at].deps) - 1
    tasks = list(graph.tasks)
    tasks[at] = replace(tasks[at], deps=deps)
    return replace(graph, tasks=tuple(tasks))


def with_one_dep_less(graph: TaskGraph) -> Iterator[TaskGraph]:
    return (without(graph, task.id, dep) for task in graph.tasks for dep in task.deps)


def needing_order(graph: TaskGraph) -> set[Pair]:
    """Conflicting tasks that are no alternatives for the same tokens."""
    tasks = graph.tasks
    return {
        (one, other)
        for (one, other), buffers in declared_conflicts(graph).items()
        if not tasks[one].claim
        or tasks[one].claim != tasks[other].claim
        or any(not buffer[0].startswith("K and V of layers") for buffer in buffers)
    }


def unordered(graph: TaskGraph, pairs: set[Pair]) -> set[Pair]:
    """The pairs between which no path of deps and of lanes leads, by transitive closure."""
    before: list[int] = []
    lane_last: dict[tuple[int, str], int] = {}
    for at, (task, deps) in enumerate(zip(graph.tasks, graph.dep_indices, strict=True)):
        lane = (task.device, task.lane)
        reached = 0
        for earlier in (*deps, *([lane_last[lane]] if lane in lane_last else [])):
            reached |= before[earlier] | 1 << earlier
        before.append(reached)
        lane_last[lane] = at
    return {(one, other) for one, other in pairs if not before[other] >> one & 1}


def found_pairs(graph: TaskGraph) -> set[Pair]:
    index = graph.index
    return {(index[race.first], index[race.second]) for race in find_races(graph)}


@pytest.mark.parametrize("name", GRAPHS)
def test_the_check_agrees_with_all_paths_for_every_missing_dep(name):
    graph = GRAPHS[name]
    assert find_races(graph) == []
    pairs = needing_order(graph)
    for mutant in with_one_dep_less(graph):
        assert found_pairs(mutant) == unordered(mutant, pairs)


NEEDED_DEPS = [
    # (graph, task that waits, task that it waits for, buffer)
    ("row", "s2.L2.load_kv", "s2.L0.attention", "KV slot 0"),
    ("row", "s1.L1.load_kv", "s0.L2.store_kv", "KV slot 0"),
    ("row", "s2.L2.load_x", "s2.L0.recompute", "X slot 0"),
    ("row", "s1.L0.load_x", "s0.L0.store_x", "host X of layer 0, batch 0"),
    ("row", "s0.L2.qkv", "s0.L0.store_x", "new token's X of slot 0"),
    ("row", "s2.L2.qkv", "s2.L0.store_kv", "KV slot 0"),
    ("row-8-bit", "s2.L1.load_kv", "s1.L2.dequantise", "quantised rows of slot 1"),
    ("row-8-bit", "s2.L2.quantise", "s2.L0.store_kv", "new token's quantised row of slot 0"),
    ("row-8-bit", "s1.L2.load_kv", "s0.L2.store_kv", "host K and V of layer 2, batch 0"),
    ("column", "s1.L0.recompute", "s0.L1.store_kv", "KV slot 1"),
    ("column", "s1.L1.qkv", "s1.L1.load_weights", "other weights of weight slot 0"),
    ("column-batches-4-bit", "s1.L0.b1.load_x", "s0.L2.b1.recompute", "X slot 1"),
    ("column-batches-4-bit", "s2.L2.b0.load_kv", "s2.L1.b0.dequantise", "quantised rows of slot 0"),
    ("hf-offloaded", "s0.L2.load_kv", "s0.L0.attention", "KV slot 0"),
    ("hf-offloaded", "s0.L0.store_kv", "s0.L0.load_kv", "host K and V of layer 0, batch 0"),
    ("flexgen", "s0.L1.stage_kv", "s0.L0.load_kv", "pinned staging buffer"),
    ("restore-lp-ssd", "load_kv.36", "read_kv.36", "host staging slot 1"),
    ("restore-two-ended-net", "fetch_kv.24", "load_kv.40", "host staging slot 0"),
    ("restore-two-ended-dram", "prefill.41", "load_kv.0", "K and V of layers 0 to 2"),
    ("restore-joint-ssd", "read_kv.L1.39", "load_x.L2.5", "host staging slot 1"),
    ("restore-joint-ssd", "L1.prefill.41", "load_kv.L1.39", "K and V of layers 1 to 1"),
    ("restore-layer-wise-dram", "L1.project.0", "load_x.L1.0", "X of layers 1 to 1"),
]


@pytest.mark.parametrize(("name", "later", "earlier", "buffer"), NEEDED_DEPS)
def test_a_missing_dep_is_found_by_name(name, later, earlier, buffer):
    races = find_races(without(GRAPHS[name], later, earlier))
    assert (earlier, later, buffer) in {(race.first, race.second, race.buffer) for race in races}


def test_weights_that_are_loaded_over_their_readers_are_found():
    graph = without(GRAPHS["column"], "s0.L2.load_kv_weights", "s0.L0.mlp")
    races = find_races(graph)
    buffer = "K and V weights of weight slot 0"
    assert races == [
        Race("s0.L0.qkv", "s0.L2.load_kv_weights", buffer, (0, 1)),
        Race("s0.L0.recompute", "s0.L2.load_kv_weights", buffer, (0, 1)),
    ]
    assert find_races(graph, limit=1) == races[:1]


def test_the_error_names_both_tasks_the_rows_and_the_missing_dep():
    graph = without(GRAPHS["row"], "s2.L2.load_kv", "s2.L0.attention")
    with pytest.raises(RaceFound) as raised:
        check_races(graph)
    assert str(raised.value) == (
        "tasks s2.L0.attention and s2.L2.load_kv touch rows [5, 10) of KV slot 0, at least one of "
        "them writes, and nothing fixes their order; make s2.L2.load_kv depend on s2.L0.attention."
    )


@pytest.mark.parametrize("name", ["row", "flexgen", "restore-joint-ssd"])
def test_each_device_has_buffers_of_its_own(name):
    graph = replicate(GRAPHS[name], 3)
    assert find_races(graph) == []
    last = next(task for task in reversed(graph.tasks) if task.op.startswith("load_kv"))
    races = find_races(without(graph, last.id, last.deps[0]))
    assert races
    assert all(race.second.startswith("g2.") for race in races)
    assert all(race.buffer.endswith(" of device 2") for race in races)


SMALL_MODELS = {
    "mha": tiny_model(n_layers=4),
    "windows": tiny_model(n_layers=4, sliding_window=5, full_attention_layers=(1,)),
    "latent": replace(LATENT, n_layers=3),
    "experts": replace(LATENT, n_layers=3, moe=MOE),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("model", SMALL_MODELS.values(), ids=SMALL_MODELS)
def test_no_policy_races(policy, model):
    graph = make_plan(model, machine(h2d=1e6), Workload(2, 24, 3), policy).lower()
    assert find_races(graph) == []


@pytest.mark.parametrize("schedule", ["row", "column"])
@pytest.mark.parametrize("memory_frac", [0.1, 0.5, 0.9])
def test_no_residency_of_the_planner_races(schedule, memory_frac):
    model, job = tiny_model(n_layers=4), Workload(2, 24, 3, 1 if schedule == "row" else 2)
    hardware = with_room(machine(h2d=1e6), model, job, schedule, memory_frac)
    plan = make_plan(model, hardware, job, "lp", schedule, keep=True)
    kept = plan.residency
    assert any((*kept.kv_tokens, *kept.x_tokens, *kept.weight_layers))
    assert find_races(plan.lower()) == []


@examples(80)
@given(decode_graphs())
def test_no_decode_graph_races(graph):
    assert find_races(graph) == []


@examples(30)
@given(decode_graphs(), st.data())
def test_the_check_agrees_with_all_paths_on_any_decode_graph(graph, data):
    waiting = [task for task in graph.tasks if task.deps]
    task = data.draw(st.sampled_from(waiting))
    mutant = without(graph, task.id, data.draw(st.sampled_from(task.deps)))
    assert found_pairs(mutant) == unordered(mutant, needing_order(mutant))


@examples(5)
@given(restores(), st.sampled_from(["dram", "ssd", "net"]), st.sampled_from([1.0, 0.3]))
def test_no_restore_policy_races(case, tier, gpu_share):
    model, hardware, job = case
    hardware = replace(hardware, restore=replace(hardware.restore, tiers=TIERS.tiers))
    job = replace(job, tier=tier, gpu_share=gpu_share)
    planner = RestorePlanner(model, hardware, job, engine="fast")
    for policy in RESTORE_POLICIES:
        graph = planner.choice(policy).timeline.graph
        assert find_races(graph) == []
        assert read_before_written(graph) == []


def read_before_written(graph: TaskGraph) -> list[tuple[str, str, int]]:
    """Rows of K and V that a task of a restore reads, although no task before it wrote them."""
    written: defaultdict[Buffer, set[int]] = defaultdict(set)
    found = []
    for task, accesses in zip(graph.tasks, graph_accesses(graph), strict=True):
        of_kv = [one for one in accesses if one.buffer[0] == RESTORED_KV]
        for buffer, start, stop, write in of_kv:
            if not write:
                missing = set(range(start, stop)) - written[buffer]
                found += [(task.id, buffer_name(buffer), row) for row in missing]
        for buffer, start, stop, write in of_kv:
            if write:
                written[buffer] |= set(range(start, stop))
    return found


@pytest.mark.parametrize("name", RESTORE_GRAPHS | WINDOWED_RESTORES)
def test_a_restore_reads_no_row_that_nothing_has_written(name):
    assert read_before_written((RESTORE_GRAPHS | WINDOWED_RESTORES)[name]) == []


def test_a_row_that_nothing_has_written_is_noticed():
    graph = WINDOWED_RESTORES["tiny-all-windows-load-only"]
    last = graph.index["load_kv.36"]
    assert graph.tasks[last].token_start == 0  # stands for all tokens before the windows
    others = [one for one in graph.tasks if not one.id.endswith("_kv.36")]
    later = [replace(one, deps=()) if one.op == "prefill" else one for one in others]
    missing = read_before_written(replace(graph, tasks=tuple(later)))
    assert {row for _, _, row in missing} == {36, 37, 38, 39}


@examples(60)
@given(st.data(), st.sampled_from(["dram", "ssd", "net"]))
def test_no_split_of_a_restore_races(data, tier):
    window = data.draw(st.none() | st.integers(2, 28))
    full = (1,) if window and data.draw(st.booleans()) else ()
    model = tiny_model(n_layers=3, sliding_window=window, full_attention_layers=full)
    job = request(30, cached_tokens=26, tier=tier)
    computed = sorted(data.draw(st.tuples(*[st.integers(0, 26)] * 3)), reverse=True)
    left = [26 - max(count, job.first_loaded(model, layer)) for layer, count in enumerate(computed)]
    projected = [data.draw(st.integers(0, count)) for count in left]
    graph = split_graph(model, job, RestoreSplit(tuple(computed), tuple(projected), True))
    assert find_races(graph) == []
    assert read_before_written(graph) == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parts[-3]}/{folder.name}")
def test_no_recorded_graph_races(folder):
    check_races(Recording.load(folder / "measured.json.gz").graph)


def of_claim(op: str, start: int, stop: int, claim: str = "kv") -> Task:
    lane, n_bytes = (COMPUTE, 0) if op == "prefill" else (H2D, 1)
    return Task(f"{op}.{start}", op, lane, 0, 0, start, stop, -1, n_bytes, 0, (), claim=claim)


FRONT = (of_claim("prefill", 0, 4), of_claim("prefill", 4, 8))
BACK = (of_claim("load_kv", 4, 8), of_claim("load_kv", 0, 4))


def claimed_graph(*tasks: Task) -> TaskGraph:
    graph = two_ended_graph(tiny_model(n_layers=1), request(9, cached_tokens=8))
    return replace(graph, tasks=tasks)


@pytest.mark.parametrize(
    ("tasks", "races"),
    [
        ((*FRONT, *BACK), 0),
        ((*FRONT, BACK[1]), 2),
        ((*FRONT, *reversed(BACK)), 3),
        ((*reversed(FRONT), *BACK), 3),
        ((FRONT[1], BACK[0]), 0),
        ((FRONT[1], *BACK), 2),
        ((*FRONT, *(replace(load, claim="other") for load in BACK)), 3),
        ((*FRONT, *(replace(load, claim="") for load in BACK)), 3),
    ],
    ids=[
        "two ends",
        "loads stop before the steps",
        "loads from the front",
        "steps from the back",
        "the last step only",
        "a load of what no step computes",
        "two claims",
        "no claim of the loads",
    ],
)
def test_only_the_two_ends_of_one_claim_need_no_order(tasks, races):
    assert len(find_races(claimed_graph(*tasks))) == races


def test_an_operation_of_another_kind_of_job_is_refused():
    with pytest.raises(BadInput, match="fetch_kv' is not part of a row job"):
        find_races(made(unit_task("fetch", "net", 3)))
