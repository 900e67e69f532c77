"""Calls in processes of their own: joined, limited, killed and cached; and the pages that wait."""

import os
import signal
import time
from math import factorial, sqrt
from operator import truediv
from pathlib import Path

import pytest
from apptest import show, unopened

from dashboard.asking import CANCELLED, Asked, TooLarge, key_of, progress_of
from dashboard.questions.decode import Question
from dashboard.questions.restore import RestoreQuestion
from dashboard.workers import WORKERS, Call, Died, OverBudget, Task
from sim.catalog import find_hardware, find_model
from sim.errors import UnknownName
from sim.graph.jobs import RestoreRequest, Workload

LONG = Call(time.sleep, (60,), "sleep")
FROZE = {
    "model": "llama-3.1-70b-fp8",
    "hardware": "arc-pro-b60+pcie4-x16",
    "batch": "4",
    "prompt": "8,192",
    "gen": "32",
    "schedule": "column",
    "n_batches": "4",
    "keep": "true",
    "kv_bits": "8 bits",
    "gpus": "8",
    "memory": "24 GiB",
}
"""A link whose plan takes minutes."""


def wait_until(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def alive(pid):
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def started(call):
    task = WORKERS.join(call)
    wait_until(lambda: task.pid is not None)
    return task, task.pid


def result_of(call):
    task = WORKERS.join(call)
    try:
        assert task.ended.wait(60)
        return task.result()
    finally:
        WORKERS.leave(task)


def test_the_answer_of_another_process_is_that_of_this_one():
    question = Question(
        find_model("opt-125m"), find_hardware("kvpr-a100"), "kvpr-a100", Workload(4, 256, 1)
    )
    plan = result_of(Call(question.plan, ("kvpr",), f"kvpr {question.key}"))
    assert plan == question.plan("kvpr")
    assert result_of(Call(question.plan, ("kvpr",), f"kvpr {question.key}")) is plan, "cached"
    changed = Question(question.whole, question.hardware, "kvpr-a100", Workload(4, 256, 2))
    assert changed.key != question.key
    assert changed.n_tasks == 2 * question.n_tasks == 2 * 4 * 12


def test_a_call_reports_its_progress():
    asked = RestoreRequest(prompt_tokens=64, cached_tokens=63)
    question = RestoreQuestion(find_model("opt-125m"), find_hardware("a100-80g"), "", asked)
    task = WORKERS.join(Call(question.answer, (), question.key, reports=True))
    assert task.ended.wait(60)
    WORKERS.leave(task)
    assert task.text == "Planning joint"
    assert task.done == 5 / 7
    assert set(task.result().plans) > {"two-ended", "lp"}


def test_a_failure_comes_back_with_its_class_and_message():
    with pytest.raises(UnknownName, match="'gpt' is unknown"):
        result_of(Call(find_model, ("gpt",), "gpt"))
    with pytest.raises(RuntimeError, match="ZeroDivisionError: division by zero"):
        result_of(Call(truediv, (1, 0), "zero"))


def test_the_last_visitor_that_leaves_kills_the_process():
    task, pid = started(LONG)
    assert WORKERS.join(LONG) is task, "equal calls share a process"
    WORKERS.leave(task)
    assert alive(pid)
    WORKERS.leave(task)
    wait_until(lambda: not alive(pid))
    wait_until(task.ended.is_set)
    assert WORKERS.n_running == 0
    again, other = started(LONG)
    assert other != pid, "a killed call is not cached"
    WORKERS.leave(again)


def test_a_call_is_killed_at_the_end_of_its_budget(monkeypatch):
    monkeypatch.setattr(WORKERS, "budget_s", 0.2)
    task, pid = started(LONG)
    assert task.ended.wait(20)
    WORKERS.leave(task)
    with pytest.raises(OverBudget, match=r"stopped after 0\.2 s"):
        task.result()
    wait_until(lambda: not alive(pid))


def test_a_killed_process_is_replaced():
    task, pid = started(LONG)
    os.kill(pid, signal.SIGKILL)
    assert task.ended.wait(20)
    WORKERS.leave(task)
    with pytest.raises(Died, match="ended without an answer"):
        task.result()
    assert result_of(Call(factorial, (5,), "factorial")) == 120


def test_a_killed_server_is_replaced_and_its_calls_end():
    server = WORKERS._server
    task, pid = started(LONG)
    server.kill()
    server.wait()
    assert alive(pid), "a call goes on"
    assert result_of(Call(sqrt, (9.0,), "root")) == 3.0
    WORKERS.leave(task)
    wait_until(lambda: not alive(pid))


def test_a_long_call_gets_a_low_priority(monkeypatch):
    monkeypatch.setattr("dashboard.workers.pool.NICE_AFTER_S", 0.0)
    task, pid = started(LONG)
    wait_until(lambda: os.getpriority(os.PRIO_PROCESS, pid) == 15)
    WORKERS.leave(task)


def test_progress_tells_the_time_and_never_ends_by_itself():
    task = Task(LONG)
    assert progress_of(task, "Planning") == (
        0.0,
        "Planning: waiting for other questions of this server",
    )
    task.started_s = time.monotonic() - 10
    fraction, text = progress_of(task, "Planning")
    assert fraction == pytest.approx(0.5, abs=0.01)
    assert text == "Planning, 10 s"
    task.text, task.done = "Planned 3 of 12 points", 0.25
    assert progress_of(task, "Planning") == (0.25, "Planned 3 of 12 points, 10 s")


def test_a_size_is_refused_above_its_limit():
    Asked(10, "", 10).check()
    with pytest.raises(TooLarge, match="about 11 tasks, and the dashboard plans at most 10"):
        Asked(11, "", 10).check()


def test_a_question_that_is_too_large_says_its_size_and_its_command():
    before = time.process_time()
    app = show("what_if", **FROZE)
    assert "about 327,680 tasks" in app.error[0].value
    assert app.code[-1].value.startswith("kvoverlap plan --model llama-3.1-70b-fp8")
    assert WORKERS.n_running == 0
    assert time.process_time() - before < 5


def test_a_cancelled_question_is_asked_again_at_the_press_of_a_button():
    query = {"model": "opt-125m", "batch": "3", "prompt": "200"}
    app = unopened("plan", **query)
    question = Question(
        find_model("opt-125m"),
        find_hardware("kvpr-a100"),
        "kvpr-a100",
        Workload(3, 200, 1),
        keep=True,
    )
    app.session_state[CANCELLED] = key_of(question.plan, f"lp {question.key}")
    app.run()
    assert app.info[0].value == "Cancelled. Change a control, or ask again."
    assert not app.header
    app.button(key="ask_again").click().run()
    assert "ms" in app.header[0].value
    assert not app.info
