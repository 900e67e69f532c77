"""The controls of a decode question: model, machine, job, and changes of the machine."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from dashboard import links
from dashboard.controls.machine_cards import offer_cards
from dashboard.controls.widgets import MAX_ASKED, menu, name_unusable, switch
from dashboard.data.machines import FIRST_MACHINE, Machine
from dashboard.questions.decode import AUTO, Changes, Question, both_ways_rate
from dashboard.questions.offered import BATCHES, FIRST_N_BATCHES, GPUS, N_BATCHES, PROMPTS, STEPS
from dashboard.questions.points import MULTIPLES
from dashboard.session import all_machines, typed, uploaded
from dashboard.text.comparison import escaped
from dashboard.text.machine import machine_card
from planner import SCHEDULES
from sim.catalog import find_model, hub_id, link_names, model_names
from sim.graph.jobs import UNCOMPRESSED, Workload
from sim.machine.profile import HardwareProfile
from sim.model.kv_format import KV_BITS
from sim.model.spec import ModelSpec

BOTH_WAYS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
MEMORY_GIB = (8, 16, 24, 40, 48, 80, 96, 141, 192, 288)
AS_ASKED = 0
"""Entry of a menu of bits."""

OWN_BATCHES = "own_batches"
"""In the visitor's session: batches that are no steps of the slider."""

MACHINE = "hardware"
"""Key of the menu of machines."""

AS_PROFILED = "as profiled"
FIRST_ADVISED, FIRST_ADVISED_MACHINE = "llama-3.1-8b", "h100-sxm+pcie5-x16"


def ask_advice() -> tuple[Question, float | None]:
    """Model, machine and batch of the first page, and the limit of a step in milliseconds.

    Raises:
        BadFile: the chosen machine's profile cannot be read.
    """
    model = ask_model(FIRST_ADVISED)
    machine = ask_machine(FIRST_ADVISED_MACHINE)
    hardware = machine.load()
    with st.container(border=True, key="machine_card"):
        st.markdown(machine_card(hardware))
        offer_cards(MACHINE)
    batch, prompt = ask_prompts()
    tp, ep = ask_gpus(model)
    kv_bits = ask_kv_bits(model)
    slo_ms: float | None = st.number_input(
        "Limit of a decode step (ms)",
        min_value=0.1,
        value=None,
        placeholder="none",
        key="slo_ms",
        bind="query-params",
        help="Time per output token that users may wait. The answer says whether it is met, and "
        "the largest batch that meets it.",
    )
    workload = Workload(batch, prompt, 1, kv_bits=kv_bits)
    return Question(model, hardware, machine.reference, workload, tp=tp, ep=ep), slo_ms


def ask_question(changeable: bool) -> Question:
    """Everything that a plan depends on.

    Args:
        changeable: offer changes of the machine too.

    Raises:
        BadFile: the chosen machine's profile cannot be read.
    """
    model = ask_model("opt-13b")
    machine = ask_machine(FIRST_MACHINE)
    job = ask_job()
    schedule, n_batches = ask_schedule()
    kv_bits = ask_kv_bits(model)
    keep = switch(
        "Keep in GPU memory what fits",
        value=not changeable,
        key="keep",
        help="K, V, X and, in the column schedule, weights stay in GPU memory as far as they fit. "
        "Off: every step moves all of the cache, as in KVPR.",
    )
    tp, ep = ask_gpus(model)
    hardware = machine.load()
    changes = Changes()
    if changeable:
        st.markdown("**Change the machine**")
        changes = ask_changes(hardware)
        st.caption(escaped(f"{hardware.name}: {hardware.description}"))
    workload = Workload(*job, n_batches, kv_bits)
    reference = machine.reference
    return Question(model, hardware, reference, workload, schedule, changes, keep, tp, ep)


