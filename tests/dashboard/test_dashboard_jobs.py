"""A measurement in the background, by a real child or a script, and the page that follows it."""

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from apptest import show
from tiny import CONFIG

import dashboard.data.jobs
from dashboard.data.jobs import Jobs, MeasurementRequest
from dashboard.session import jobs
from measure.child import COMMAND, read_status
from measure.validation import ValidationRequest
from sim.errors import BadInput

REQUEST = MeasurementRequest("here", "cpu", "300,500", "4,7", 2)

TALK = """
print('{"progress": "profile, pass 3 of 8", "fraction": 0.0625}')
print('{"result": "runs/here"}')
"""
FAIL = """import sys; print('{"error": "no such device."}'); sys.exit(2)"""
SILENT_END = """print('{"progress": "profile", "fraction": 0.1}')"""
PARTIAL = """print('{"result": "runs/he', end="")"""
SLEEP = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path("child").write_text(str(child.pid))
print('{"progress": "b4-s300, round 2", "fraction": 0.4}', flush=True)
time.sleep(60)
"""
IGNORE = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEP


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Jobs whose command is a script, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    started = []

    def make(script):
        made = Jobs([sys.executable, "-c", script])
        started.append(made)
        return made

    yield make
    for made in started:
        made.stop()
        if made.latest is not None:
            made.latest.output.close()


def wait_until(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def alive(pid):
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ended(job):
    wait_until(lambda: not job.running)
    return job


def test_an_ended_job_has_its_result_and_its_texts(play):
    job = ended(play(TALK).start(REQUEST, Path("runs")))
    assert job.failure is None
    assert job.status.result == "runs/here"
    assert job.status.texts == ("profile, pass 3 of 8",)
    assert job.status.fraction == 0.0625
    assert job.elapsed_s < 20
    assert not job.stopped


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        (FAIL, "no such device."),
        (SILENT_END, "its process ended without a result (status 0)."),
        (PARTIAL, "its process ended without a result (status 0)."),
        ("import os; os.kill(os.getpid(), 9)", "its process was killed by SIGKILL."),
        ("raise SystemExit(3)", "its process ended without a result (status 3)."),
    ],
)
def test_a_failed_job_says_why_in_one_sentence(play, script, sentence):
    assert ended(play(script).start(REQUEST, Path("runs"))).failure == sentence


def test_a_real_child_reports_progress_until_it_is_killed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(dashboard.__file__).parents[1]))
    made = Jobs(COMMAND)
    Path("tiny.json").write_text(json.dumps(CONFIG))
    job = made.start(replace(REQUEST, model="tiny.json"), Path("runs"))
    wait_until(lambda: any("pass 1 of" in text for text in job.status.texts), 120)
    os.kill(job.process.pid, signal.SIGKILL)
    assert ended(job).failure == "its process was killed by SIGKILL."
    assert not job.stopped
    assert not Path("runs").exists()
    job.output.close()
    job = ended(made.start(MeasurementRequest("here", "tpu", "300", "4", 2), Path("runs")))
    assert "device 'tpu' is unknown" in job.failure
    assert job.process.returncode == 2
    job.output.close()


@pytest.mark.parametrize("script", [SLEEP, IGNORE])
def test_stopping_ends_the_job_with_its_children_and_nothing_else(play, script, monkeypatch):
    monkeypatch.setattr(dashboard.data.jobs, "STOP_S", 0.3)
    made = play(script)
    job = made.start(REQUEST, Path("runs"))
    wait_until(lambda: job.status.texts and Path("child").exists())
    child = int(Path("child").read_text())
    assert os.getpgid(child) == os.getpgid(job.process.pid) == job.process.pid
    assert os.getpgid(os.getpid()) != job.process.pid
    assert alive(child)
    made.stop()
    assert job.stopped
    assert not job.running
    wait_until(lambda: not alive(child))


def test_only_one_measurement_runs_at_a_time(play):
    made = play(SLEEP)
    made.start(REQUEST, Path("runs"))
    with pytest.raises(BadInput, match="here is being measured; stop it first"):
        made.start(REQUEST, Path("runs"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "../elsewhere"}, "must be of letters"),
        ({"name": "-o"}, "must be of letters"),
        ({"name": ""}, "must be of letters"),
        ({"prompts": "300,many"}, "prompts"),
        ({"batches": "0"}, "batches"),
    ],
)
def test_an_invalid_request_is_refused_before_anything_starts(play, changes, words):
    made = play(TALK)
    with pytest.raises(BadInput, match=words):
        made.start(MeasurementRequest(**{**FIELDS, **changes}), Path("runs"))
    assert made.latest is None


FIELDS = {
    "name": "here",
    "device": "cpu",
    "prompts": "300,500",
    "batches": "4,7",
    "repeats": 2,
}


def test_a_request_is_one_of_the_child():
    content = MeasurementRequest(**FIELDS, model="opt-125m").to_dict(Path("runs"))
    sent = json.loads(json.dumps(content))
    assert sent.pop("out") == "runs/here"
    assert ValidationRequest(**sent) == ValidationRequest(
        device="cpu", model="opt-125m", prompts=[300, 500], batches=[4, 7], repeats=2
    )


def test_a_status_ignores_incomplete_and_foreign_lines():
    lines = [
        "a library prints this",
        "[1]",
        json.dumps({"progress": "planning", "fraction": 0.5}),
        json.dumps({"progress": "planning", "fraction": 0.25}),
        json.dumps({"note": "the disk is slow"}),
        json.dumps({"progress": "round 1", "fraction": None}),
        json.dumps({"result": "runs/here"}),
    ]
    status = read_status("\n".join(lines))
    assert status.texts == ("planning", "the disk is slow", "round 1")
    assert status.fraction == 0.5, "it never falls"
    assert status.result is None, "the last line may be incomplete"
    assert read_status("\n".join(lines) + "\n").result == "runs/here"
    assert read_status('{"error": "no space."}\n').error == "no space."
    assert read_status("").texts == ()


@pytest.fixture
def page(tmp_path, monkeypatch, play):
    """The page with a measurement played by a script."""
    monkeypatch.setattr("dashboard.data.runs.SHIPPED_RUNS", tmp_path / "shipped")

    def play_and_show(script):
        jobs.clear()
        made = play(script)
        monkeypatch.setattr(jobs(), "command", made.command)
        return show("your_machine")

    yield play_and_show
    jobs().stop()
    if jobs().latest is not None:
        jobs().latest.output.close()
    jobs.clear()


def press(app, label):
    next(button for button in app.button if button.label == label).click().run()
    assert not app.exception


def test_page_starts_follows_and_stops_a_measurement(page):
    app = page(SLEEP)
    press(app, "Start measuring")
    job = jobs().latest
    wait_until(lambda: job.status.texts)
    app.run()
    assert any("b4-s300, round 2" in block.value for block in app.code)
    press(app, "Stop")
    assert job.stopped
    app.run()
    assert "was stopped" in app.info[0].value


def test_a_second_visitor_is_told_is_asked_before_a_stop_and_keeps_the_form(page):
    first = page(SLEEP)
    first.text_input[1].set_value("400")
    press(first, "Start measuring")
    job = jobs().latest
    wait_until(lambda: job.status.texts)
    other = show("advise")
    told = [block.value for block in other.info]
    assert told[0].startswith("The measurement my-machine runs on this machine: 40% done, about ")
    other.switch_page("app_pages/your_machine.py").run()
    assert not other.exception
    assert next(one for one in other.button if one.label == "Start measuring").disabled
    press(other, "Stop")
    assert job.running
    assert len(other.text_input) == 3, "the form stays"
    press(other, "Let it run")
    press(other, "Stop")
    press(other, "Stop it anyway")
    assert job.stopped
    first.run()
    assert [one.value for one in first.text_input] == ["my-machine", "400", "4,7"]


def test_an_earlier_run_is_replaced_only_where_this_is_allowed(page):
    app = page(TALK)
    Path("runs/my-machine").mkdir(parents=True)
    press(app, "Start measuring")
    assert "There is a run my-machine already" in app.error[0].value.replace("\\", "")
    assert jobs().latest is None
    app.checkbox[0].check()
    press(app, "Start measuring")
    assert jobs().latest is not None


def test_the_time_left_follows_from_the_finished_part(play):
    job = ended(play(TALK).start(REQUEST, Path("runs")))
    assert job.left_s == pytest.approx(job.elapsed_s * 15, rel=0.01), "a sixteenth is done"


def test_page_shows_why_a_measurement_failed(page):
    app = page(FAIL)
    press(app, "Start measuring")
    wait_until(lambda: not jobs().latest.running)
    app.run()
    assert app.error[0].value.replace("\\", "") == "my-machine failed: no such device."


def test_page_links_to_the_result(page):
    app = page(TALK)
    press(app, "Start measuring")
    wait_until(lambda: not jobs().latest.running)
    app.run()
    assert app.success[0].value.startswith("my-machine was measured in ")
    assert app.get("page_link")


def test_page_refuses_an_invalid_request_in_one_sentence(page):
    app = page(TALK)
    app.text_input[0].set_value("no good name")
    press(app, "Start measuring")
    assert "must be of letters" in app.error[0].value
    assert jobs().latest is None
