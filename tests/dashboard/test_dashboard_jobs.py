"""A measurement in the background, played by a short script, and the page that follows it."""

import os
import sys
import time
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

import dashboard
import dashboard.data.jobs
from dashboard.data.jobs import Jobs, MeasurementRequest, read_progress
from dashboard.session import jobs
from kvoverlap.cli.main import app as command_line
from sim.errors import BadInput

APP = Path(dashboard.__file__).parent / "streamlit_app.py"
ORDER = MeasurementRequest("here", "cpu", "300,500", "4,7", 2)

TALK = "import sys; print('profile: pass 3 of 8', file=sys.stderr); print('[1]')"
FAIL = "import sys; print('error: no such device.', file=sys.stderr); sys.exit(2)"
SLEEP = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path("child").write_text(str(child.pid))
print("validate: b4-s300, round 2", file=sys.stderr, flush=True)
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
            made.latest.log.close()


def wait_until(condition):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def alive(pid):
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_job_ends_by_itself_and_keeps_what_it_said(play):
    job = play(TALK).start(ORDER, Path("runs"))
    wait_until(lambda: not job.running)
    assert job.process.returncode == 0
    assert job.lines() == ["profile: pass 3 of 8"]
    assert job.elapsed_s < 20
    assert not job.stopped


def test_a_failed_job_gives_its_own_reason(play):
    job = play(FAIL).start(ORDER, Path("runs"))
    wait_until(lambda: not job.running)
    assert job.reason == "no such device."


@pytest.mark.parametrize("script", [SLEEP, IGNORE])
def test_stopping_ends_the_job_with_its_children_and_nothing_else(play, script, monkeypatch):
    monkeypatch.setattr(dashboard.data.jobs, "STOP_S", 0.3)
    made = play(script)
    job = made.start(ORDER, Path("runs"))
    wait_until(lambda: job.lines() and Path("child").exists())
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
    made.start(ORDER, Path("runs"))
    with pytest.raises(BadInput, match="here is being measured; stop it first"):
        made.start(ORDER, Path("runs"))


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
def test_an_order_that_cannot_be_is_refused_before_anything_starts(play, changes, words):
    made = play(TALK)
    with pytest.raises(BadInput, match=words):
        made.start(MeasurementRequest(**{**ORDER_FIELDS, **changes}), Path("runs"))
    assert made.latest is None


ORDER_FIELDS = {
    "name": "here",
    "device": "cpu",
    "prompts": "300,500",
    "batches": "4,7",
    "repeats": 2,
}


def test_arguments_are_those_of_the_command():
    words = MeasurementRequest(**ORDER_FIELDS, model="opt-125m").arguments(Path("runs"))
    command, bound, _ = command_line.parse_args(words, exit_on_error=False, print_error=False)
    assert command.__name__ == "validate"
    assert bound.arguments == {
        "device": "cpu",
        "prompts": "300,500",
        "batches": "4,7",
        "repeats": 2,
        "out": Path("runs/here"),
        "model": "opt-125m",
    }


def test_progress_follows_what_validate_says():
    lines = ["note: something", "profile: pass 1 of 8"]
    assert read_progress([], 4, 5).doing == "starting"
    assert read_progress(lines, 4, 5).done_frac == 0.0
    seen = []
    lines += [f"profile: pass {number} of 8" for number in range(2, 9)]
    lines += ["validate: making weights"]
    for shape in ("b4-s300", "b7-s300", "b4-s500", "b7-s500"):
        lines.append(f"validate: opt-125m {shape}, planning")
        lines += [f"validate: opt-125m {shape}, round {number}" for number in range(1, 7)]
    for count in range(len(lines)):
        seen.append(read_progress(lines[: count + 1], 4, 5).done_frac)
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(0.25 + 0.75 * (3 + 6 / 7) / 4)
    assert read_progress(lines, 4, 5).doing == "validate: opt-125m b7-s500, round 6"
    assert read_progress(lines, 1, 1).done_frac == 1.0, "never more than all"


@pytest.fixture
def page(tmp_path, monkeypatch, play):
    """The page with a measurement played by a script."""
    monkeypatch.setattr("dashboard.data.runs.SHIPPED_RUNS", tmp_path / "shipped")

    def show(script):
        jobs.clear()
        made = play(script)
        monkeypatch.setattr(jobs(), "command", made.command)
        app = AppTest.from_file(APP, default_timeout=60)
        app.switch_page("app_pages/your_machine.py").run()
        assert not app.exception
        return app

    yield show
    jobs().stop()
    if jobs().latest is not None:
        jobs().latest.log.close()
    jobs.clear()


def press(app, label):
    next(button for button in app.button if button.label == label).click().run()
    assert not app.exception


def test_page_starts_follows_and_stops_a_measurement(page):
    app = page(SLEEP)
    press(app, "Start measuring")
    job = jobs().latest
    wait_until(job.lines)
    app.run()
    assert any("validate: b4-s300, round 2" in block.value for block in app.code)
    press(app, "Stop")
    assert job.stopped
    app.run()
    assert "was stopped" in app.info[0].value


def test_page_tells_why_a_measurement_failed(page):
    app = page(FAIL)
    press(app, "Start measuring")
    wait_until(lambda: not jobs().latest.running)
    app.run()
    assert app.error[0].value == "my-machine ended early: no such device."


def test_page_links_to_the_result(page):
    app = page(TALK)
    press(app, "Start measuring")
    wait_until(lambda: not jobs().latest.running)
    app.run()
    assert app.success[0].value.startswith("my-machine was measured in ")
    assert app.get("page_link")


def test_page_refuses_an_order_in_one_sentence(page):
    app = page(TALK)
    app.text_input[0].set_value("no good name")
    press(app, "Start measuring")
    assert "must be of letters" in app.error[0].value
    assert jobs().latest is None
