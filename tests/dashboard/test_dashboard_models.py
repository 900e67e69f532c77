"""Questions about GPUs that share a model, and about caches that a checkpoint asks for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from apptest import show
from streamlit.testing.v1 import AppTest

from dashboard.questions.decode import Changes, Question
from dashboard.questions.restore import RestoreQuestion
from sim import Workload, find_hardware, find_model
from sim.graph.jobs import RestoreRequest

H100 = find_hardware("h100-sxm+pcie5-x16")
ASKS = find_model("nemotron-3-super-120b-a12b-fp8")
"""A model whose checkpoint asks for a cache in 8 bits."""


def controls(changeable=True):
    """The question of the controls of the pages Plan and What-if."""
    import streamlit as st

    from dashboard.controls.decode import ask_question

    st.code(ask_question(changeable).command())


def restore_controls():
    import streamlit as st

    from dashboard.controls.restore import ask_restore

    question, policy = ask_restore()
    st.code(question.command(policy))


def asked(page, **query):
    """The controls' command and their menus."""
    app = AppTest.from_function(page)
    for key, value in {"hardware": "h200+pcie5-x16", **query}.items():
        app.query_params[key] = value
    app.run()
    assert not app.exception, app.exception
    return app.code[0].value, {box.key for box in app.selectbox}


@pytest.mark.parametrize("page", [controls, restore_controls])
def test_whole_experts_on_the_gpus_that_share_a_model(page):
    command, _ = asked(page, model="mixtral-8x7b", tp="4", ep="2")
    assert "--tp 4" in command
    assert "--ep 2" in command
    _, menus = asked(page, model="opt-6.7b", tp="4")
    assert "ep" not in menus


@pytest.mark.parametrize(
    ("page", "own"), [(controls, "as computed"), (restore_controls, "16 bits")]
)
def test_a_cache_in_the_bits_that_the_checkpoint_asks_for(page, own):
    assert "--kv-bits" not in asked(page, model=ASKS.name)[0]
    assert "--kv-bits 16" in asked(page, model=ASKS.name, kv_bits=own)[0]
    assert "--kv-bits 4" in asked(page, model=ASKS.name, kv_bits="4 bits")[0]


def test_commands_name_bits_that_the_checkpoint_does_not_ask_for():
    decode = Question(ASKS, H100, H100.name, Workload(1, 64, 1, kv_bits=8))
    assert "--kv-bits" not in decode.command()
    assert "--kv-bits 16" in replace(decode, workload=Workload(1, 64, 1)).command()
    request = RestoreRequest(prompt_tokens=64, cached_tokens=63, tier_kv_bits=16)
    assert "--kv-bits 16" in RestoreQuestion(ASKS, H100, H100.name, request).command("lp")


def test_parts_of_a_model_share_switches_of_fewer_gpus():
    """Four parts behind two switches have half of the link each."""
    question = Question(find_model("opt-1.3b"), H100, H100.name, Workload(64, 1024, 1), tp=4)
    shared = replace(question, changes=Changes(gpus=2))
    assert [one.devices for one in shared.machine.uplinks] == [(0, 1), (2, 3)]
    halved = replace(question, changes=Changes(link=0.5))
    makespan_s = halved.plan("load-all").makespan_s
    assert shared.plan("load-all").makespan_s == pytest.approx(makespan_s, rel=1e-3)
    assert "--gpus" not in shared.command()
    assert [replace(question, changes=Changes(gpus=n)).jobs for n in (1, 4, 8)] == [1, 1, 2]


def test_a_shipped_model_is_found_by_its_name_on_hugging_face():
    app = show("plan", model="facebook/opt-125m", batch="1", prompt="64")
    assert "--model opt-125m " in app.code[-1].value
    assert not app.warning
    lost = show("plan", model="facebook/opt-0", batch="1", prompt="64")
    assert "--model opt-13b " in lost.code[-1].value
    assert "facebook/opt-0, which is not on offer; showing opt-13b" in lost.warning[0].value
