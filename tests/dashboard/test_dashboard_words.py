"""The glossary, the tour, and sentences that once misled."""

from pathlib import Path

import pytest
from apptest import show

from dashboard.text.glossary import PAGE_TERMS, TERMS
from dashboard.tour import STOPS

GLOSSARY = Path(__file__).parents[2] / "docs" / "glossary.md"


def test_every_term_of_a_page_is_in_both_glossaries():
    page = " ".join(block.value for block in show("glossary").markdown)
    document = GLOSSARY.read_text()
    for names in PAGE_TERMS.values():
        assert set(names) <= set(TERMS)
    for name in TERMS:
        assert f"**{name}**" in page
        assert name in document, f"{name} is missing in docs/glossary.md"


def test_a_page_spells_its_short_terms_out():
    told = show("plan", model="opt-125m", batch="4", prompt="256").caption[-1].value
    assert told.startswith("**lp**: the plan of a linear program")
    assert "**h2d**: copy from host memory to GPU memory" in told


def test_the_tour_goes_through_five_pages_and_ends():
    assert len(STOPS) == 5
    app = show("glossary", tour="2")
    assert any(block.value.startswith("**2 of 5") for block in app.markdown)
    back, onward = (one.proto for one in app.get("page_link"))
    assert (back.query_string, onward.query_string) == ("tour=1", "tour=3")
    assert (back.page, onward.page) == ("", "what_if")
    app.button(key="tour_end").click().run()
    assert not any(" of 5 " in block.value for block in app.markdown)
    assert "tour" not in app.query_params


def test_the_tour_starts_on_the_landing_page():
    app = show("advise", model="opt-125m", hardware="kvpr-a100", batch="4", prompt="256")
    app.button(key="start_tour").click().run()
    assert not app.exception
    assert any("1 of 5" in block.value for block in app.markdown)


@pytest.mark.parametrize(("gpus", "levels"), [("1", True), ("2", False)])
def test_no_bound_is_drawn_for_gpus_that_share_a_link(gpus, levels):
    query = {"model": "opt-125m", "hardware": "kvpr-a100", "batch": "4", "prompt": "256"}
    app = show("what_if", gpus=gpus, **query)
    specs = " ".join(chart.proto.spec for chart in app.get("plotly_chart"))
    assert ("no split is faster" in specs) == levels


def test_a_link_and_its_switch_are_named_together():
    query = {"model": "gemma-2-9b", "hardware": "kvpr-a100-4gpu", "policy": "load-all"}
    app = show("plan", keep="false", batch="8", prompt="512", **query)
    told = " ".join(block.value for block in app.markdown).replace("\\", "")
    assert "host-to-GPU link and its switch together are the bottleneck" in told


def test_a_restore_under_a_trace_is_not_clairvoyant_unless_asked():
    query = {"model": "longalpaca-7b", "hardware": "a100-80g", "prompt": "2,048"}
    drop = {"view": "Availability", "trace": "0.05:net=0.25", "policy": "lp"}
    blind, foreseen = (show("restore", **query, **drop, foresight=on) for on in ("false", "true"))

    def first_token_ms(app):
        return float(app.header[0].value.split(" ms")[0].split()[-1].replace(",", ""))

    assert first_token_ms(foreseen) < first_token_ms(blind)
    assert "--foresight" not in blind.code[-1].value
    assert "--foresight" in foreseen.code[-1].value
    told = " ".join(block.value for block in blind.markdown)
    assert "were planned for the whole machine, and run under the trace" in told


def test_an_optimal_plan_says_so():
    app = show("plan", model="opt-13b", hardware="kvpr-a100", keep="false")
    told = " ".join(block.value for block in app.caption)
    assert "Layers recompute " in told
    assert "This is optimal: no split can be faster than 451.7 ms." in told
