"""Random settings of all pages, as links: an answer, or a refusal that its buttons mend."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlencode

from streamlit.testing.v1 import AppTest

import dashboard
from dashboard import asking
from dashboard.controls.compare import NO_A
from dashboard.controls.decode import BOTH_WAYS, MEMORY_GIB
from dashboard.controls.restore import (
    CACHED_FRACS,
    CHUNKS,
    GPU_SHARES,
    IO_CHUNKS,
    LINKS_GIB,
    OWN_LINK,
    TIER_NAMES,
)
from dashboard.controls.traces import read_trace_text
from dashboard.controls.traffic import (
    AGENTS,
    BURSTS,
    INSTANCES,
    OWN,
    RATES,
    REQUESTS,
    THINKS,
    TOKENS,
    TURNS,
)
from dashboard.controls.traffic import CHUNKS as STEP_TOKENS
from dashboard.controls.traffic import PROMPTS as SYSTEMS
from dashboard.data.calibration import subjects
from dashboard.data.runs import SHIPPED_RUNS, Run, find_runs
from dashboard.figures import MEASURES
from dashboard.questions.decode import Changes, Question
from dashboard.questions.offered import (
    BATCHES,
    GPUS,
    N_BATCHES,
    PROMPTS,
    RESTORE_PROMPTS,
    STEPS,
)
from dashboard.questions.pinned import question_text, restore_text
from dashboard.questions.points import AXES, MULTIPLES
from dashboard.questions.restore import POLICIES as RESTORES
from dashboard.questions.restore import RestoreQuestion
from dashboard.questions.traffic import EXAMPLES
from dashboard.questions.traffic import POLICIES as SERVED
from planner import POLICIES
from sim.catalog import (
    composed_names,
    find_hardware,
    find_model,
    hardware_names,
    link_names,
    model_names,
    runtime_names,
)
from sim.graph.jobs import RestoreRequest, Workload
from sim.machine.availability import ALWAYS
from sim.machine.components import JOIN
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec
from sim.service import ROUTINGS

APP = Path(dashboard.__file__).parent / "navigation.py"
PLANNING = ("advise", "plan", "what_if", "restore", "traffic")
"""Pages of questions; many random ones are refused."""

PAGES = (*PLANNING, "timeline", "machines", "accuracy")

LONGEST_S = 5.0
"""CPU seconds for which the server may work on a page by itself; workers show their progress."""

REMEDY = "remedy"
EASY, SWITCH = (True, False), ("true", "false")
NAMED = 0.95
"""Part of the controls that a link sets; the others keep their defaults."""

MEASURED = 0.1
"""Part of the links to a page of plans that show a measured case."""

Value = str | list[str]


@dataclass(frozen=True)
class Tried:
    """One random link.

    Args:
        headline: None for a page without an answer.
        refusals: texts on the page; none for an answer.
        after: what each offered button leads to: None for an answer, else why there is none.
        seconds: until the answer or the buttons.
        server_s: CPU seconds of the server's own process, which shows no progress meanwhile; the
            most of the link and its buttons.
    """

    page: str
    query: dict[str, Value]
    headline: str | None
    refusals: tuple[str, ...]
    after: dict[str, str | None]
    seconds: float
    server_s: float

    @property
    def fault(self) -> str | None:
        """What is wrong with it; None for nothing."""
        if self.server_s > LONGEST_S:
            return f"the server worked for {self.server_s:.1f} s without a progress bar"
        for text in self.refusals:
            if "defect" in text or "--" in text:
                return f"a refusal is not in the page's terms: {text}"
        if self.refusals and not self.after:
            return f"a refusal has no button: {self.refusals}"
        for button, why in self.after.items():
            if why is not None:
                return f"button {button} leads to no answer: {why}"
        return None if self.refusals or self.headline else "the page has no answer"


def random_link(random: Random, pages: Sequence[str] = PAGES) -> tuple[str, dict[str, Value]]:
    """A page and values of nearly all its controls; half of the links ask for a small job."""
    page = random.choice(pages)
    drawn = ASKED[page](random)
    return page, {key: value for key, value in drawn.items() if random.random() < NAMED}


def _machine(random: Random) -> dict[str, Value]:
    """A model, a machine, a link and GPUs, with or without a menu for each."""
    pick = random.choice
    hardware = pick([*hardware_names(), *composed_names()])
    names = model_names()
    if pick(EASY):
        room = find_hardware(hardware).memory.job_device_bytes / 2
        names = [name for name in names if find_model(name).weight_bytes < room] or names
    return {
        "model": pick(names),
        "hardware": hardware,
        f"link_of_{hardware.partition(JOIN)[0]}": pick(link_names()),
        "tp": pick(("1", str(pick(GPUS)))),
        "ep": str(pick(GPUS)),
    }


def _job(random: Random) -> dict[str, Value]:
    """A batch of prompts and the format of its cache."""
    easy = random.choice(EASY)
    return {
        "batch": str(random.randint(1, 16 if easy else BATCHES[-1])),
        "prompt": f"{random.choice(PROMPTS[:20] if easy else PROMPTS):,}",
        "kv_bits": random.choice(["as computed", "8 bits", "4 bits"]),
    }


def _decode(random: Random) -> dict[str, Value]:
    """What the pages Plan and What-if share."""
    easy = random.choice(EASY)
    return {
        **_machine(random),
        **_job(random),
        "gen": str(random.choice(STEPS[:2] if easy else STEPS)),
        "schedule": random.choice(["row", "column", "auto"]),
        "n_batches": str(random.choice(N_BATCHES[:2] if easy else N_BATCHES)),
        "keep": random.choice(SWITCH),
        **_pinned(random, _decode_text),
    }


def _advise(random: Random) -> dict[str, Value]:
    return {
        **_machine(random),
        **_job(random),
        "slo_ms": str(random.choice([1, 10, 100, 1000])),
        "runtime": random.choice(["none", *runtime_names()]),
        "shown": random.choice(
            ["What fits is kept in GPU memory", "All of the cache is in host memory"]
        ),
        **_pinned(random, _decode_text),
    }


def _plan(random: Random) -> dict[str, Value]:
    if random.random() < MEASURED:
        return {"of": "a measured case", **_case(random, restores=False)}
    return {
        **_decode(random),
        "policy": random.choice(POLICIES),
        "step_of_plan": str(random.choice([0, 1, 5])),
        "tokens": str(random.choice([0, 100, 1000])),
    }


def _what_if(random: Random) -> dict[str, Value]:
    pick, asked = random.choice, _decode(random)
    name = str(asked["hardware"])
    device = name.partition(JOIN)[0]
    if JOIN in name:
        name = f"{device}{JOIN}{asked[f'link_of_{device}']}"
    hardware = find_hardware(name)
    rates = {
        "link": (hardware.links.h2d.bytes_per_s / 1e9, "GB/s"),
        "flops": (hardware.gemm.flops_per_s / 1e12, "TFLOP/s"),
        "hbm": (hardware.attention.bytes_per_s / 1e9, "GB/s"),
    }
    axes = [axis.name for axis in AXES]
    return {
        **asked,
        **{key: f"{rate * pick(MULTIPLES):.4g} {unit}" for key, (rate, unit) in rates.items()},
        "gpus": pick(("1", str(pick(GPUS)))),
        "memory": pick(["as profiled", f"{pick(MEMORY_GIB):g} GiB"]),
        "both_ways": f"{pick(BOTH_WAYS):g}",
        "view": pick(["Split", "Crossover", "Map of two inputs"]),
        "over": pick(axes),
        "across": pick(axes),
        "up": pick(axes),
        "show": pick([measure.label for measure in MEASURES]),
    }


def _restore(random: Random) -> dict[str, Value]:
    if random.random() < MEASURED:
        return {"of": "a measured case", **_case(random, restores=True)}
    pick = random.choice
    trace = {"trace": _trace_text(random)} if pick(EASY) else {}
    return {
        **_machine(random),
        "prompt": f"{pick(RESTORE_PROMPTS[:6] if pick(EASY) else RESTORE_PROMPTS):,}",
        "cached": f"{pick(CACHED_FRACS):.0%}",
        "kv_bits": pick(["16 bits", "8 bits", "4 bits"]),
        "tier": pick([OWN_LINK, *TIER_NAMES.values()]),
        "rate": f"{pick(LINKS_GIB):g} GiB/s",
        "chunk": f"{pick(CHUNKS):,}",
        "io_chunk": f"{pick(IO_CHUNKS):,}",
        "share": f"{pick(GPU_SHARES):.1%}",
        "x": pick(SWITCH),
        "policy": pick(["auto", *RESTORES]),
        "view": pick(["Both ends", "Against bandwidth", "Availability"]),
        "foresight": pick(SWITCH),
        "runtime": pick(["none", *runtime_names()]),
        **trace,
        **_pinned(random, _restore_text),
    }


def _traffic(random: Random) -> dict[str, Value]:
    pick = random.choice
    sizes = sorted(random.sample(range(0, 513, 16), random.randint(1, 4)))
    easy = pick(EASY)
    return {
        **_machine(random),
        "trace": pick([*EXAMPLES, OWN]),
        "requests": f"{pick(REQUESTS[:3] if easy else REQUESTS):,}",
        "rate": f"{pick(RATES):g}",
        "burstiness": f"{pick(BURSTS):g}",
        "turns": f"{pick(TURNS):g}",
        "think": f"{pick(THINKS):g}",
        "agents": f"{pick(AGENTS):.0%}",
        "systems": str(pick(SYSTEMS)),
        **{key: f"{pick(TOKENS):,}" for key in ("system", "new", "output")},
        "seed": str(random.randint(0, 9)),
        "sizes": ",".join(f"{size}GB" if size else "0" for size in sizes),
        "policies": random.sample(SERVED, random.randint(1, 2 if easy else len(SERVED))),
        "instances": str(pick(INSTANCES[:4])),
        "routing": pick(ROUTINGS),
        "chunk": f"{pick(STEP_TOKENS):,}",
        **({"ttft_ms": str(pick([1, 500, 5000]))} if pick(EASY) else {}),
        **({"tpot_ms": str(pick([1, 50]))} if pick(EASY) else {}),
    }


def _timeline(random: Random) -> dict[str, Value]:
    last = random.randint(0, 11)
    asked: dict[str, Value] = {
        **_case(random),
        "step": random.choice(["all", "0", "1"]),
        "path": random.choice(SWITCH),
        "errors": random.choice(SWITCH),
        "layers": [str(random.randint(0, last)), str(last)],
    }
    if random.choice(EASY):
        asked["a"] = urlencode(_case(random))
    return asked


def _machines(random: Random) -> dict[str, Value]:
    machines = [*hardware_names(), *composed_names()]
    works = [subject.name for subject in subjects(find_hardware("kvpr-a100"))]
    return {
        "machine": random.choice([*machines, *(f"profile of run {run.label}" for run in _runs())]),
        "against": random.choice(["nothing", *machines]),
        "of_work": random.choice(works),
    }


def _accuracy(random: Random) -> dict[str, Value]:
    return {"recordings": random.choice(_runs()).label}


ASKED: dict[str, Callable[[Random], dict[str, Value]]] = {
    "advise": _advise,
    "plan": _plan,
    "what_if": _what_if,
    "restore": _restore,
    "traffic": _traffic,
    "timeline": _timeline,
    "machines": _machines,
    "accuracy": _accuracy,
}
"""What is drawn for each page."""


def _runs() -> list[Run]:
    return find_runs(Path("none"), SHIPPED_RUNS)


def _case(random: Random, restores: bool | None = None) -> dict[str, Value]:
    """A shipped case of any kind, of a restore or of a decode."""
    runs = [run for run in _runs() if restores is None or restores == ("restores" in run.label)]
    run = random.choice(runs)
    return {"run": run.label, "case": random.choice(run.case_names())}


def _pinned(random: Random, text: Callable[[Random], str]) -> dict[str, Value]:
    """In every third link, another question that is pinned as A."""
    return {"a": text(random)} if random.random() < 1 / 3 else {}


def _asked_machine(random: Random) -> tuple[ModelSpec, HardwareProfile, str]:
    drawn = _machine(random)
    name = str(drawn["hardware"])
    return find_model(str(drawn["model"])), find_hardware(name), name


def _decode_text(random: Random) -> str:
    pick = random.choice
    bits = pick([None, 8, 4])
    job = Workload(pick(BATCHES[:8]), pick(PROMPTS[:12]), pick(STEPS[:2]), kv_bits=bits)
    changes = Changes(link=pick(MULTIPLES), device_gib=pick([None, *MEMORY_GIB]))
    asked = Question(*_asked_machine(random), job, changes=changes, keep=pick([True, False]))
    return question_text(asked, pick(POLICIES))


def _restore_text(random: Random) -> str:
    pick = random.choice
    prompt = pick(RESTORE_PROMPTS[:5])
    request = RestoreRequest(
        prompt_tokens=prompt,
        cached_tokens=random.randint(1, prompt - 1),
        tier=pick(list(TIER_NAMES)),
        gpu_share=pick(GPU_SHARES),
        tier_kv_bits=pick([16, 8, 4]),
    )
    trace = read_trace_text(_trace_text(random)) if pick(EASY) else ALWAYS
    asked = RestoreQuestion(*_asked_machine(random), request, availability=trace)
    return restore_text(asked, pick(["auto", *RESTORES]))


def _trace_text(random: Random) -> str:
    """A trace of one to three rows over some lanes."""
    starts = sorted({round(10 ** random.uniform(-3, 1), 3) for _ in range(random.randint(1, 3))})
    rows = []
    for number, start_s in enumerate(starts):
        least = 0.1 if number == len(starts) - 1 else 0.0
        lanes = random.sample(["compute", "h2d", "disk", "net"], random.randint(1, 3))
        parts = (f"{lane}={round(random.uniform(least, 1.2), 2):g}" for lane in sorted(lanes))
        rows.append(f"{start_s:g}:{','.join(parts)}")
    return ";".join(rows)


def open_link(page: str, query: Mapping[str, Value]) -> tuple[AppTest, float]:
    """A page after its script has run, and the CPU seconds of the server's own process."""
    app = AppTest.from_file(APP, default_timeout=400)
    app.switch_page(f"app_pages/{page}.py")
    for key, value in query.items():
        app.query_params[key] = value
    with _unwatched() as server:
        app.run()
    return app, server.seconds


