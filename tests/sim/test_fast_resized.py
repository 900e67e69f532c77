"""Splits simulated on one compiled graph, against each lowered and simulated on its own."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from builders import bent_machines, dispatch, examples, models, slowed, workloads
from hypothesis import assume, given
from hypothesis import strategies as st

from planner.decode.lower import lower
from planner.lp.costs import SIZED_OPS
from sim.engine.api import simulate
from sim.engine.fast.job import Resizable


@examples(40)
@given(models(), workloads(max_gen=1), bent_machines(), st.booleans(), st.integers(0, 2**32))
def test_another_size_on_the_same_graph_is_another_graph(model, job, base, disturbed, seed):
    assume(job.prompt_tokens > 1)
    pauses = dispatch(kernel_s=1e-6, copy_s=2e-6, gap_s=1e-6, handover_s=3e-6)
    interference = (slowed("h2d", "compute", 0.8), slowed("h2d", "d2h", 0.7)) if disturbed else ()
    hardware = replace(base, dispatch=pauses, interference=interference)
    rng = random.Random(seed)  # noqa: S311
    past = job.prompt_tokens

    def split() -> list[list[int]]:
        return [[rng.randint(1, past - 1) for _ in range(model.n_layers)]]

    graph = Resizable(lower("row", model, job, split()), hardware, SIZED_OPS)
    for (row,) in (split(), split()):
        counts = [
            past - row[task.layer] if task.op == "load_kv" else row[task.layer]
            for task in graph.sized
        ]
        expected = simulate(lower("row", model, job, [row]), hardware, "fast")
        assert graph.makespan_s(counts) == pytest.approx(expected.makespan_s, rel=1e-12)
