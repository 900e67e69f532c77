"""The controls of a restore question, and the editor of what happens to the machine meanwhile."""

from __future__ import annotations

import streamlit as st

from dashboard.controls.decode import ask_machine, ask_model, steps
from dashboard.controls.traces import (
    START,
    example_trace,
    read_trace_text,
    trace_of_table,
    trace_table,
    trace_text,
)
from dashboard.questions.restore import AUTO, GIB, POLICIES, RestoreQuestion
from dashboard.text.comparison import plain
from planner.restore.reproduce import GBPS
from sim.errors import KvOverlapError
from sim.graph.jobs import KV_BITS, RestoreRequest
from sim.lanes import LANE_OF_TIER
from sim.machine.availability import ALWAYS, Availability
from sim.machine.prefill import Restore
from sim.machine.profile import HardwareProfile

FIRST_MODEL = "longalpaca-13b"
FIRST_RESTORE_MACHINE = "a100-80g"
PROMPTS = (512, 1024, 2048, 4096, 8192, 12288, 16384, 24576, 32768, 49152, 65536, 98304, 131072)
CACHED_FRACS = (0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
CHUNKS = (128, 256, 512, 1024, 2048, 4096)
IO_CHUNKS = (64, 128, 256, 512, 1024)
GPU_SHARES = (0.125, 0.25, 0.5, 0.75, 0.875, 1.0)
LINKS_GIB = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0)
OWN_LINK = "behind a link"
TIER_NAMES = {
    "dram": "in host memory",
    "ssd": "on the machine's SSD",
    "net": "behind the machine's network",
}
TRACE = "trace"
"""In the address and in the visitor's session."""


def ask_restore() -> tuple[RestoreQuestion, str]:
    """The question, and the policy whose answer is shown.

    Raises:
        BadFile: the chosen machine's profile cannot be read.
        BadInput: the values describe no restore.
    """
    model = ask_model(FIRST_MODEL)
    machine = ask_machine(FIRST_RESTORE_MACHINE)
    hardware = machine.load()
    prompt = int(steps("Prompt (tokens)", PROMPTS, 16384, "prompt", "{:,}"))
    cached_frac = steps(
        "Cached part of the prompt",
        CACHED_FRACS,
        1.0,
        "cached",
        "{:.0%}",
        "Its first tokens. The last token of a prompt is always computed: it makes the first new "
        "one.",
    )
    tier, link = ask_tier(hardware)
    kv_bits = st.selectbox(
        "Cached K and V",
        sorted(KV_BITS, reverse=True),
        key="kv_bits",
        bind="query-params",
        format_func=lambda bits: f"{bits} bits",
        help="Bits of an element on the tier; below 16 it is compressed there.",
    )
    share = steps(
        "GPU share of this request",
        GPU_SHARES,
        1.0,
        "share",
        "{:.1%}",
        "Its part of the tokens of every step; other requests use up the rest.",
    )
    chunk = steps("Tokens of a step", CHUNKS, 512, "chunk", "{:,}")
    io_chunk = steps("Tokens loaded at a time", IO_CHUNKS, 128, "io_chunk", "{:,}")
    policy = ask_policy()
    st.caption(plain(f"{hardware.name}: {hardware.description}"))
    request = RestoreRequest(
        prompt_tokens=prompt,
        cached_tokens=min(prompt - 1, max(1, round(cached_frac * prompt))),
        tier=tier,
        chunk_tokens=int(chunk),
        io_chunk_tokens=int(io_chunk),
        gpu_share=share,
        tier_kv_bits=kv_bits,
    )
    return RestoreQuestion(model, hardware, machine.reference, request, link), policy


def ask_tier(hardware: HardwareProfile) -> tuple[str, float | None]:
    """Where the prefix is cached, and the rate of the link before it where that is asked for."""
    lanes = {tier.lane for tier in (hardware.restore or Restore()).tiers}
    known = [tier for tier in TIER_NAMES if LANE_OF_TIER.get(tier) in {None, *lanes}]
    tier = st.selectbox(
        "The prefix is cached",
        [OWN_LINK, *known],
        key="tier",
        bind="query-params",
        format_func=lambda name: TIER_NAMES.get(name, name),
    )
    if tier != OWN_LINK:
        return tier, None
    rate = steps("Rate of the link", LINKS_GIB, 4.0, "rate", "{:g} GiB/s")
    st.caption(f"{rate * GIB / GBPS:g} Gbps, as published restore measurements count them.")
    return "net", rate * GIB


def ask_policy() -> str:
    """Whose answer is shown."""
    chosen: str = st.selectbox(
        "Policy",
        (AUTO, *POLICIES),
        key="policy",
        bind="query-params",
        help="two-ended is Cake: it computes from the front and loads from the back, and plans "
        "nothing. lp moves the meeting point to the best place. layer-wise is HCache: whole layers "
        "are computed, projected from X, or loaded. joint mixes tokens, layers and modes. auto "
        "takes the fastest.",
    )
    return chosen


def ask_trace(question: RestoreQuestion, usual_s: float) -> Availability:
    """The editor of a trace; an edited one is kept in the address of the page.

    Args:
        usual_s: time to first token on the whole machine, before which something should happen.

    Raises:
        BadInput: the edited table holds no trace.
    """
    if TRACE not in st.session_state:
        st.session_state[TRACE] = {"version": 0, "base": _trace_of_address()}
    kept = st.session_state[TRACE]
    row = st.container(horizontal=True, vertical_alignment="center")
    offered = {f"{lane} drops": example_trace(usual_s, lane) for lane in question.lanes}
    for label, trace in {**offered, "Nothing happens": ALWAYS}.items():
        if row.button(label, key=f"trace {label}"):
            kept.update(base=trace, version=kept["version"] + 1)
    base = kept["base"]
    if base is None:
        base = example_trace(usual_s, question.slow_lane)
    fraction = st.column_config.NumberColumn(min_value=0.0, default=1.0, format="%.3g")
    start = st.column_config.NumberColumn("from (s)", min_value=0.0, required=True, format="%.4g")
    lanes = dict.fromkeys((*question.lanes, *base.lanes))
    table = st.data_editor(
        trace_table(base, tuple(lanes)),
        key=f"trace {kept['version']} {trace_text(base)} {question.slow_lane}",
        num_rows="dynamic",
        hide_index=True,
        column_config={START: start, **dict.fromkeys(lanes, fraction)},
        on_change=kept.update,
        kwargs={"base": base},
    )
    trace = trace_of_table(table)
    if kept["base"] is not None:
        st.query_params[TRACE] = trace_text(trace)
    return trace


def _trace_of_address() -> Availability | None:
    """What the address says; None, with the reason, where it says none."""
    try:
        return read_trace_text(st.query_params[TRACE]) if TRACE in st.query_params else None
    except KvOverlapError as error:
        st.error(plain(str(error)))
        return None