def try_link(page: str, query: Mapping[str, Value]) -> Tried:
    """Open a link; press each button of each refusal."""
    began_s = time.monotonic()
    app, server_s = open_link(page, query)
    first_s = time.monotonic() - began_s
    assert not app.exception, app.exception
    refusals = tuple(error.value for error in app.error)
    headline = app.header[0].value if app.header else None
    after: dict[str, str | None] = {}
    for button in _offered(app):
        again, _ = open_link(page, query)
        pressed = next((one for one in _offered(again) if one.label == button.label), None)
        if pressed is None:
            after[button.label] = "it is gone when the page runs again"
            continue
        pressed.click()
        with _unwatched() as server:
            again.run()
        assert not again.exception, (button.label, again.exception)
        after[button.label] = _without_answer(again)
        server_s = max(server_s, server.seconds)
    return Tried(page, dict(query), headline, refusals, after, first_s, server_s)


def _offered(app: AppTest) -> list[Any]:
    """The buttons that a page with a refusal offers."""
    if not app.error:
        return []
    pinned = any(error.value.startswith(NO_A) for error in app.error)
    keys = (REMEDY, "runtimes", "views", *(["unpin"] if pinned else []))
    return [one for one in app.button if (one.key or "").startswith(keys)]


def _without_answer(app: AppTest) -> str | None:
    """Why a page has no answer; a pinned A, a runtime and a view have buttons of their own."""
    if any((one.key or "").startswith(REMEDY) for one in app.button) or not app.header:
        return app.error[0].value if app.error else "no headline"
    return None


@dataclass
class _Spent:
    seconds: float = 0.0


@contextmanager
def _unwatched() -> Iterator[_Spent]:
    """CPU seconds of this process in which no worker is waited for with a progress bar."""
    spent, waited, wait = _Spent(), _Spent(), asking._wait

    def timed(*arguments: Any) -> None:
        began_s = time.process_time()
        try:
            wait(*arguments)
        finally:
            waited.seconds += time.process_time() - began_s

    began_s = time.process_time()
    asking._wait = timed
    try:
        yield spent
    finally:
        asking._wait = wait
        spent.seconds = time.process_time() - began_s - waited.seconds
