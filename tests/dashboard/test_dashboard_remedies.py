"""Refusals in the pages' own terms, each with buttons that lead to an answer."""

from dataclasses import replace
from random import Random

import pytest
from apptest import show
from builders import SOAK
from random_links import PLANNING, random_link, try_link

from dashboard.asking import Cancelled
from dashboard.questions.decode import Changes, Question
from dashboard.questions.offered import BATCHES
from dashboard.questions.remedies import (
    LP,
    ROOMY_MACHINE,
    Asking,
    decode_changes,
    remedies_for,
    safe,
)
from dashboard.questions.restore import RestoreQuestion
from dashboard.text.refusal import NO_PLAN, describe_refusal
from sim.catalog import find_hardware, find_model
from sim.errors import BadInput, DoesNotFit, KvOverlapError, PlannerFailed
from sim.graph.jobs import RestoreRequest, Workload
from sim.progress import Silent


@pytest.fixture(autouse=True)
def unhurried(monkeypatch):
    """A slow machine tries as many changes as a fast one."""
    monkeypatch.setattr("dashboard.questions.remedies.ENOUGH_S", 1e3)
    monkeypatch.setattr("dashboard.questions.remedies.LIMIT_S", 1e3)


def question(model="opt-13b", machine="kvpr-a100", batch=32, prompt=1024, **more):
    job = Workload(batch, prompt, 1)
    return Question(find_model(model), find_hardware(machine), machine, job, **more)


def labels(asking):
    return [remedy.label for remedy in remedies_for(asking, Silent())]


def test_the_batch_offered_is_the_largest_that_has_an_answer():
    asked = question(batch=256, prompt=2000)
    smaller = [
        remedy
        for remedy in remedies_for(Asking(asked, "load-all"), Silent())
        if "batch" in remedy.settings
    ]
    fewer = smaller[0].settings["batch"]
    assert fewer not in BATCHES
    replace(asked, workload=Workload(fewer, 2000, 1)).check("load-all")
    with pytest.raises(DoesNotFit):
        replace(asked, workload=Workload(fewer + 1, 2000, 1)).check("load-all")


def test_a_batch_between_the_steps_of_the_slider_can_be_reached_and_linked():
    app = show("plan", batch="21", model="opt-125m", prompt="64")
    assert app.select_slider(key="batch").value == 21
    assert app.query_params["batch"] == "21"
    assert "--batch 21" in app.code[-1].value
    app.select_slider(key="batch").set_value(24).run()
    assert app.select_slider(key="batch").value == 24


def test_a_prompt_over_the_positions_of_the_model_becomes_the_longest_on_offer():
    asked = question("opt-125m", prompt=8192, batch=1)
    first = next(decode_changes(Asking(asked, LP)))
    assert first.answered
    first = first.remedy
    assert first.settings == {"prompt": 2046}
    assert first.label == "Prompt 2,046 (the model has 2,048 positions)"


def test_a_policy_with_a_schedule_of_its_own_becomes_the_row_schedule():
    asked = question(model="opt-125m", schedule="column", batch=2, prompt=64)
    assert labels(Asking(asked, "hf-offloaded"))[:2] == ["Row schedule", "Policy lp"]


def test_a_question_of_too_many_tasks_becomes_one_of_fewer_steps():
    job = Workload(1, 128, 32, 16)
    asked = replace(question("opt-125m"), workload=job, schedule="column", changes=Changes(gpus=8))
    assert asked.n_tasks == 4 * 8 * 32 * 16 * 12
    changes = decode_changes(Asking(asked, LP, max_tasks=30_000))
    fewer = next(one for one in changes if "gen" in one.settings)
    assert fewer.settings == {"gen": 4}
    assert fewer.question.n_tasks == asked.n_tasks // 8


def test_fewer_gpus_are_offered_where_switches_serve_no_more():
    asked = question("opt-6.7b", "kvpr-a100-4gpu", batch=2, prompt=64, tp=8)
    assert labels(Asking(asked, LP))[0] == "4 GPUs share the model"


def test_a_model_that_fits_nowhere_near_gets_a_machine_with_more_memory():
    asked = question("llama-3.1-405b", "a10+pcie4-x16", batch=1, prompt=64)
    assert labels(Asking(asked, LP, schedules=False))[0] == (
        f"Machine {ROOMY_MACHINE}, 4 GPUs share the model"
    )


