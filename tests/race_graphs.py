"""A small graph of every kind that `hw` runs, and any decode graph, for tests of races."""

from __future__ import annotations

from dataclasses import replace

from builders import tiny_model
from hypothesis import strategies as st
from run_restores import policy_graphs, request
from tiny import DEEPSEEK, EXPERTS, GPT_OSS, LLAMA, OPT

from planner.decode.lower import lower
from planner.decode.other_systems import RUNTIME_SYSTEMS, other_system_graph
from planner.decode.split import Residency, keeps_part
from sim.graph.jobs import Workload
from sim.graph.tasks import TaskGraph

JOB = Workload(batch_size=1, prompt_tokens=8, gen_tokens=3)
BATCHES = replace(JOB, n_batches=2)
WINDOWED = replace(OPT, name="tiny-windows", sliding_window=6, full_attention_layers=(1,))
SPLIT = [[3, 0, 8], [9, 4, 0], [10, 2, 5]]
"""Recomputes nothing, a part, everything, and new tokens of earlier steps."""

WINDOW_SPLIT = [[3, 0, 5], [5, 4, 0], [0, 2, 5]]
FIRST_LAYER = Residency((8, 0, 0), (0, 0, 0))
PARTS = Residency((2, 8, 0), (1, 0, 3))
WEIGHTS = replace(PARTS, weight_layers=(1,))
PARTS_SPLIT = [[3, 0, 4], [2, 0, 9], [6, 0, 10]]

DECODE_GRAPHS = {
    "row": lower("row", OPT, JOB, SPLIT),
    "row-gqa": lower("row", LLAMA, JOB, SPLIT),
    "row-experts": lower("row", replace(EXPERTS, dtype="bfloat16"), JOB, SPLIT),
    "row-sinks": lower("row", replace(GPT_OSS, dtype="bfloat16"), JOB, WINDOW_SPLIT),
    "row-latents": lower("row", replace(DEEPSEEK, dtype="bfloat16"), JOB, SPLIT),
    "row-8-bit": lower("row", OPT, replace(JOB, kv_bits=8), SPLIT),
    "row-windows": lower("row", WINDOWED, JOB, WINDOW_SPLIT),
    "row-windows-4-bit": lower("row", WINDOWED, replace(JOB, kv_bits=4), WINDOW_SPLIT),
    "row-resident-parts": lower("row", OPT, JOB, PARTS_SPLIT, residency=PARTS),
    "column": lower("column", OPT, JOB, SPLIT),
    "column-batches": lower("column", OPT, BATCHES, SPLIT),
    "column-batches-4-bit": lower("column", OPT, replace(BATCHES, kv_bits=4), SPLIT),
    "column-resident-parts": lower("column", OPT, BATCHES, PARTS_SPLIT, residency=WEIGHTS),
    **{policy: other_system_graph(policy, OPT, JOB) for policy in RUNTIME_SYSTEMS},
    "llama.cpp-resident-layer": other_system_graph("llama.cpp", OPT, JOB, FIRST_LAYER),
    "llama.cpp-ring-resident-layer": other_system_graph("llama.cpp-ring", OPT, JOB, FIRST_LAYER),
    "flexgen-windows": other_system_graph("flexgen", WINDOWED, JOB),
}

RESTORE_GRAPHS = {
    f"restore-{policy}-{tier}": graph
    for tier in ("dram", "ssd", "net")
    for policy, graph in policy_graphs(OPT, request(tier=tier)).items()
}
ALL_WINDOWED = replace(OPT, name="tiny-all-windows", sliding_window=6)
WINDOWED_RESTORES = {
    f"{model.name}-{policy}": graph
    for model in (WINDOWED, ALL_WINDOWED)
    for policy, graph in policy_graphs(model, request(tier="ssd")).items()
}

GRAPHS: dict[str, TaskGraph] = DECODE_GRAPHS | RESTORE_GRAPHS | WINDOWED_RESTORES


@st.composite
def decode_graphs(draw) -> TaskGraph:
    """Any schedule, split, residency, quantisation and windows of a small model."""
    schedule = draw(st.sampled_from(["row", "column"]))
    n_layers = draw(st.integers(1, 5))
    layers = range(n_layers)
    full = tuple(layer for layer in layers if draw(st.booleans()))
    window = draw(st.none() | st.integers(2, 12))
    model = tiny_model(
        n_layers=n_layers,
        sliding_window=window,
        full_attention_layers=full if window else (),
    )
    job = Workload(
        batch_size=1,
        prompt_tokens=draw(st.integers(1, 12)),
        gen_tokens=draw(st.integers(1, 4)),
        n_batches=draw(st.integers(1, 3)) if schedule == "column" else 1,
        kv_bits=draw(st.sampled_from([None, 8, 4])),
    )
    prompt = job.prompt_tokens
    kv, x = [], []
    for layer in layers:
        parts = st.integers(0, prompt)
        if not keeps_part(model, job, layer):
            parts = st.sampled_from([0, prompt])
        kv.append(draw(parts))
        is_partial = keeps_part(model, job, layer) and kv[-1] < prompt
        x.append(draw(st.integers(0, prompt - kv[-1])) if is_partial else 0)
    weights = tuple(layer for layer in layers if schedule == "column" and draw(st.booleans()))
    kept = Residency(tuple(kv), tuple(x), weights)
    split = []
    for step in range(job.gen_tokens):
        past = job.context_tokens(step)
        most = [model.layer_context(layer, past) - kv[layer] for layer in layers]
        split.append(
            [
                0 if kept.holds_whole(layer, job) else draw(st.integers(x[layer], most[layer]))
                for layer in layers
            ]
        )
    return lower(schedule, model, job, split, residency=kept)
