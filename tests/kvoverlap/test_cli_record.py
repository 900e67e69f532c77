"""`kvoverlap record` on a tiny model: whole, broken off, resumed, failing, and refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tarfile
import threading
import time
from dataclasses import replace

import pytest
from builders import freeze_objects
from tiny import SMALL, shorten_grids

import measure.grid
import measure.record
import measure.settings
from kvoverlap.cli.main import main
from measure.decode_grid import GridOptions
from measure.grid import Grid
from measure.settings import DecodeSetting, OtherSystems, RestoreSetting
from sim import HardwareProfile, Recording, Workload
from sim.errors import KvOverlapError

SHAPES = ((2, 24), (3, 40))
NO_FIXED = GridOptions(fixed_fracs=())
CASES_OF_A_SHAPE = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("record")


@pytest.fixture
def record(folder, capsys, monkeypatch):
    """Run `record --out NAME`, which collects often; returns (exit status, stdout, stderr)."""
    freeze_objects()
    tiny = folder / "tiny.json"
    tiny.write_text(json.dumps(SMALL))
    shorten_grids(monkeypatch)
    jobs = [Workload(batch, prompt, 2) for batch, prompt in SHAPES]
    settings = [
        DecodeSetting(str(tiny), jobs[0], NO_FIXED),
        OtherSystems(str(tiny), jobs[0]),
        DecodeSetting(str(tiny), jobs[1], NO_FIXED),
        RestoreSetting(str(tiny), 40, "dram", 1.0, ("load-only", "two-ended"), 16, 8),
    ]
    monkeypatch.setattr(measure.record, "SETTINGS", {"cpu": settings})
    monkeypatch.setitem(measure.settings.FIXED_S, "cpu", 1.0)

    def call(name, *more):
        repeats = () if "--repeats" in more else ("--repeats", "2")
        scenario = () if "--scenario" in more else ("--scenario", "decode")
        arguments = ["record", "--device", "cpu", "--out", str(folder / name), *repeats, *scenario]
        status = main([*arguments, *map(str, more)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def whole(record, folder):
    """A finished recording, made once."""
    if not (folder / "whole").exists():
        assert record("whole", "--link", "0.2GB/s")[0] == 0
    return folder / "whole"


def test_a_recording_holds_profile_cases_peers_and_environment_but_no_prediction(whole, capsys):
    profile = HardwareProfile.load(whole / "profile.json")
    cases = sorted((whole / "cases").iterdir())
    assert len(cases) == CASES_OF_A_SHAPE * len(SHAPES)
    for case in cases:
        assert {path.name for path in case.iterdir()} == {"case.json", "measured.json.gz"}
        measured = Recording.load(case / "measured.json.gz")
        assert measured.source == "measured"
        assert len(measured.runs) == 2
        assert measured.hardware.name == profile.name
        assert measured.checks["tokens_equal"] is True
        assert measured.environment["torch"]
    peers = json.loads((whole / "tiny-peers.json").read_text())["peers"]
    ran = {peer["name"] for peer in peers if peer["not_run"] is None}
    assert {"load-all", "kvpr", "lp"} <= ran
    assert all(peer["tokens_equal"] for peer in peers if peer["name"] in ran)
    about = json.loads((whole / "recording.json").read_text())
    assert about["left_out"] == []
    capsys.readouterr()
    assert main(["accuracy", "--recordings", str(whole), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["cases"]) == len(cases)


def test_a_broken_off_recording_goes_on_where_it_stopped(whole, folder, record):
    half = folder / "half"
    shutil.copytree(whole, half)
    (half / "recording.json").unlink()
    for case in (half / "cases").glob("tiny-b3-s40-*"):
        (case / "case.json").unlink()
    kept = {path: path.stat().st_mtime_ns for path in half.glob("cases/tiny-b2-s24-*/*")}
    status, stdout, stderr = record("half")
    assert status == 0
    assert "holds 4 finished cases" in stderr
    assert "tiny b3-s40, round 1" in stderr
    assert "tiny b2-s24" not in stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list(half.glob("cases/*/case.json"))) == CASES_OF_A_SHAPE * len(SHAPES)
    assert "8 cases: median |error|" in stdout


def test_what_the_time_does_not_allow_is_left_out_and_named(whole, folder, record, monkeypatch):
    short = folder / "short"
    shutil.copytree(whole, short)
    for path in short.glob("cases/tiny-b3-s40-*/case.json"):
        path.unlink()
    monkeypatch.setitem(measure.settings.FIXED_S, "cpu", 1000.0)
    status, _, stderr = record("short", "--minutes", 1)
    assert status == 0
    assert "tiny-b3-s40 left out: " in stderr
    (left_out,) = json.loads((short / "recording.json").read_text())["left_out"]
    assert "s of --minutes were left" in left_out


@pytest.mark.parametrize(("minutes", "whole"), [(1, False), (30, True)])
def test_a_short_recording_profiles_only_the_decodes_before_the_first_restore(
    record, monkeypatch, minutes, whole
):
    scopes = []

    def refuse(*arguments):
        scopes.append(arguments[-1])
        raise KvOverlapError("not measured here")

    monkeypatch.setattr(measure.record, "measure_profile", refuse)
    record(f"scope{minutes}", "--minutes", minutes, "--scenario", "all")
    decodes = [Workload(batch, prompt, 2) for batch, prompt in SHAPES]
    assert scopes[0].restores == whole
    assert list(scopes[0].jobs) == ([] if whole else [decodes[0], *decodes])
    assert scopes[-1].restores
    assert not scopes[-1].jobs


def test_a_setting_stops_when_its_time_is_over_and_is_named(whole, folder, record, monkeypatch):
    late = folder / "late"
    shutil.copytree(whole, late)
    for path in late.glob("cases/tiny-b3-s40-*/case.json"):
        path.unlink()
    monkeypatch.setitem(measure.settings.FIXED_S, "cpu", -1e6)
    monkeypatch.setattr(measure.grid, "GRACE_S", -1e6)
    assert record("late", "--minutes", 1)[0] == 0
    (left_out,) = json.loads((late / "recording.json").read_text())["left_out"]
    assert left_out.startswith("tiny-b3-s40 left out: 2 repeats of every case take about ")
    assert left_out.endswith("Run the same command to complete the recording.")


def test_estimates_follow_the_times_of_finished_settings(whole, folder, record, monkeypatch):
    slow = folder / "slow"
    shutil.copytree(whole, slow)
    for path in slow.glob("cases/*/case.json"):
        path.unlink()
    seconds = DecodeSetting.seconds
    monkeypatch.setattr(DecodeSetting, "seconds", lambda *args: 100 * seconds(*args))
    _, _, stderr = record("slow")
    first_s, second_s = (float(text.split()[0]) for text in stderr.split("s, estimated ")[1:])
    assert first_s > 100
    assert second_s < 50


def test_a_recording_of_another_machine_is_not_gone_on_with(whole, folder, record):
    other = folder / "other"
    shutil.copytree(whole, other)
    profile = HardwareProfile.load(other / "profile.json")
    replace(profile, environment={**profile.environment, "device": "a GPU"}).save(
        other / "profile.json"
    )
    status, _, stderr = record("other")
    assert status == 2
    assert "was begun with device 'a GPU'" in stderr


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--repeats", 0), "--repeats(=0)"),
        (("--minutes", 0), "--minutes(=0.0) must be above 0"),
        (("--minutes", "nan"), "--minutes(=nan)"),
        (("--link", "fast"), "--link(=fast)"),
        (("--scenario", "all-of-it"), "scenario 'all-of-it' is unknown"),
        (("--models", "opt-125m", "--scenario", "restore"), "has nothing to measure"),
        (("--pack", "/"), "--pack: cannot write /: Is a directory"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(record, folder, more, words):
    status, stdout, stderr = record("bad", *more)
    assert (status, stdout) == (2, "")
    assert words in stderr
    assert "Traceback" not in stderr
    assert not (folder / "bad").exists()


def test_a_folder_with_other_files_is_refused(record, folder):
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").write_text("words")
    status, _, stderr = record("mine")
    assert status == 2
    assert "holds something else; name a new folder" in stderr
    assert [path.name for path in (folder / "mine").iterdir()] == ["thesis.txt"]


def test_restores_are_recorded_too_and_the_folder_packed(whole, folder, record):
    both, archive = folder / "both", folder / "both.tar.gz"
    shutil.copytree(whole, both)
    status, stdout, stderr = record("both", "--scenario", "all", "--pack", archive)
    assert status == 0
    assert "profile of tiny, pass 1 of 1" in stderr  # the profile had no tables for restores
    restored = {path.parent.name for path in both.glob("cases/*dram*/case.json")}
    assert {name.rpartition("-")[2] for name in restored} == {"only", "ended"}
    assert "10 cases: median |error|" in stdout
    with tarfile.open(archive) as tar:
        names = tar.getnames()
    assert {"both/profile.json", "both/recording.json"} <= set(names)
    assert sum(name.endswith("case.json") for name in names) == 10


def test_a_setting_that_raises_is_left_out_with_its_reason_and_the_rest_is_there(
    whole, folder, record, monkeypatch
):
    failing = folder / "failing"
    shutil.copytree(whole, failing)
    for path in failing.glob("cases/*/case.json"):
        path.unlink()
    plans = GridOptions.plans

    def planned(self, model, hardware, job, without=()):
        if job.prompt_tokens == SHAPES[0][1]:
            raise RuntimeError("the GPU fell\noff the bus")
        return plans(self, model, hardware, job, without)

    monkeypatch.setattr(GridOptions, "plans", planned)
    status, _, stderr = record("failing")
    assert status == 0
    (left_out,) = json.loads((failing / "recording.json").read_text())["left_out"]
    assert left_out == "tiny-b2-s24 left out: RuntimeError: the GPU fell off the bus"
    assert left_out in " ".join(stderr.split())
    assert len(list(failing.glob("cases/tiny-b3-s40-*/case.json"))) == CASES_OF_A_SHAPE


def test_an_interrupted_recording_keeps_what_is_finished(
    whole, folder, record, monkeypatch, capsys
):
    stopped = folder / "stopped"
    shutil.copytree(whole, stopped)
    for path in stopped.glob("cases/tiny-b3-s40-*/case.json"):
        path.unlink()
    measure_grid = Grid.measure

    def interrupted(self, prepare, shown):
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        measure_grid(self, prepare, shown)
        time.sleep(5)
        pytest.fail("the signal did not arrive")

    monkeypatch.setattr(Grid, "measure", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background
    try:
        status, stdout, _ = record("stopped")
    finally:
        signal.signal(signal.SIGINT, before)
    assert status == 130
    (left_out,) = json.loads((stopped / "recording.json").read_text())["left_out"]
    assert left_out == "tiny-b3-s40 left out: interrupted."
    assert "4 cases: median |error|" in stdout
    assert main(["accuracy", "--recordings", str(stopped), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["cases"]) == CASES_OF_A_SHAPE


def test_an_interrupt_during_the_runs_keeps_the_plans_that_have_run(
    whole, folder, record, monkeypatch, capsys
):
    early = folder / "early"
    shutil.copytree(whole, early)
    shutil.rmtree(early / "cases")
    interleave = measure.grid.run_interleaved

    def two_plans_run(runners, *more):
        def interrupted():
            raise KeyboardInterrupt

        first = dict(list(runners.items())[:2])
        return interleave({**first, "b2-s24-none": interrupted}, *more)

    monkeypatch.setattr(measure.grid, "run_interleaved", two_plans_run)
    assert record("early")[0] == 130
    assert main(["accuracy", "--recordings", str(early), "--json"]) == 0
    cases = json.loads(capsys.readouterr().out)["cases"]
    assert {case["name"].rpartition("-")[2] for case in cases} == {"lp", "kvpr"}


def test_a_model_off_the_list_is_measured_with_one_decode_job(folder, record, monkeypatch):
    other = folder / "other.json"
    other.write_text(json.dumps(SMALL))
    monkeypatch.setitem(measure.settings.DEFAULT_JOBS, "cpu", Workload(2, 20, 2))
    status, stdout, _ = record("another", "--models", other, "--link", "0.2GB/s")
    assert status == 0
    assert "6 cases: median |error|" in stdout
    assert (folder / "another" / "cases" / "other-b2-s20-lp" / "case.json").is_file()
