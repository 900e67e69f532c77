"""An answer pinned as A next to the present one, B, and the text that holds A in the address."""

from urllib.parse import parse_qsl, urlencode

import pytest
from apptest import show
from browser import make_run
from hypothesis import given, settings
from hypothesis import strategies as st
from lane_bars import drawn

from dashboard.questions.decode import Changes, Question
from dashboard.questions.pinned import (
    differences,
    question_text,
    read_question,
    read_restore,
    restore_text,
)
from dashboard.questions.restore import RestoreQuestion
from dashboard.text.compare import price_per_million, verdict
from planner import Job, PlanOptions, make_plan
from sim import Workload, find_hardware, find_model
from sim.errors import BadInput
from sim.graph.jobs import RestoreRequest
from sim.machine.availability import Availability, Step

MODEL, MACHINE = find_model("opt-125m"), find_hardware("kvpr-a100")
SMALL = {"model": "opt-125m", "hardware": "kvpr-a100", "batch": "4", "prompt": "256"}


def captions(app):
    """Captions without the marks that make Markdown inert."""
    return [one.value.replace("\\", "") for one in app.caption]


def back(text, read):
    return read(text, find_model, find_hardware)


@given(
    job=st.builds(
        Workload,
        st.integers(1, 256),
        st.integers(1, 65536),
        st.integers(1, 32),
        st.integers(1, 16),
        st.sampled_from((None, 4, 8)),
    ),
    changes=st.builds(
        Changes,
        link=st.sampled_from((0.125, 1.0, 3.0)),
        gpus=st.sampled_from((1, 8)),
        both_ways=st.sampled_from((None, 0.7)),
        device_gib=st.sampled_from((None, 80.0)),
    ),
    keep=st.booleans(),
    tp=st.sampled_from((1, 2)),
    policy=st.sampled_from(("lp", "kvpr")),
)
@settings(max_examples=60, deadline=None)
def test_the_text_of_a_question_reads_back_as_the_question(job, changes, keep, tp, policy):
    asked = Question(MODEL, MACHINE, "kvpr-a100", job, "column", changes, keep, tp)
    assert back(question_text(asked, policy), read_question) == (asked, policy)


@pytest.mark.parametrize("trace", [Availability(()), Availability((Step(0.4, (("net", 0.25),)),))])
@pytest.mark.parametrize("rate", [None, 4.0 * 2**30])
def test_the_text_of_a_restore_reads_back_as_the_restore(trace, rate):
    request = RestoreRequest(prompt_tokens=2048, cached_tokens=2000, tier="net", gpu_share=0.5)
    asked = RestoreQuestion(MODEL, MACHINE, "kvpr-a100", request, rate, trace, "kv+x")
    assert back(restore_text(asked, "joint"), read_restore) == (asked, "joint")


@pytest.mark.parametrize("text", ["", "model=opt-125m", "x", "model=opt-125m&hardware=kvpr-a100"])
def test_a_text_that_is_no_question_is_refused(text):
    for read in (read_question, read_restore):
        with pytest.raises(BadInput, match="unpin it"):
            back(text, read)


def test_differences_name_the_inputs_in_the_words_of_the_page():
    one, other = (
        question_text(Question(MODEL, MACHINE, name, Workload(batch, 256, 1)))
        for name, batch in (("kvpr-a100", 4), ("h100", 8))
    )
    assert differences(one, other) == [("Machine", "kvpr-a100", "h100"), ("Batch", "4", "8")]
    assert differences(one, one) == []


def test_the_faster_one_is_named_with_its_ratio():
    assert verdict(0.2, 0.1, "a step") == (
        "B takes 100.0 ms a step, A 200.0 ms: B is 2.00 times as fast."
    )
    assert verdict(0.1, 0.1, "a step") == "A and B both take 100.0 ms a step."


def test_a_million_tokens_cost_what_an_hour_of_each_gpu_costs_over_its_tokens():
    """3.60 an hour is 0.001 a second; at 1,000 tokens a second a million cost 1.00."""
    plan = make_plan(Job(MODEL, MACHINE, Workload(4, 256, 1)), PlanOptions())
    an_hour = 3.6 * plan.tokens_per_s / 1000
    assert price_per_million(plan, an_hour) == pytest.approx(1.0)


@pytest.mark.parametrize("page", ["plan", "what_if"])
def test_a_pinned_answer_is_shown_next_to_the_changed_one(page):
    app = show(page, **SMALL)
    before = app.header[0].value
    app.button(key="pin").click().run()
    assert not app.exception
    assert app.header[0].value == before
    pinned = "".join(app.query_params["a"])
    app.select_slider(key="batch").set_value(64).run()
    assert not app.exception
    assert dict(parse_qsl(pinned))["batch_size"] == "4"
    assert any("Batch: 4 (A), 64 (B)" in text for text in captions(app))
    table = app.dataframe[0].value
    assert list(table.columns) == ["", "A", "B"]
    lanes = next(one for one in drawn(app) if one["ends"][0]["source"] == "A")
    assert [end["source"] for end in lanes["ends"]] == ["A", "B"]
    app.number_input(key="price_a").set_value(2.0).run()
    assert "price of 1 M tokens" in app.dataframe[0].value[""].tolist()
    other = show(page, **{**SMALL, "batch": "64", "a": pinned})
    assert other.dataframe[0].value.equals(table), "the link holds both answers"
    app.button(key="unpin").click().run()
    assert "a" not in app.query_params
    assert not any("(A)" in text for text in captions(app))


def test_the_kept_plan_of_advise_is_the_same_when_it_is_pinned():
    app = show("advise", **SMALL)
    app.button(key="pin").click().run()
    app.select_slider(key="prompt").set_value(512).run()
    step = app.dataframe[0].value.set_index("").loc["step"]
    alone = show("advise", **{**SMALL, "prompt": "512"})
    assert step["B"] in alone.header[0].value
    assert step["A"] in show("advise", **SMALL).header[0].value


def test_restores_are_compared():
    query = {"model": "opt-125m", "hardware": "kvpr-a100", "prompt": "2,048", "policy": "two-ended"}
    app = show("restore", **query)
    app.button(key="pin").click().run()
    app.select_slider(key="rate").set_value(16.0).run()
    assert not app.exception
    table = app.dataframe[0].value.set_index("")
    assert table.loc["first token", "B"] in app.header[0].value
    assert any("is 1." in one.value or "times as fast" in one.value for one in app.markdown)


def test_an_unknown_machine_of_a_link_is_refused_and_no_file_is_read():
    text = urlencode(
        {
            **dict(
                parse_qsl(question_text(Question(MODEL, MACHINE, "kvpr-a100", Workload(4, 256, 1))))
            ),
            "hardware": "/etc/passwd",
        }
    )
    app = show("plan", **SMALL, a=text)
    assert len(app.error) == 1
    assert "upload its profile first" in app.error[0].value


def test_two_measured_cases_are_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dashboard.data.runs.SHIPPED_RUNS", tmp_path / "shipped")
    make_run(tmp_path / "runs" / "here", [Workload(2, 128, 1)])
    app = show("timeline", case="b2-s128-lp")
    app.button(key="pin").click().run()
    app.selectbox(key="case").select("b2-s128-load-all").run()
    assert not app.exception
    differs = "Case: b2-s128-lp (A), b2-s128-load-all (B)"
    assert any(differs in text for text in captions(app))
    assert "measured" in app.dataframe[0].value[""].tolist()
    assert [end["source"] for end in drawn(app)[0]["ends"]] == ["A", "B"]