def ask_model(first: str) -> ModelSpec:
    """An uploaded config, by default the newest, or a shipped model, by default `first`.

    A shipped model may be given by its name on Hugging Face too.
    """
    own = {f"{name} (uploaded)": model for name, model in uploaded(ModelSpec).items()}
    names = [*own, *model_names()]
    index = 0 if own else names.index(first)
    chosen = menu(
        "Model",
        names,
        index=index,
        key="model",
        accept_new_options=True,
        help="By family; type to search. The Hugging Face name of a shipped model works too. For "
        "any other model, upload its config.json on the page Your machine.",
    )
    name = hub_names().get(chosen.lower(), chosen)
    if name not in names:
        name = names[index]
        text = f"Model {chosen[:MAX_ASKED]}, which is not on offer; showing {name}."
        st.warning(f"This link asks for {escaped(text)}")
    return own[name] if name in own else find_model(name)


@typed(st.cache_data, show_spinner=False)
def hub_names() -> dict[str, str]:
    """Shipped models by their names on Hugging Face, in small letters."""
    return {hub_id(find_model(name)).lower(): name for name in model_names()}


def ask_gpus(model: ModelSpec) -> tuple[int, int]:
    """GPUs that share the model, and of these the GPUs that hold whole experts."""
    sizes = [n for n in model.tensor_parallel_sizes if n in GPUS]
    tp = menu(
        "GPUs that share the model",
        [1, *sizes],
        key="tp",
        help="Tensor parallelism: every GPU holds, computes and loads its part of each layer, and "
        "attention and MLP end with an all-reduce. Predicted, not run.",
    )
    experts = model.routed_experts
    # A link's number is named also where one GPU has no choice; then buttons can set it.
    if not experts or (tp == 1 and links.asked("ep") in (None, "1")):
        return tp, 1
    ep = menu(
        "GPUs that the experts are divided over",
        [n for n in GPUS if tp % n == 0 and not any(count % n for count in experts)],
        key="ep",
        help="Expert parallelism: every GPU holds whole routed experts, one part in so many. "
        "1: every GPU holds a part of each expert.",
    )
    return tp, ep


def ask_machine(first: str) -> Machine:
    """A machine that is shipped, profiled here or uploaded; by default an uploaded one."""
    machines = {machine.label: machine for machine in all_machines()}
    labels = list(machines)
    uploaded = machines[labels[0]].profile is not None
    label = menu("Machine", labels, index=0 if uploaded else labels.index(first), key=MACHINE)
    return _behind_link(machines[label])


def _behind_link(machine: Machine) -> Machine:
    """A composed machine with the chosen link; any other machine unchanged."""
    if machine.parts is None:
        return machine
    device, usual = machine.parts
    names = link_names()
    link = menu(
        "Link to the host",
        names,
        index=names.index(usual),
        key=f"link_of_{device}",
        help="Links of this device to a host. For another rate, use the page What-if.",
    )
    return machine.behind(link)


def ask_prompts() -> tuple[int, int]:
    """Batch and prompt."""
    batch = steps("Batch (sequences)", offered_batches(), 32, "batch", "{:,}")
    prompt = steps("Prompt (tokens)", PROMPTS, 1024, "prompt", "{:,}")
    return int(batch), int(prompt)


def offered_batches() -> list[int]:
    """The steps of the slider, and every other batch that a link or a button has set."""
    own: set[int] = st.session_state.setdefault(OWN_BATCHES, set())
    texts = (str(st.session_state.get("batch", "")), links.asked("batch") or "")
    own |= {int(text) for text in texts if text.isdecimal() and 1 <= int(text) <= BATCHES[-1]}
    return sorted({*BATCHES, *own})


def ask_job() -> tuple[int, int, int]:
    """Batch, prompt and decode steps."""
    return *ask_prompts(), int(steps("Decode steps", STEPS, 1, "gen", "{}"))


def ask_schedule() -> tuple[str, int]:
    """The schedule and how many batches share each layer."""
    schedule = menu(
        "Schedule",
        (*SCHEDULES, AUTO),
        key="schedule",
        help="row: all layers of a step, then the next step; weights stay on the device. column: "
        "weights come from host memory, and several batches pass through each loaded layer. "
        "auto: the schedule with more tokens a second.",
    )
    if schedule == "row":
        return schedule, 1
    batches = steps("Batches through each layer", N_BATCHES, FIRST_N_BATCHES, "n_batches", "{}")
    return schedule, int(batches)


