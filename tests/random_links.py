"""Random settings of pages that plan, as links: an answer, or a refusal that a button mends."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

from streamlit.testing.v1 import AppTest

import dashboard
from dashboard.controls.decode import BOTH_WAYS, MEMORY_GIB
from dashboard.controls.restore import CHUNKS, GPU_SHARES, IO_CHUNKS
from dashboard.questions.offered import (
    BATCHES,
    GPUS,
    N_BATCHES,
    PROMPTS,
    RESTORE_PROMPTS,
    STEPS,
)
from planner import POLICIES
from sim.catalog import composed_names, hardware_names, model_names

APP = Path(dashboard.__file__).parent / "navigation.py"
PAGES = ("plan", "what_if", "restore")


@dataclass(frozen=True)
class Tried:
    """One random link.

    Args:
        refusal: the text on the page; None for an answer.
        mended: whether the first button leads to an answer.
        seconds: until the answer or the buttons, and from the press of a button to its answer.
    """

    page: str
    query: dict[str, str]
    refusal: str | None
    buttons: tuple[str, ...]
    mended: bool
    seconds: tuple[float, float]

    @property
    def fault(self) -> str | None:
        """What is wrong with it; None for nothing."""
        if self.refusal is None:
            return None
        if "defect" in self.refusal or "--" in self.refusal:
            return "the refusal is not in the page's terms"
        if not self.buttons:
            return "the refusal has no button"
        return None if self.mended else "the button leads to no answer"


def random_link(random: Random) -> tuple[str, dict[str, str]]:
    """A page and the settings of its controls, each as likely as the other ones."""
    page = random.choice(PAGES)
    pick = random.choice
    query = {
        "model": pick(model_names()),
        "hardware": pick([*hardware_names(), *composed_names()]),
        "kv_bits": pick(["as computed", "8 bits", "4 bits"]),
    }
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
    query |= {
        "batch": f"{pick(BATCHES):,}",
        "prompt": f"{pick(PROMPTS):,}",
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
    }


def try_link(page: str, query: dict[str, str]) -> Tried:
    """Open a link; press the first button of a refusal."""
    app = AppTest.from_file(APP, default_timeout=180)
    app.switch_page(f"app_pages/{page}.py")
    for key, value in query.items():
        app.query_params[key] = value
    began_s = time.monotonic()
    app.run()
    first_s, then_s = time.monotonic() - began_s, 0.0
    assert not app.exception, app.exception
    buttons = [one for one in app.button if (one.key or "").startswith("remedy")]
    labels, mended = tuple(one.label for one in buttons), False
    refusal = app.error[0].value if app.error else None
    if buttons:
        began_s = time.monotonic()
        buttons[0].click().run()
        then_s = time.monotonic() - began_s
        mended = not app.error and not app.exception and bool(app.header)
    return Tried(page, query, refusal, labels, mended, (first_s, then_s))
