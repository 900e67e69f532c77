"""Restoring a cached prefix: timelines drawn by hand, a closed form, and properties of policies."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from builders import GQA, both_engines, examples, machine, make_plan, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from restores import figure, request, restores, step_machine

from planner import DecodePlan, Plan
from planner.restore import RESTORE_POLICIES, RestorePlan, RestorePlanner
from planner.restore.lower import split_graph, two_ended_graph
from planner.restore.planner import meeting_token
from planner.restore.replanning import Change, adapt
from planner.restore.split import RestoreSplit
from sim.cost.restore import RestoreCosts
from sim.errors import BadFile, BadInput, DoesNotFit, Mismatch, NotMeasured, UnknownName
from sim.graph.claims import claimed
from sim.lanes import COMPUTE, DISK, H2D
from sim.machine.availability import ALWAYS, Availability, Step
from sim.machine.curves import Curve, RaggedGrid
from sim.machine.prefill import Prefill, QueryHeads, Restore, Tier
from sim.machine.provenance import SourcedValue
from sim.machine.utilisation import UtilisationTable

POLICIES = RESTORE_POLICIES[:-1]


def spans(timeline) -> dict[str, tuple[float, float]]:
    """Times of the tasks that did something, rounded to what the drawings show."""
    return {
        span.task.id: (round(span.start_s, 6), round(span.end_s, 6))
        for span in timeline.spans
        if span.duration_s > 1e-9
    }


DROP = 4.0


@pytest.mark.parametrize(
    ("trace", "expected", "meeting"),
    [
        (
            ALWAYS,
            {
                "prefill.0": (0, 4),
                "prefill.4": (4, 8),
                "load_kv.14": (0, 2),
                "load_kv.12": (2, 4),
                "load_kv.10": (4, 6),
                "load_kv.8": (6, 8),
                "prefill.16": (8, 12),
            },
            8,
        ),
        (  # half the bandwidth from second 4: the front does two tokens more
            Availability((Step(DROP, ((H2D, 0.5),)),)),
            {
                "prefill.0": (0, 4),
                "prefill.4": (4, 8),
                "prefill.8": (8, 12),
                "load_kv.14": (0, 2),
                "load_kv.12": (2, 4),
                "load_kv.10": (4, 8),
                "prefill.16": (12, 16),
            },
            10,
        ),
        (  # half the device from second 4: the step that has begun is late
            Availability((Step(DROP, ((COMPUTE, 0.5),)),)),
            {
                "prefill.0": (0, 4),
                "prefill.4": (4, 12),
                "load_kv.14": (0, 2),
                "load_kv.12": (2, 4),
                "load_kv.10": (4, 6),
                "load_kv.8": (6, 8),
                "prefill.16": (12, 20),
            },
            8,
        ),
    ],
    ids=["steady", "bandwidth drop", "GPU-share drop"],
)
def test_two_ends_meet_where_the_drawing_says(trace, expected, meeting):
    job = request(17)
    graph = two_ended_graph(tiny_model(), job)
    timeline = both_engines(graph, step_machine(4.0, 1.0), trace)
    assert spans(timeline) == expected
    assert meeting_token(timeline, job) == meeting


def test_a_disk_and_the_link_work_on_two_chunks_at_once():
    job = request(9, io_chunk_tokens=4, tier="ssd")
    graph = split_graph(tiny_model(), job, RestoreSplit.even(tiny_model(), 0))
    assert spans(both_engines(graph, step_machine(3.0, 2.0, disk_tokens_per_s=1.0))) == {
        "read_kv.4": (0, 4),
        "load_kv.4": (4, 6),
        "read_kv.0": (4, 8),
        "load_kv.0": (8, 10),
        "prefill.8": (10, 13),
    }


def test_a_staging_buffer_is_read_into_again_only_when_it_is_free():
    job = request(13, io_chunk_tokens=2, tier="ssd")
    graph = split_graph(tiny_model(), job, RestoreSplit.even(tiny_model(), 0))
    drawn = spans(both_engines(graph, step_machine(3.0, 0.5, disk_tokens_per_s=2.0)))
    assert drawn["load_kv.10"] == (1, 5)  # the first of four buffers is free at second 5
    assert drawn["read_kv.4"] == (3, 4)
    assert drawn["read_kv.2"] == (5, 6)


def test_a_split_by_layer_computes_a_staircase_and_projects():
    model, job = tiny_model(), request(9)
    split = RestoreSplit((8, 4), (0, 2), by_layer=True)
    graph = split_graph(model, job, split)
    did = [(one.id, one.layers, one.deps) for one in graph.tasks]
    assert did == [
        ("prefill.0", 2, ()),
        ("L0.prefill.4", 1, ()),
        ("load_x.L1.4", 1, ()),
        ("load_kv.L1.6", 1, ()),
        ("L0.prefill.8", 1, ()),
        ("L1.project.4", 1, ("load_x.L1.4",)),
        ("L1.prefill.8", 1, ("load_kv.L1.6",)),
        ("head", 1, ()),
    ]
    x, kv = (graph.tasks[graph.index[name]].bytes for name in ("load_x.L1.4", "load_kv.L1.6"))
    assert (x, kv) == (2 * model.x_token_bytes, 2 * model.kv_token_bytes)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (RestoreSplit((4, 8), (0, 0), True), "must not rise"),
        (RestoreSplit((8, 8), (1, 0), True), "add up to the 8 cached"),
        (RestoreSplit((8,), (0,), True), "must hold 2 layers"),
        (RestoreSplit((8, 4), (0, 0), False), "must load by_layer"),
    ],
)
def test_a_split_that_is_none_is_refused(split, message):
    with pytest.raises(BadInput, match=message):
        split_graph(tiny_model(), request(9), split)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cached_tokens": 9}, "the last token of the prompt is always computed"),
        ({"gpu_share": 0.0}, "above 0 and at most 1"),
        ({"tier_kv_bits": 5}, "must be one of 3, 4, 8, 16"),
        ({"io_chunk_tokens": 0}, "at least 1"),
        ({"tier": "tape"}, "tier 'tape' is unknown"),
        ({"batch_size": 2}, "one sequence"),
    ],
)
def test_a_request_that_is_none_is_refused(changes, message):
    with pytest.raises(BadInput, match=message):
        request(9, **changes)


def test_a_step_is_priced_by_the_products_and_the_keys_before_it():
    flops_per_s, attention = 1e9, 1e6
    hardware = machine(
        flops_per_s=flops_per_s,
        memory_bytes_per_s=1e30,
        restore=Restore(Prefill(figure(attention), figure(0.5))),
    )
    model, job = tiny_model(), request(65, chunk_tokens=8)
    costs = RestoreCosts(hardware, model, job)
    matrices = 2 * (4 * 8 * 8 + 2 * 8 * 32)  # FLOPs of a token in a layer
    keys = sum(range(17, 25))  # token 16 attends to 17 keys, itself too
    expected = 8 * matrices / flops_per_s + 4 * 8 * keys / attention + 0.5 / 2
    assert costs.prefill(16, 8, 1).seconds == pytest.approx(expected)
    assert costs.prefill(16, 8, 2).seconds == pytest.approx(2 * expected)
    half = RestoreCosts(hardware, model, replace(job, gpu_share=0.5))
    assert half.prefill(16, 4, 2).seconds == pytest.approx(2 * expected, rel=0.15)


def measured_prefill(**changes):
    """Attention of tiny heads: tokens squared in ms for 2 heads, twice that for 4."""
    tokens = (4.0, 16.0, 64.0)
    seconds = tuple(1e-3 * count**2 for count in tokens)
    fan = RaggedGrid((2.0, 4.0), (Curve(tokens, seconds), Curve(tokens, seconds).scaled(2.0)))
    heads = QueryHeads(**{"head_dim": 4, "queries_per_kv": 1, "fan": fan, **changes})
    block = Prefill(SourcedValue("measured", 1.0), figure(0.0), heads=(heads,))
    return machine(flops_per_s=1e30, memory_bytes_per_s=1e30, restore=Restore(block))


def test_measured_attention_goes_at_the_rate_of_the_prompt_up_to_the_chunk():
    costs = RestoreCosts(measured_prefill(), tiny_model(), request(65))
    whole = costs.prefill(0, 32, 1)  # between samples, where only the square is right
    assert whole.seconds == pytest.approx(1e-3 * 32**2)
    assert whole.in_range
    part = costs.prefill(24, 8, 1)
    keys = sum(range(25, 33)) / sum(range(1, 33))
    assert part.seconds == pytest.approx(1e-3 * 32**2 * keys)
    assert not costs.prefill(0, 65, 1).in_range
    assert costs.prefill(0, 128, 1).seconds == pytest.approx(1e-3 * 128**2)


@pytest.mark.parametrize(
    ("changes", "factor"), [({"head_dim": 2}, 2.0), ({"queries_per_kv": 8}, 1.0)]
)
def test_heads_that_were_not_measured_go_at_the_nearest_ones_rate(changes, factor):
    found = RestoreCosts(measured_prefill(**changes), tiny_model(), request(65)).prefill(0, 16, 1)
    assert found.seconds == pytest.approx(factor * 1e-3 * 16**2)
    assert (found.source, found.in_range) == ("datasheet", False)  # the products' source


def test_faster_matrix_products_speed_measured_attention_up():
    faster = measured_prefill().with_faster("flops", 4.0)
    found = RestoreCosts(faster, tiny_model(), request(65)).prefill(0, 16, 1)
    assert found.seconds == pytest.approx(1e-3 * 16**2 / 4)


def test_products_that_were_timed_in_eight_bits_need_no_factor():
    tables = tuple(
        UtilisationTable(bits, 1e6, 1e30, 0.0, (1, 64), (8, 32), (8, 32), (share,) * 4)
        for bits, share in ((16, "2500 2500"), (8, "10000 10000"))
    )
    block = Restore(Prefill(figure(1e30), figure(0.0), figure(2.0)))
    base = machine(flops_per_s=1e6, memory_bytes_per_s=1e30, restore=block)
    hardware = replace(base, gemm=replace(base.gemm, utilisation=tables))
    seconds = [
        RestoreCosts(hardware, tiny_model(weight_bits=bits), request(65)).prefill(0, 8, 1).seconds
        for bits in (None, 8)
    ]
    assert seconds[0] == pytest.approx(4 * seconds[1])


def test_a_profile_without_figures_for_prefill_says_that_it_guesses():
    estimate = RestoreCosts(machine(), tiny_model(), request(65)).prefill(16, 8, 1)
    assert not estimate.in_range
    plan = make_plan(tiny_model(), machine(), request(65), "compute-only")
    assert plan.out_of_range_tasks == len(plan.lower().tasks) - 1  # all but the output head


def test_matrices_in_eight_bits_are_faster_by_the_profiles_factor():
    block = Restore(Prefill(figure(1e30), figure(0.0), figure(2.0)))
    hardware = machine(flops_per_s=1e6, memory_bytes_per_s=1e30, restore=block)
    seconds = [
        RestoreCosts(hardware, tiny_model(weight_bits=bits), request(65)).prefill(0, 8, 1).seconds
        for bits in (None, 8)
    ]
    assert seconds[0] == pytest.approx(2 * seconds[1])


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Tier("tape", figure(1.0)), "lane 'tape' must be disk or net"),
        (lambda: Tier(DISK, figure(0.0)), "must be above 0"),
        (lambda: Prefill(figure(0.0), figure(0.0)), "a rate of 0.0 must be above 0"),
        (lambda: figure(-1.0), "at least 0 and finite"),
    ],
)
def test_figures_that_cannot_be_are_refused(made, message):
    with pytest.raises(BadInput, match=message):
        made()


def test_a_what_if_of_faster_matrix_products_speeds_attention_up_too():
    base = step_machine(4.0, 1.0)
    faster = base.with_faster("flops", 3).restore.prefill.attention_flops_per_s.value
    assert faster == pytest.approx(3e30)
    assert base.with_faster("hbm", 3).restore == base.restore


def two_pointers(costs: RestoreCosts, layers: int) -> float:
    """Cake's schedule without tasks or events: two clocks that take tokens from both ends.

    In a layer with a window, tokens before the chunk in which it begins are not loaded; once no
    layer needs a token before those loaded, the front has nothing left to compute.
    """
    job = costs.workload
    front, back, clock, io_clock = 0, job.cached_tokens, 0.0, 0.0
    size = job.io_chunk_tokens
    begins = [costs.model.first_token(layer, back) for layer in range(layers)]
    while front < back and back > min(begins):
        if clock <= io_clock:
            stop = min(front - front % job.step_tokens + job.step_tokens, back)
            clock += costs.prefill(front, stop - front, layers).seconds
            front = stop
        else:
            start = max((back - 1) // size * size, front)
            loading = sum(begin < back for begin in begins)
            n_bytes = loading * (back - start) * costs.model.kv_token_bytes
            io_clock += costs.copy_s(H2D, n_bytes)
            back = start
    last = costs.prefill(job.cached_tokens, job.prompt_tokens - job.cached_tokens, layers)
    return max(clock, io_clock) + last.seconds + costs.operations.compute("head", 1, 1).seconds


@examples(60)
@given(restores())
def test_two_ends_agree_with_two_clocks(case):
    model, hardware, job = case
    job = replace(job, cached_tokens=job.prompt_tokens - 1)
    expected = two_pointers(RestoreCosts(hardware, model, job), model.n_layers)
    simulated = both_engines(two_ended_graph(model, job), hardware).makespan_s
    assert simulated == pytest.approx(expected)


@examples(25)
@given(restores(), st.sampled_from(POLICIES))
def test_every_tokens_kv_is_made_or_loaded_once_in_every_layer(case, policy):
    model, hardware, job = case
    timeline = RestorePlanner(model, hardware, job, cached_data="kv+x").choice(policy).timeline
    made: Counter[tuple[int, int]] = Counter()
    for one in claimed(timeline.graph, timeline.start_s):
        layers, start = range(one.layer, one.layer + one.layers), one.token_start
        if one.op == "load_kv":
            layers, start, _ = timeline.graph.loaded_rows(one)
        if one.op in ("prefill", "recompute", "load_kv"):
            for layer in layers:
                made.update((layer, token) for token in range(start, one.token_stop))
    attended = {
        (layer, token)
        for layer in range(model.n_layers)
        for token in range(model.first_token(layer, job.cached_tokens), job.prompt_tokens)
    }
    assert attended <= made.keys()
    assert set(made.values()) == {1}
    if model.sliding_window is None:
        assert len(made) == model.n_layers * job.prompt_tokens
    assert timeline.graph.tasks[-1].id == "head"
    computed = [task for task in timeline.graph.tasks if task.op == "prefill"]
    assert computed[-1].token_stop == job.prompt_tokens
    assert timeline.start_s[-1] == max(timeline.start_s)


@examples(25)
@given(restores())
def test_joint_never_loses_and_auto_takes_the_best(case):
    planner = RestorePlanner(*case, cached_data="kv+x")
    times = {policy: planner.choice(policy).ttft_s for policy in POLICIES}
    assert times["joint"] <= 1.01 * min(times.values())
    assert planner.choice("auto").ttft_s == min(times.values())
    assert times["lp"] <= min(times["compute-only"], times["load-only"])


@pytest.mark.parametrize(("heads", "projects"), [({}, True), (GQA, False)])
def test_x_pays_only_where_it_is_smaller_than_kv(heads, projects):
    hardware = machine(flops_per_s=3e9, memory_bytes_per_s=1e30, h2d=1e6)
    plan = make_plan(tiny_model(**heads), hardware, request(129), "joint", cached_data="kv+x")
    assert (plan.projected_tokens > 0) is projects
    assert plan.x_bytes == (128 * plan.model.n_layers * plan.model.x_token_bytes if projects else 0)


def test_x_that_is_not_cached_is_not_projected():
    hardware = machine(flops_per_s=3e9, memory_bytes_per_s=1e30, h2d=1e6)
    for policy in ("joint", "auto"):
        stored = make_plan(tiny_model(), hardware, request(129), policy, cached_data="kv+x")
        plan = make_plan(tiny_model(), hardware, request(129), policy)
        assert plan.projected_tokens == plan.x_bytes == 0 < stored.projected_tokens
        assert stored.ttft_s < plan.ttft_s <= min(plan.compute_only_s, plan.load_only_s)
    with pytest.raises(UnknownName, match="known: kv, kv"):
        make_plan(tiny_model(), hardware, request(129), cached_data="x")


def test_a_plan_is_read_back_and_refused_when_edited(tmp_path):
    hardware = step_machine(4.0, 1.0)
    for policy in POLICIES:
        plan = make_plan(tiny_model(), hardware, request(17), policy)
        plan.save(tmp_path / "plan.json")
        again = RestorePlan.load(tmp_path / "plan.json")
        assert again == Plan.load(tmp_path / "plan.json") == plan
        assert again.simulate().makespan_s == again.makespan_s == plan.ttft_s
        counts = (plan.computed_tokens, plan.projected_tokens, plan.loaded_tokens)
        assert sum(counts) == 17
    with pytest.raises(BadFile, match="holds 'restore-plan', not a kvoverlap 'plan' document"):
        DecodePlan.load(tmp_path / "plan.json")
    with pytest.raises(Mismatch, match="it was edited"):
        replace(again, form="compute-only").simulated_graph()


def test_what_cannot_be_planned_is_refused():
    hardware = step_machine(4.0, 1.0)
    with pytest.raises(NotMeasured, match="no tier on lane 'net'"):
        make_plan(tiny_model(), hardware, request(17, tier="net"))
    with pytest.raises(UnknownName, match="did you mean 'joint'"):
        make_plan(tiny_model(), hardware, request(17), "joined")
    weight_bytes = float(tiny_model().weight_bytes)
    for device_bytes, message in (
        (weight_bytes, "lower --prompt"),
        (weight_bytes - 1, "does not fit"),
    ):
        small = replace(hardware, memory=replace(hardware.memory, device_bytes=device_bytes))
        with pytest.raises(DoesNotFit, match=message):
            make_plan(tiny_model(), small, request(17))


@pytest.mark.parametrize(
    "slower", [(H2D, 0.2), (COMPUTE, 0.2)], ids=["bandwidth drop", "GPU-share drop"]
)
def test_two_ends_and_a_plan_made_anew_beat_the_stale_plan(slower):
    trace = Availability((Step(10.0, (slower,)),))
    planner = RestorePlanner(tiny_model(), step_machine(4.0, 1.0), request(65), trace)
    found = adapt(planner)
    assert found.changes[0].lane == slower[0]
    assert found.changes[-1].rate_frac == pytest.approx(slower[1])
    assert found.changes[0].at_s >= 10.0
    assert found.foreseen_s <= found.replanned_s < found.stale_s
    assert found.two_ended_s < found.stale_s


def test_a_machine_as_assumed_needs_no_new_plan():
    found = adapt(RestorePlanner(tiny_model(), step_machine(4.0, 1.0), request(65)))
    assert found.changes == ()
    assert found.replanned_s == found.stale_s == found.foreseen_s


def test_a_bandwidth_drop_moves_the_meeting_point_as_drawn():
    """Of 16 tokens 8 are planned to be computed; from second 4 on a load takes 8 s, not 2."""
    trace = Availability((Step(DROP, ((H2D, 0.25),)),))
    found = adapt(RestorePlanner(tiny_model(), step_machine(4.0, 1.0), request(17), trace))
    # load [10, 12) ends at 12, and says so: [8, 10) is computed until 16, not loaded until 20
    assert found.changes == (Change(12.0, H2D, 0.25, 10),)
    assert (found.stale_s, found.replanned_s) == pytest.approx((24.0, 20.0))
    assert found.two_ended_s == pytest.approx(16.0)
