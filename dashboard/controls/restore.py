"""The controls of a restore question, and the editor of its availability trace."""

from __future__ import annotations

import streamlit as st

from dashboard.controls.decode import AS_ASKED, ask_gpus, ask_machine, ask_model, steps
from dashboard.controls.traces import (
    START,
    example_trace,
    read_trace_text,
    trace_of_table,
    trace_table,
    trace_text,
)
from dashboard.controls.widgets import menu, switch
from dashboard.questions.offered import RESTORE_PROMPTS
from dashboard.questions.restore import AUTO, GIB, POLICIES, RestoreQuestion
from dashboard.text.comparison import escaped
from dashboard.text.refusal import describe_refusal
from planner.restore.reproduce import GBPS
from sim.errors import BadInput, KvOverlapError
from sim.graph.jobs import KV, KV_AND_X, KV_BITS, UNCOMPRESSED, RestoreRequest
from sim.lanes import LANE_OF_TIER
from sim.machine.availability import ALWAYS, Availability
from sim.machine.prefill import Restore
from sim.machine.profile import HardwareProfile

FIRST_MODEL = "longalpaca-13b"
FIRST_RESTORE_MACHINE = "a100-80g"
CACHED_FRACS = (0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
CHUNKS = (128, 256, 512, 1024, 2048, 4096)
IO_CHUNKS = (64, 128, 256, 512, 1024)
GPU_SHARES = (0.125, 0.25, 0.5, 0.75, 0.875, 1.0)
LINKS_GIB = (0.25, 0.5, 1.0, 1.5, 2.0, 2.9, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0)
OWN_LINK = "behind a link"
TIER_NAMES = {
    "dram": "in host memory",
    "ssd": "on the machine's SSD",
    "net": "behind the machine's network",
}
TRACE, EDITED = "trace", "edited_trace"
"""The trace in the address, and in the visitor's session."""


def ask_restore() -> tuple[RestoreQuestion, str]:
    """The question, and the policy whose answer is shown.

    Raises:
        BadFile: the chosen machine's profile cannot be read.
        BadInput: the values describe no restore.
    """
    model = ask_model(FIRST_MODEL)
    machine = ask_machine(FIRST_RESTORE_MACHINE)
    tp, ep = ask_gpus(model)
    hardware = machine.load()
    prompt = int(steps("Prompt (tokens)", RESTORE_PROMPTS, 16384, "prompt", "{:,}"))
    cached_frac = steps(
        "Cached part of the prompt",
        CACHED_FRACS,
        1.0,
        "cached",
        "{:.0%}",
        "The first tokens of the prompt. The last token is always computed: it gives the first "
        "new token.",
    )
    tier, link = ask_tier(hardware)
    names = {bits: f"{bits} bits" for bits in sorted(KV_BITS, reverse=True)}
    if model.kv_bits is not None:
        names = {AS_ASKED: f"{model.kv_bits} bits, as the checkpoint asks for", **names}
    kv_bits = menu(
        "Cached K and V",
        list(names),
        key="kv_bits",
        format_func=lambda bits: names[bits],
        help="Bits of a value on the tier; fewer than 16 mean that it is quantised there.",
    )
    has_x = switch(
        "X is cached too",
        key="x",
        help="Serving runtimes store K and V. Where the attention inputs X are stored too, K and V "
        "can be projected from them.",
    )
    share = steps(
        "GPU share of this request",
        GPU_SHARES,
        1.0,
        "share",
        "{:.1%}",
        "Its fraction of the tokens of every step; other requests use the rest.",
    )
    chunk = steps("Prefill chunk (tokens)", CHUNKS, 512, "chunk", "{:,}")
    io_chunk = steps("Load chunk (tokens)", IO_CHUNKS, 128, "io_chunk", "{:,}")
    policy = ask_policy()
    st.caption(escaped(f"{hardware.name}: {hardware.description}"))
    request = RestoreRequest(
        prompt_tokens=prompt,
        cached_tokens=min(prompt - 1, max(1, round(cached_frac * prompt))),
        tier=tier,
        chunk_tokens=int(chunk),
        io_chunk_tokens=int(io_chunk),
        gpu_share=share,
        tier_kv_bits=kv_bits or model.kv_bits or UNCOMPRESSED,
    )
    data = KV_AND_X if has_x else KV
    asked = (model, hardware, machine.reference, request, link)
    return RestoreQuestion(*asked, cached_data=data, tp=tp, ep=ep), policy


def ask_tier(hardware: HardwareProfile) -> tuple[str, float | None]:
    """The tier of the prefix, and the rate of its link if the visitor sets one."""
    lanes = {tier.lane for tier in (hardware.restore or Restore()).tiers}
    known = [tier for tier in TIER_NAMES if LANE_OF_TIER.get(tier) in {None, *lanes}]
    tier = menu(
        "The prefix is cached",
        [OWN_LINK, *known],
        key="tier",
        format_func=lambda name: TIER_NAMES.get(name, name),
    )
    if tier != OWN_LINK:
        return tier, None
    rate = steps("Rate of the link", LINKS_GIB, 4.0, "rate", "{:g} GiB/s")
    st.caption(f"= {rate * GIB / GBPS:g} Gbps (1 Gbps = 2^30 bits/s, as in Cake's paper)")
    return "net", rate * GIB


def ask_policy() -> str:
    """The policy whose answer is shown."""
    return menu(
        "Policy",
        (AUTO, *POLICIES),
        key="policy",
        help="two-ended is Cake: it computes from the front and loads from the back, without a "
        "plan. lp chooses the best meeting point. layer-wise is HCache: whole layers "
        "are computed, projected from X, or loaded. joint mixes tokens, layers and modes. auto "
        "is the fastest.",
    )


def ask_trace(question: RestoreQuestion, usual_s: float) -> Availability:
    """The editor of a trace; the address of the page holds an edited one.

    Args:
        usual_s: time to first token on the whole machine; the example trace starts before it.

    Returns:
        The last trace that the table held, if it holds none now.
    """
    if EDITED not in st.session_state:
        st.session_state[EDITED] = {"version": 0, "base": _trace_of_address()}
    kept = st.session_state[EDITED]
    row = st.container(horizontal=True, vertical_alignment="center")
    offered = {f"{lane} drops": example_trace(usual_s, lane) for lane in question.lanes}
    for label, trace in {**offered, "Whole machine": ALWAYS}.items():
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
    try:
        trace = kept["last"] = trace_of_table(table)
    except BadInput as error:
        st.warning(f"{escaped(describe_refusal(error))} The answer is for the trace before.")
        return kept.get("last", base)
    if kept["base"] is not None:
        st.query_params[TRACE] = trace_text(trace)
    return trace


def ask_foresight() -> bool:
    """Whether the policies know the trace."""
    return st.toggle(
        "The policies know this in advance",
        key="foresight",
        bind="query-params",
        help="Off: they plan for the whole machine and run under the trace. On: the plan is the "
        "best one for the trace, which nobody knows beforehand.",
    )


def _trace_of_address() -> Availability | None:
    """The trace of the page's address; None if there is none or, with a message, an invalid one."""
    try:
        return read_trace_text(st.query_params[TRACE]) if TRACE in st.query_params else None
    except KvOverlapError as error:
        st.warning(f"{escaped(describe_refusal(error))} The answer is for an example.")
        return None
