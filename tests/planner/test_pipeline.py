"""Splits without a solver: bounds that hold, optima that equal the LP's, and when it steps back."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from builders import (
    MHA,
    QUICK,
    SOAK,
    bent_machines,
    dispatch,
    examples,
    machine,
    models,
    slowed,
    straight_machines,
    tiny_model,
    workloads,
)
from hypothesis import assume, given
from hypothesis import strategies as st

from planner.decode.fast_planner import PROVEN_WITHIN, ShortcutPlanner
from planner.decode.planner import DecodePlanner
from planner.decode.problem import DecodeProblem
from planner.lp.costs import Line
from planner.lp.pipeline_bound import Cell, Pipeline, Shape, WholeShape
from sim.catalog import find_hardware, find_model
from sim.graph.jobs import Workload

MODELS = ("opt-125m", "opt-1.3b", "opt-6.7b", "opt-13b", "llama-2-7b", "llama-3.1-8b")


def draw_job(rng: random.Random) -> ShortcutPlanner:
    """A shipped model on a machine between a quarter and four times an A100 with PCIe 4."""
    hardware = find_hardware("kvpr-a100")
    for part in ("h2d", "d2h", "flops", "hbm"):
        hardware = hardware.with_faster(part, 4 ** rng.uniform(-1, 1))
    pauses = rng.choice((0.0, 0.0, 4e-6))
    hardware = replace(
        hardware,
        memory=replace(hardware.memory, device_bytes=1e12, host_bytes=1e13),
        dispatch=dispatch(kernel_s=pauses, gap_s=pauses, handover_s=pauses),
        interference=rng.choice(((), (slowed("h2d", "d2h", 0.81),))),
    )
    job = Workload(
        rng.choice((1, 4, 16, 64)), rng.randint(32, 1900), 1, kv_bits=rng.choice((None, None, 8))
    )
    return ShortcutPlanner(
        DecodeProblem(find_model(rng.choice(MODELS)), hardware, job, engine="fast")
    )


def test_one_cell_balances_loading_and_recomputing():
    # X, K and V and recomputing all take a second a token; nothing else takes time. Of 8 tokens
    # l are recomputed at l + max(l, 8 - l): least at l = 4 with 8 s, and 8 s is also all loading.
    shape = shape_of(x=[0, 8], kv=[8, 0], recompute=[0, 8])
    pipeline = Pipeline([Cell(shape, 0.0, 0.0)], 0.0, 0.0, quantised=False)
    assert pipeline.tight() == [4.0]
    assert pipeline.makespan_s([4.0]) == 8.0
    assert pipeline.bound([4.0]).seconds == 8.0


def test_cheap_x_is_worth_half_of_the_link():
    # X takes a quarter of the link: l/4 + max(l, 8 - l) is least at l = 4: 5 s. Chains: X and K, V
    # of all tokens is 8 - 3/4 l; X and recompute 5/4 l. Where both weigh the same for any l, 3/8 to
    # 5/8, their mean is 5 s.
    shape = shape_of(x=[0, 2], kv=[8, 0], recompute=[0, 8])
    pipeline = Pipeline([Cell(shape, 0.0, 0.0)], 0.0, 0.0, quantised=False)
    split, bound = pipeline.best()
    assert split == [4.0]
    assert pipeline.makespan_s(split) == bound.seconds == 5.0
    assert bound.crossed == [(0.0, 0.375, 1.0)]


def shape_of(**rows: list[float]) -> Shape:
    """A shape over 8 tokens whose costs are straight."""

    class Lines(dict):
        def of(self, op: str, layer: int) -> list[Line]:  # noqa: ARG002
            return self[op]

        def at(self, op: str, count: float, layer: int) -> float:
            base, slope = self.of(op, layer)[0]
            return base + slope * count

    lines = Lines(
        load_x=[(0.0, rows["x"][1] / 8)],
        load_kv=[(0.0, rows["kv"][0] / 8)],
        recompute=[(0.0, rows["recompute"][1] / 8)],
        dequantise=[(0.0, 0.0)],
    )
    return Shape(lines, 8)


@examples(60)
@given(
    models(max_layers=6),
    workloads(max_gen=2),
    straight_machines() | bent_machines(),
    st.integers(0, 2**32),
)
def test_no_split_beats_any_bound(model, job, hardware, seed):
    assume(job.prompt_tokens > 1)  # of one token the LP's graph recomputes it and loads nothing
    rng = random.Random(seed)  # noqa: S311
    planner = ShortcutPlanner(DecodeProblem(model, hardware, job, engine="fast"))
    pipeline = planner._chain(Shape)
    tokens = [
        [rng.randint(0, past) for _ in range(model.n_layers)] for past in planner.problem.contexts
    ]
    flat = [float(count) for row in tokens for count in row]
    lp_s = DecodePlanner(DecodeProblem(model, hardware, job, engine="fast")).relaxation.objective_s
    for guess in (flat, pipeline.tight(), pipeline.balanced(pipeline.tight())):
        bound_s = pipeline.bound(guess).seconds
        assert bound_s <= lp_s * (1 + 1e-7)
        assert bound_s <= planner.problem.simulate(tokens).makespan_s * (1 + 1e-9)


def test_within_a_thousandth_of_the_lp_on_random_jobs():
    rng = random.Random(7)  # noqa: S311
    by_shortcut = 0
    count = round(100 * (SOAK or QUICK))
    for _ in range(count):
        planner = draw_job(rng)
        chosen_s = planner.problem.simulate(planner.best.split).makespan_s
        by_shortcut += planner.solved_by == "shortcut"
        if planner.solved_by == "lp":
            continue  # the same as the LP's by construction
        reference = DecodePlanner(
            DecodeProblem(planner.problem.model, planner.problem.hardware, planner.problem.workload)
        )
        lp_s = reference.relaxation.objective_s
        assert planner._lp_value_s() <= lp_s * (1 + PROVEN_WITHIN)
        assert planner.bound_s <= lp_s * (1 + 1e-7)
        if planner._proven is not None:
            assert chosen_s <= lp_s * (1 + PROVEN_WITHIN)
    assert by_shortcut >= 0.86 * count


@examples(60)
@given(models(max_layers=5), workloads(max_gen=1), bent_machines(), st.integers(0, 2**32))
def test_a_free_machine_does_what_the_pipeline_says(model, job, hardware, seed):
    rng = random.Random(seed)  # noqa: S311
    hardware = replace(
        hardware,
        links=replace(
            hardware.links, d2h=replace(hardware.links.d2h, bytes_per_s=1e15, latency_s=0.0)
        ),
    )
    planner = ShortcutPlanner(DecodeProblem(model, hardware, job, engine="fast"))
    split = [
        [rng.randint(0, past) for _ in range(model.n_layers)] for past in planner.problem.contexts
    ]
    flat = [count for row in split for count in row]
    expected_s = planner._chain(WholeShape).makespan_s(flat)
    assert planner.problem.simulate(split).makespan_s == pytest.approx(expected_s, rel=1e-9)


def test_windows_have_a_pipeline_too():
    hardware = find_hardware("kvpr-a100").with_faster("memory", 10)
    planner = ShortcutPlanner(
        DecodeProblem(
            find_model("gemma-2-9b", "float16"), hardware, Workload(4, 6000, 1), engine="fast"
        )
    )
    lp = DecodePlanner(
        DecodeProblem(planner.problem.model, hardware, planner.problem.workload)
    ).relaxation
    assert planner.bound_s == pytest.approx(lp.objective_s, rel=1e-3)


def test_steps_back_where_there_is_something_to_keep_or_columns():
    hardware = machine(flops_per_s=3e7, memory_bytes_per_s=1e8, h2d=2e6, d2h=2e6)
    job = Workload(2, 16, 1, n_batches=2)
    problem = DecodeProblem(tiny_model(**MHA), hardware, job, "column")
    planner = ShortcutPlanner(problem)
    assert planner.solved_by == "lp"
    assert planner.best == DecodePlanner(problem).best


def test_weights_of_the_chains_are_the_duals():
    model, job = find_model("opt-13b"), Workload(32, 1024, 1)
    planner = ShortcutPlanner(DecodeProblem(model, find_hardware("kvpr-a100"), job, engine="fast"))
    lp = planner.problem.program()
    weights, relaxed = planner.task_weights, lp.solve()
    names = [task.id for task in lp.graph.tasks]
    for name, weight in zip(names, relaxed.task_weights, strict=True):
        if name.startswith("s0.L20."):  # duals at the ends are not unique, in the middle they are
            assert weights.get(name, 0.0) == pytest.approx(weight, abs=1e-6)