def test_after_a_used_up_budget_no_button_leads_to_a_plan_of_minutes():
    job = Workload(4, 128, 16, 4)
    asked = replace(question("opt-125m"), workload=job, schedule="column", keep=True)
    found = remedies_for(Asking(asked, LP, max_tasks=asked.n_tasks // 4, quick=True), Silent())
    assert found
    for one in found:
        assert one.settings.get("schedule") == "row" or one.settings.get("keep") is False


def test_a_button_sets_a_control_that_the_page_does_not_show_yet():
    """One GPU holds all experts, so that the page of the link shows their menu as a note."""
    link = {"model": "mixtral-8x7b", "hardware": "kvpr-a100", "tp": "1", "ep": "4"}
    app = show("restore", prompt="512", **link)
    app.button(key="remedy 0").click().run()
    assert app.header
    assert (app.selectbox(key="tp").value, app.selectbox(key="ep").value) == (4, 1)


def test_a_headline_of_a_page_names_no_option_of_the_command_line():
    app = show("plan", model="opt-30b", batch="1", prompt="64", schedule="column", n_batches="1")
    assert "2 GPUs hold them)" in app.header[0].value


@pytest.mark.parametrize("restores", [False, True])
def test_the_last_remedy_has_an_answer(restores):
    asked = question("llama-3.1-405b", "cpu-xeon-opt-125m")
    if restores:
        request = RestoreRequest(prompt_tokens=131072, cached_tokens=131071, tier="net")
        asked = RestoreQuestion(asked.whole, asked.hardware, asked.reference, request)
    assert safe(Asking(asked, LP)).answered


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            BadInput(
                "prompt_tokens + gen_tokens (=8193) must be at most the 2048 positions of opt-13b; "
                "lower --prompt or --gen."
            ),
            "prompt and decode steps together (8193 tokens) must be at most the 2048 positions of "
            "opt-13b.",
        ),
        (
            BadInput("kv_bits(=8): the latent cache of m is not modelled quantised; leave it out."),
            "A KV cache of 8 bits: the latent cache of m is not modelled quantised.",
        ),
        (
            BadInput("policy 'flexgen' has a schedule of its own; leave --schedule at row."),
            "policy 'flexgen' has a schedule of its own.",
        ),
        (
            DoesNotFit(
                "m does not fit on one GPU of h: weights take 80 of 40 GiB (2 GPUs hold them: "
                "--tp 2); choose a smaller model or dtype."
            ),
            "m does not fit on one GPU of h: weights take 80 of 40 GiB (2 GPUs hold them).",
        ),
        (
            PlannerFailed("the LP ended 'Infeasible'; report the plan's inputs as a defect."),
            NO_PLAN,
        ),
        (KvOverlapError("file.json is empty."), "file.json is empty."),
    ],
)
def test_a_refusal_has_no_words_of_the_command_line(error, text):
    assert describe_refusal(error).lower() == text.lower()


SMALL = {"model": "opt-125m", "gen": "1", "batch": "2", "schedule": "row", "view": "Split"}


@pytest.mark.parametrize("page", PLANNING)
def test_random_settings_have_an_answer_or_a_button_that_leads_to_one(page):
    """Of a small model, so that answers are fast; `make soak` asks of all models."""
    page, query = random_link(Random(page), [page])  # noqa: S311
    tried = try_link(page, query | {key: SMALL[key] for key in SMALL.keys() & query.keys()})
    assert tried.fault is None, tried


@pytest.mark.skipif(not SOAK, reason="takes a quarter of an hour; make soak runs it")
@pytest.mark.parametrize("seed", range(100))
def test_every_random_setting_has_an_answer_or_a_button_that_leads_to_one(seed):
    tried = try_link(*random_link(Random(seed)))  # noqa: S311
    assert tried.fault is None, tried


def test_a_quantised_cache_that_a_policy_lacks_becomes_one_as_computed():
    query = {"model": "opt-125m", "batch": "2", "kv_bits": "4 bits", "policy": "hf-offloaded"}
    tried = try_link("plan", query)
    assert tried.refusals
    assert tried.fault is None, tried


@pytest.mark.parametrize(
    ("page", "part"),
    [("advise", "timeline_of"), ("what_if", "facts_of"), ("traffic", "service_minute")],
)
def test_a_cancelled_part_of_an_answer_can_be_asked_again(page, part, monkeypatch):
    def cancelled(*_):
        raise Cancelled("key")

    monkeypatch.setattr(f"dashboard.session.{part}", cancelled)
    monkeypatch.setattr(f"dashboard.controls.plan.{part}", cancelled, raising=False)
    query = {"model": "opt-125m", "hardware": "kvpr-a100", "batch": "1", "prompt": "64"}
    app = show(page, **query, sizes="0,4GB", policies="load-only", trace="chat")
    assert app.header
    assert app.info[-1].value.startswith("Cancelled.")
    assert app.button(key="ask_again")


def test_layers_that_no_split_can_divide_have_a_page_too():
    query = {"model": "deepseek-v4-pro", "hardware": "mi300x+pcie5-x16", "batch": "48"}
    tried = try_link("plan", {**query, "tp": "8", "prompt": "1,536", "keep": "false"})
    assert not tried.refusals, tried
