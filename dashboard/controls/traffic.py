"""The controls of a traffic question: requests, service, sizes of the cache and limits."""

from __future__ import annotations

import streamlit as st

from dashboard.controls.decode import ask_gpus, ask_machine, ask_model, steps
from dashboard.controls.widgets import menu, name_unusable, upload_box
from dashboard.questions.traffic import (
    CHUNK,
    EXAMPLES,
    GENERATED_FILE,
    POLICIES,
    Requests,
    TrafficQuestion,
    size_list,
)
from dashboard.session import uploaded
from sim.errors import BadInput
from sim.graph.jobs import UNCOMPRESSED
from sim.service import ROUTINGS, Engine, RequestTrace, ServiceSettings, Traffic
from sim.units import parse_sizes

FIRST_MODEL, FIRST_MACHINE = "qwen3-32b", "h100-sxm+pcie5-x16"
OWN = "generated with your settings"
REQUESTS = (100, 200, 400, 800, 1500, 3000, 6000, 12000)
RATES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0)
BURSTS = (0.5, 1.0, 2.0, 4.0, 8.0)
TURNS = (1.0, 2.0, 3.0, 4.0, 6.0, 10.0, 20.0)
THINKS = (1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
AGENTS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
PROMPTS = (1, 2, 4, 8, 16, 32, 64)
TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
INSTANCES = (1, 2, 3, 4, 6, 8, 12, 16)
CHUNKS = (512, 1024, 2048, 4096, 8192, 16384)
FIRST_SIZES = (0.0, 16e9, 32e9, 64e9, 128e9)
MAX_SIZES = 12
FIRST_POLICIES = ("load-only", "two-ended")
SIZES, POLICY_SET = "sizes", "policies"
"""In the address."""


def ask_traffic() -> TrafficQuestion:
    """Everything that the answers depend on.

    Raises:
        BadFile: the chosen machine's profile cannot be read.
        BadInput: a size is no size.
    """
    requests = ask_requests()
    st.markdown("**Service**")
    model = ask_model(FIRST_MODEL)
    machine = ask_machine(FIRST_MACHINE)
    tp, ep = ask_gpus(model)
    instances = int(steps("Instances", INSTANCES, 1, "instances", "{:,}", "Copies of the model."))
    routing = ROUTINGS[0] if instances == 1 else menu("Routing", ROUTINGS, key="routing")
    sizes = ask_sizes()
    policies = ask_policies()
    chunk = steps(
        "Tokens of an engine step",
        CHUNKS,
        CHUNK,
        "chunk",
        "{:,}",
        "The budget that decoding requests, prompts and restores share.",
    )
    st.markdown("**Limits of a good request**")
    ttft_ms, tpot_ms = ask_limit("TTFT (ms)", "ttft_ms"), ask_limit("TPOT (ms)", "tpot_ms")
    settings = ServiceSettings(
        engine=Engine(policy=policies[0]),
        kv_bits=model.kv_bits or UNCOMPRESSED,
        chunk_tokens=int(chunk),
        instances=instances,
        routing=routing,
    )
    ttft_s, tpot_s = (None if one is None else one / 1e3 for one in (ttft_ms, tpot_ms))
    return TrafficQuestion(
        requests,
        model,
        machine.load(),
        machine.reference,
        settings,
        sizes,
        policies,
        ttft_s,
        tpot_s,
        tp,
        ep,
    )


def ask_requests() -> Requests:
    """An example, generated requests, or an uploaded trace, by default the newest."""
    with st.expander("Upload a request trace"):
        st.caption(
            "Mooncake or Qwen-Bailian JSONL, or CSV with arrival_s, prompt_tokens, gen_tokens and "
            "if wanted prefix_group, prefix_tokens; gzip too. It stays in your session."
        )
        new = upload_box("Request trace")
    if new is not None and new in uploaded(RequestTrace):
        st.session_state["trace"] = f"{new} (uploaded)"
    own = {f"{name} (uploaded)": (name, trace) for name, trace in uploaded(RequestTrace).items()}
    chosen = menu(
        "Requests",
        [*own, *EXAMPLES, OWN],
        key="trace",
        help="When requests arrive, how long they are, and which prefixes they share.",
    )
    if chosen in own:
        name, trace = own[chosen]
        return Requests(name, content=trace)
    return Requests(GENERATED_FILE, asked=ask_generated() if chosen == OWN else EXAMPLES[chosen])


def ask_generated() -> Traffic:
    """Settings of the generator; lengths are means."""
    return Traffic(
        requests=int(steps("Number of requests", REQUESTS, 400, "requests", "{:,}")),
        rate_per_s=steps("Requests a second", RATES, 0.5, "rate", "{:g}"),
        burstiness=steps(
            "Burstiness",
            BURSTS,
            1.0,
            "burstiness",
            "{:g}",
            "Standard deviation of the gaps between sessions over their mean; 1 is Poisson.",
        ),
        turns=steps("Requests of a session", TURNS, 4.0, "turns", "{:g}"),
        think_s=steps("Think time after an answer (s)", THINKS, 30.0, "think", "{:g}"),
        agents=steps(
            "Sessions that are agents",
            AGENTS,
            0.1,
            "agents",
            "{:.0%}",
            "6 times the turns, 5 % of the think time.",
        ),
        system_prompts=int(steps("Shared system prompts", PROMPTS, 8, "systems", "{}")),
        system_tokens=int(steps("Tokens of a system prompt", TOKENS, 1024, "system", "{:,}")),
        new_tokens=int(steps("New tokens of a turn", TOKENS, 1024, "new", "{:,}")),
        output_tokens=int(steps("Tokens of an answer", TOKENS, 256, "output", "{:,}")),
        seed=int(
            st.number_input("Seed", min_value=0, value=0, key="seed", bind="query-params", step=1)
        ),
    )


def ask_sizes() -> tuple[float, ...]:
    """Sizes of the host cache, rising.

    Raises:
        BadInput: one is no size, or there are too many.
    """
    text = st.text_input(
        "Sizes of the host cache",
        value=size_list(FIRST_SIZES),
        key=SIZES,
        bind="query-params",
        help="Host memory of each instance that caches K and V, separated by commas: 0,64GB,1TB. "
        "Every size is one run with each policy.",
    )
    sizes = tuple(sorted(set(parse_sizes("sizes", text or "0"))))
    if len(sizes) > MAX_SIZES:
        raise BadInput(f"sizes lists {len(sizes)} sizes; {MAX_SIZES} are the most on this page.")
    return sizes


def ask_policies() -> tuple[str, ...]:
    """Policies to compare, at least one."""
    asked = st.query_params.get_all(POLICY_SET)
    chosen = st.pills(
        "Restores of a hit",
        POLICIES,
        selection_mode="multi",
        default=list(FIRST_POLICIES),
        key=POLICY_SET,
        bind="query-params",
        help="load-only loads every cached token. two-ended is Cake: it computes from the front "
        "and loads from the back until both meet. lp, layer-wise and joint are "
        "planned, which takes longer.",
    )
    found = tuple(policy for policy in POLICIES if policy in chosen) or POLICIES[:1]
    unknown = [one for text in asked for one in text.split(",") if one not in POLICIES]
    name_unusable(
        "Restores of a hit", POLICY_SET, unknown[0] if unknown else None, POLICIES, ", ".join(found)
    )
    return found


def ask_limit(label: str, key: str) -> float | None:
    """A limit in milliseconds, by default none."""
    limit: float | None = st.number_input(
        label, min_value=0.1, value=None, placeholder="none", key=key, bind="query-params"
    )
    return limit
