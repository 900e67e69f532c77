"""Random settings of all pages, as links: an answer, or a refusal that a button mends."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from streamlit.testing.v1 import AppTest

import dashboard
from dashboard import asking
from dashboard.controls.decode import BOTH_WAYS, MEMORY_GIB
from dashboard.controls.restore import CHUNKS, GPU_SHARES, IO_CHUNKS
from dashboard.controls.traffic import EXAMPLES, OWN, RATES, REQUESTS
from dashboard.data.runs import SHIPPED_RUNS, find_runs
from dashboard.questions.offered import (
    BATCHES,
    GPUS,
    N_BATCHES,
    PROMPTS,
    RESTORE_PROMPTS,
    STEPS,
)
from dashboard.questions.traffic import POLICIES as SERVED
from planner import POLICIES
from sim.catalog import composed_names, hardware_names, model_names

APP = Path(dashboard.__file__).parent / "navigation.py"
PLANNING = ("advise", "plan", "what_if", "restore", "traffic")
"""Pages of questions; most random ones are refused."""

RECORDED = ("timeline", "accuracy", "machines")
"""Pages of the shipped recordings and machines, which refuse nothing."""

PAGES = (*PLANNING, *RECORDED)

LONGEST_S = 5.0
"""CPU seconds for which the server may work on a page by itself; workers show their progress."""


@dataclass(frozen=True)
class Tried:
    """One random link.

    Args:
        refusal: the text on the page; None for an answer.
        answered: whether the page or the button leads to a headline.
        seconds: until the answer or the buttons, and from the press of a button to its answer.
        server_s: CPU seconds of the server's own process, which shows no progress meanwhile.
    """

    page: str
    query: dict[str, str]
    refusal: str | None
    buttons: tuple[str, ...]
    answered: bool
    seconds: tuple[float, float]
    server_s: float

    @property
    def fault(self) -> str | None:
        """What is wrong with it; None for nothing."""
        if self.server_s > LONGEST_S:
            return f"the server worked for {self.server_s:.1f} s without a progress bar"
        if self.refusal is None:
            return None if self.answered else "the page has no answer"
        if "defect" in self.refusal or "--" in self.refusal:
            return "the refusal is not in the page's terms"
        if not self.buttons:
            return "the refusal has no button"
        return None if self.answered else "the button leads to no answer"


def random_link(random: Random, pages: Sequence[str] = PAGES) -> tuple[str, dict[str, str]]:
    """A page and the settings of its controls, each as likely as the other ones."""
    page, pick = random.choice(pages), random.choice
    if page in RECORDED:
        return page, _recorded(page, random)
    query = {
        "model": pick(model_names()),
        "hardware": pick([*hardware_names(), *composed_names()]),
        "tp": str(pick(GPUS)),
    }
    if page == "traffic":
        return page, query | _service(random)
    query["kv_bits"] = pick(["as computed", "8 bits", "4 bits"])
    if page == "restore":
        return page, query | {
            "prompt": f"{pick(RESTORE_PROMPTS):,}",
            "kv_bits": pick(["16 bits", "8 bits", "4 bits"]),
            "tier": pick(["in host memory", "behind a link"]),
            "chunk": f"{pick(CHUNKS):,}",
            "io_chunk": f"{pick(IO_CHUNKS):,}",
            "share": f"{pick(GPU_SHARES):.1%}",
            "x": pick(["true", "false"]),
        }
    query |= {"batch": f"{random.randint(1, BATCHES[-1])}", "prompt": f"{pick(PROMPTS):,}"}
    if page == "advise":
        return page, query | {"slo_ms": str(pick([1, 10, 100, 1000]))}
    query |= {
        "gen": str(pick(STEPS)),
        "schedule": pick(["row", "column", "auto"]),
        "n_batches": str(pick(N_BATCHES)),
        "keep": pick(["true", "false"]),
    }
    if page == "plan":
        return page, query | {"policy": pick(POLICIES)}
    return page, query | {
        "gpus": str(pick(GPUS)),
        "memory": f"{pick(MEMORY_GIB):g} GiB",
        "both_ways": f"{pick(BOTH_WAYS):g}",
        "view": pick(["Split", "Crossover", "Map of two inputs"]),
    }


def _recorded(page: str, random: Random) -> dict[str, str]:
    """A case of a shipped recording, a recording, or two machines."""
    machines = [*hardware_names(), *composed_names()]
    if page == "machines":
        return {"machine": random.choice(machines), "against": random.choice(machines)}
    run = random.choice(find_runs(Path("none"), SHIPPED_RUNS))
    if page == "accuracy":
        return {"recordings": run.label}
    return {
        "run": run.label,
        "case": random.choice(run.case_names()),
        "step": random.choice(["all", "0", "1"]),
        "path": random.choice(["true", "false"]),
    }


def _service(random: Random) -> dict[str, str]:
    """Requests and sizes of a service."""
    sizes = sorted(random.sample(range(0, 513, 16), random.randint(1, 4)))
    return {
        "trace": random.choice([*EXAMPLES, OWN]),
        "requests": f"{random.choice(REQUESTS):,}",
        "rate": f"{random.choice(RATES):g}",
        "sizes": ",".join(f"{size}GB" if size else "0" for size in sizes),
        "policies": random.choice(SERVED),
        "instances": str(random.choice([1, 2, 4])),
    }


def try_link(page: str, query: dict[str, str]) -> Tried:
    """Open a link; press the first button of a refusal."""
    app = AppTest.from_file(APP, default_timeout=180)
    app.switch_page(f"app_pages/{page}.py")
    for key, value in query.items():
        app.query_params[key] = value
    began_s = time.monotonic()
    with _unwatched() as server:
        app.run()
    first_s, then_s = time.monotonic() - began_s, 0.0
    assert not app.exception, app.exception
    buttons = [one for one in app.button if (one.key or "").startswith("remedy")]
    labels, answered = tuple(one.label for one in buttons), bool(app.header)
    refusal = app.error[0].value if app.error else None
    if buttons:
        began_s = time.monotonic()
        buttons[0].click().run()
        then_s = time.monotonic() - began_s
        answered = not app.error and not app.exception and bool(app.header)
    return Tried(page, query, refusal, labels, answered, (first_s, then_s), server.seconds)


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