def ask_kv_bits(model: ModelSpec) -> int | None:
    """The format of the KV cache in host memory; by default what the checkpoint asks for."""
    asked = model.host_kv_bits
    names = {UNCOMPRESSED: "as computed", **{bits: f"{bits} bits" for bits in KV_BITS}}
    if asked is not None:
        names = {AS_ASKED: f"{asked} bits, as the checkpoint asks for", **names}
    bits = menu(
        "KV cache in host memory",
        list(names),
        key="kv_bits",
        format_func=lambda one: names[one],
        help="A quantised cache is faster to load and must be dequantised on the device.",
    )
    return {AS_ASKED: asked, UNCOMPRESSED: None}.get(bits, bits)


def ask_changes(hardware: HardwareProfile) -> Changes:
    """Changes of a machine."""
    link, flops, hbm = (
        hardware.links.h2d.bytes_per_s / 1e9,
        hardware.gemm.flops_per_s / 1e12,
        hardware.attention.bytes_per_s / 1e9,
    )
    both_ways = both_ways_rate(hardware)
    memory_gib = hardware.memory.job_device_bytes / 2**30
    return Changes(
        link=_multiple("Link to the device", link, "GB/s", "link"),
        gpus=int(
            steps(
                "GPUs per switch",
                GPUS,
                1,
                "gpus",
                "{}",
                "Number of GPUs, each with such a job or a part of it, that share one link of this "
                "rate max-min fairly. A profile that has switches uses its own.",
            )
        ),
        both_ways=_optional(
            "Copy rate while both directions copy",
            BOTH_WAYS,
            f"{both_ways:.2f}, {AS_PROFILED}",
            "both_ways",
            "{:g}",
        ),
        flops=_multiple("Matrix products", flops, "TFLOP/s", "flops"),
        hbm=_multiple("Device memory rate", hbm, "GB/s", "hbm"),
        device_gib=_optional(
            "Device memory",
            MEMORY_GIB,
            f"{memory_gib:.3g} GiB, {AS_PROFILED}",
            "memory",
            "{:g} GiB",
        ),
    )


def steps(
    label: str,
    options: Sequence[float],
    value: float,
    key: str,
    text: str,
    meaning: str | None = None,
) -> float:
    """A slider over given values; the link of the page shows the same text."""
    asked, texts = links.asked(key), [text.format(one) for one in options]
    chosen: float = st.select_slider(
        label,
        options,
        value=options[links.default_of(key, texts, options.index(value))],
        key=key,
        bind="query-params",
        format_func=text.format,
        help=meaning,
    )
    links.record(key, text.format(chosen))
    name_unusable(label, key, asked, texts, text.format(chosen))
    return chosen


def _multiple(label: str, base: float, unit: str, key: str) -> float:
    """A slider of multiples of a rate, shown as rates on the page and in its link."""

    def text(multiple: float) -> str:
        return f"{base * multiple:.4g} {unit}"

    asked, texts = links.asked(key), [text(one) for one in MULTIPLES]
    usual = MULTIPLES[links.default_of(key, texts, MULTIPLES.index(1.0))]
    chosen: float = st.select_slider(
        label, MULTIPLES, value=usual, key=key, bind="query-params", format_func=text
    )
    links.record(key, text(chosen))
    name_unusable(label, key, asked, texts, text(chosen))
    return chosen


def _optional(
    label: str, options: Sequence[float], unchanged: str, key: str, text: str
) -> float | None:
    """A menu whose first entry leaves the profile unchanged."""
    chosen = menu(
        label,
        [None, *options],
        key=key,
        format_func=lambda value: unchanged if value is None else text.format(value),
    )
    return None if chosen is None else float(chosen)
