"""Restores through the command line: run, compare, a damaged cache file, traces, the grids."""

from __future__ import annotations

import json

import pytest
from builders import machine
from tiny import SMALL, shorten_grids

import measure.record
import measure.restore_grid
import measure.settings
from kvoverlap.cli.main import main
from measure.restore_grid import POLICIES
from measure.settings import RestoreSetting
from sim import Recording
from sim.graph.jobs import RestoreRequest
from sim.lanes import DISK, NET
from sim.machine.links import Link
from sim.machine.prefill import Prefill, Restore, Tier
from sim.machine.provenance import SourcedValue

RATE = 2e7
CASES = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model and a profile of the cpu device, whose links are slow enough for both ends."""
    made = tmp_path_factory.mktemp("restores")
    (made / "tiny.json").write_text(json.dumps(SMALL))
    tiers = tuple(Tier(lane, SourcedValue("datasheet", RATE)) for lane in (DISK, NET))
    link = Link("datasheet", RATE, paced_bytes_per_s=RATE)
    prefill = Prefill(SourcedValue("datasheet", 1e9), SourcedValue("datasheet", 1e-3))
    machine(
        flops_per_s=1e9,
        h2d=link,
        d2h=link,
        device_kind="cpu",
        dtype="float32",
        restore=Restore(prefill, tiers),
    ).save(made / "profile.json")
    return made


@pytest.fixture
def plan(folder, call):
    """Write a plan; returns its path."""

    def make(policy: str = "two-ended", tier: str = "dram", *more: object):
        path = folder / f"{policy}-{tier}.json"
        words = f"--model {folder / 'tiny.json'} --hardware {folder / 'profile.json'} --prompt 300"
        chunks = f"--chunk 64 --io-chunk 32 --policy {policy} --tier {tier}"
        status, _, stderr = call("restore", *words.split(), *chunks.split(), *more, "-o", path)
        assert status == 0, stderr
        return path

    return make


@pytest.mark.parametrize("tier", ["dram", "ssd", "net"])
def test_a_plan_is_simulated_run_and_compared(plan, call, folder, tier):
    path = plan("two-ended", tier)
    predicted, measured = folder / "predicted.json", folder / "measured.json.gz"
    assert call("simulate", path, "-o", predicted)[0] == 0
    status, stdout, stderr = call("run", path, "--repeats", 2, "-o", measured, "--json")
    answer = json.loads(stdout)
    assert (status, "repeat 2 of 2" in stderr) == (0, True)
    assert answer["checks"]["tokens_equal"] is True
    assert answer["checks"]["recomputed_instead"] == []
    assert answer["ttft_s"] == answer["makespan_s"] > 0
    assert answer["computed_tokens"] + answer["loaded_tokens"] == 300
    assert 0 <= answer["meeting_token"] < 300
    recording = Recording.load(measured)
    assert isinstance(recording.graph.workload, RestoreRequest)
    assert recording.environment["tier"]
    status, stdout, _ = call("compare", predicted, measured, "--json")
    assert status == 0
    assert json.loads(stdout)["graph_sha256"] == answer["graph_sha256"]
    assert "numbers: first token" in call("run", path, "--repeats", 1)[1]


def test_a_damaged_cache_file_is_restored_from_all_the_same(plan, call, folder):
    path, cache = plan("load-only", "ssd"), folder / "prefix.kv"
    assert call("run", path, "--repeats", 1, "--cache", cache)[0] == 0
    cache.write_bytes(cache.read_bytes()[: -cache.stat().st_size // 2])
    status, stdout, _ = call("run", path, "--repeats", 1, "--cache", cache, "--json")
    answer = json.loads(stdout)
    assert status == 0
    assert answer["checks"]["tokens_equal"] is True
    assert {one["why"] for one in answer["checks"]["recomputed_instead"]} == {
        "the file is truncated"
    }
    assert (
        "were computed instead of loaded" in call("run", path, "--repeats", 1, "--cache", cache)[1]
    )


def test_a_trace_is_followed_and_the_share_of_the_core_reported(plan, call, folder):
    path, drop = plan(), folder / "drop.csv"
    drop.write_text("start_s,h2d,compute\n0,0.2,0.5\n")
    status, stdout, _ = call("run", path, "--repeats", 1, "--availability", drop, "--json")
    (share,) = json.loads(stdout)["checks"]["compute_shares"]
    assert status == 0
    assert share["stated_frac"] == 0.5
    assert "% stated" in call("run", path, "--repeats", 1, "--availability", drop)[1]


@pytest.mark.parametrize(
    ("tier", "more", "words"),
    [
        ("dram", ("--cache", "prefix.kv"), "--cache(=prefix.kv) is for tier ssd, not dram"),
        ("dram", ("--availability", "no.csv"), "no.csv does not exist"),
        ("dram", ("--repeats", 0), "--repeats(=0)"),
    ],
)
def test_wrong_input_is_refused_in_one_sentence(plan, call, tier, more, words):
    status, stdout, stderr = call("run", plan("two-ended", tier), *more)
    assert (status, stdout) == (2, "")
    assert words in " ".join(stderr.split())
    assert "Traceback" not in stderr


def test_a_share_of_the_device_is_run_beside_other_requests(plan, call):
    status, stdout, _ = call("run", plan("two-ended", "dram", "--gpu-share", 0.5))
    assert status == 0
    assert "first token, logits, K and V equal the resident prefill" in stdout


def test_what_can_only_be_simulated_says_so(plan, call, folder):
    status, _, stderr = call("run", plan("two-ended", "dram", "--kv-bits", 8))
    assert status == 2
    assert "only simulated" in " ".join(stderr.split())
    (folder / "drop.csv").write_text("start_s,disk\n0,0.2\n")
    status, _, stderr = call("run", plan(), "--availability", folder / "drop.csv")
    assert status == 2
    assert "lane 'disk', which has no pace" in " ".join(stderr.split())


@pytest.fixture
def grids(capsys, monkeypatch):
    """Run a verb over a short grid; returns (exit status, stdout, stderr)."""
    shorten_grids(monkeypatch)
    monkeypatch.setattr(measure.restore_grid, "RATE_FACTORS", {"dram": (1.0,), "ssd": (1.0,)})
    monkeypatch.setattr(measure.restore_grid, "CHUNK_TOKENS", 16)
    monkeypatch.setattr(measure.restore_grid, "IO_CHUNK_TOKENS", 8)

    def call(verb, *more):
        words = [verb, "--device", "cpu", "--repeats", "2", *map(str, more)]
        status = main(words)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_a_grid_of_restores_is_validated_and_can_be_assessed(grids, folder, capsys):
    out = folder / "grid"
    model = ("--model", folder / "tiny.json", "--link", "0.2GB/s")
    words = ("--scenario", "restore", *model, "--prompts", 100, "--out", out)
    status, stdout, stderr = grids("validate", *words, "--json")
    report = json.loads(stdout)
    assert status == 0, stderr
    assert "round 2" in stderr
    assert len(report["cases"]) == CASES
    assert {case["tier"] for case in report["cases"]} == {"dram", "ssd"}
    assert all(check["tokens_equal"] is True for check in report["checks"].values())
    assert report["meeting_cases"] == 2
    errors = [abs(case["ttft_error_frac"]) for case in report["cases"]]
    assert report["max_abs_error_frac"] == max(errors)
    assert main(["accuracy", "--recordings", str(out), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["cases"]) == CASES


def test_changes_in_mid_restore_are_validated(grids, folder):
    model = ("--model", folder / "tiny.json", "--link", "0.2GB/s")
    words = ("--scenario", "adapt", *model, "--prompts", 200)
    status, stdout, _ = grids("validate", *words, "--json")
    report = json.loads(stdout)
    assert status == 0
    assert set(report["drops"]) == {"bandwidth drop", "GPU-share drop"}
    for drop in report["drops"].values():
        assert [way["name"] for way in drop["ways"]] == ["stale", "replanned", "two-ended"]
        assert all(len(way["repeats_s"]) == 2 for way in drop["ways"])


def test_restores_are_recorded_and_a_finished_recording_is_left_alone(grids, folder, monkeypatch):
    settings = [
        RestoreSetting(str(folder / "tiny.json"), 100, tier, 1.0, policies, 16, 8)
        for tier, policies in (("dram", POLICIES), ("ssd", POLICIES[:-1]))
    ]
    monkeypatch.setattr(measure.record, "SETTINGS", {"cpu": settings})
    monkeypatch.setitem(measure.settings.FIXED_S, "cpu", 1.0)
    out = folder / "recorded"
    words = ("--scenario", "restore", "--out", out)
    assert grids("record", *words, "--link", "0.2GB/s")[0] == 0
    cases = sorted(path.parent.name for path in out.glob("cases/*/case.json"))
    assert len(cases) == CASES
    assert all(name.startswith("tiny-s100-") for name in cases)
    before = {path: path.stat().st_mtime_ns for path in out.glob("cases/*/*")}
    status, stdout, stderr = grids("record", *words)
    assert status == 0
    assert f"holds {CASES} finished cases" in stderr
    assert f"{CASES} cases: median |error|" in stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--scenario", "restores"), "did you mean 'restore'"),
        (("--scenario", "restore", "--gen", 3), "--gen(=3) is for decodes"),
        (("--scenario", "restore", "--kv-bits", 8), "--kv-bits(=8) is for decodes"),
        (("--scenario", "adapt", "--prompts", "100,200"), "for one of --prompts"),
    ],
)
def test_a_wrong_scenario_is_refused_in_one_sentence(grids, more, words):
    status, stdout, stderr = grids("validate", *more)
    assert (status, stdout) == (2, "")
    assert words in " ".join(stderr.split())
