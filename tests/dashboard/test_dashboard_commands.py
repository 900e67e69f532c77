"""Numbers of a page equal those of the command that it shows, for random settings."""

from __future__ import annotations

import json
import shlex
from random import Random

import pytest
from apptest import charts, show
from builders import SOAK
from random_links import Value, random_link

from dashboard.questions.offered import BATCHES, PROMPTS, RESTORE_PROMPTS, STEPS
from dashboard.text.refusal import in_page_terms
from kvoverlap.cli.main import main
from sim.units import ms

PAGES = ("advise", "plan", "restore", "what_if")
SEEDS = range(30 if SOAK else 8)
"""`make soak` compares 30 settings."""

BESIDE = ("a", "runtime", "view", "trace", "gpus", "both_ways")
"""Controls that are left at their defaults."""

MODELS = ("opt-125m", "qwen3-0.6b")
"""Small ones, of which most settings have an answer."""


@pytest.fixture(autouse=True)
def nothing_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def settings(seed: int) -> tuple[str, dict[str, Value]]:
    """A page in turn, and random settings of small jobs.

    Changes that no option makes are left out, because their command needs a download, and what the
    command does not answer.
    """
    random, page = Random(seed), PAGES[seed % len(PAGES)]  # noqa: S311
    asked = "plan" if page == "advise" else page
    found, query = "", {}
    while found != asked or "of" in query:
        found, query = random_link(random)
    query = {key: value for key, value in query.items() if key not in BESIDE}
    query["model"] = MODELS[(seed // 2 + seed // 8) % 2]
    prompts = RESTORE_PROMPTS if page == "restore" else PROMPTS
    query["prompt"] = f"{random.choice([one for one in prompts if 256 <= one <= 1024]):,}"
    if page == "restore":
        return page, query
    query["batch"] = f"{random.choice([one for one in BATCHES if one <= 16]):,}"
    query["gen"] = str(random.choice([one for one in STEPS if one <= 2]))
    query["n_batches"] = "2"
    return page, query


def plain(axis: dict[str, list[str]]) -> list[str]:
    """Names along an axis; the chosen one is bold."""
    return [name.removeprefix("<b>").removesuffix("</b>") for name in axis.get("ticktext", ())]


@pytest.mark.parametrize("seed", SEEDS)
def test_numbers_of_a_page_equal_those_of_its_command(seed, capsys):
    page, query = settings(seed)
    app = show(page, **query)
    if app.error:
        next(one for one in app.button if (one.key or "").startswith("remedy")).click().run()
    shown = app.code[-1].value
    assert main([*shlex.split(shown)[1:], "--json"]) == 0, shown
    answer = json.loads(capsys.readouterr().out)
    header = app.header[0].value
    if page == "advise":
        assert header == in_page_terms(answer["headline"])
    elif page == "restore":
        assert f": first token after {ms(answer['ttft_s'])}" in header
        told = app.dataframe[-1].value.set_index("policy")["TTFT (ms)"]
        for policy, seconds in answer["baselines"].items():
            assert told[policy] == pytest.approx(1e3 * seconds)
    elif page == "plan":
        times = {**answer["baselines"], answer["policy"]: answer["makespan_s"]}
        chart = next(one for one in charts(app) if "lp" in plain(one["layout"]["yaxis"]))
        bars = chart["data"][0]
        shown_ms = dict(zip(plain(chart["layout"]["yaxis"]), bars["x"], strict=True))
        assert shown_ms == pytest.approx(
            {policy: 1e3 * seconds for policy, seconds in times.items()}
        )
    else:
        assert header.startswith(f"{ms(answer['makespan_s'])}, ")
        for card in app.metric:
            assert card.value == ms(answer["baselines"][card.label])
