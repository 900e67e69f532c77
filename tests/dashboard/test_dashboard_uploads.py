"""What a visitor may bring along, and in which words everything else is refused."""

import gzip
import json
import tempfile
import zlib
from dataclasses import replace

import pytest
from apptest import show
from browser import make_run
from builders import machine
from lane_bars import drawn

import dashboard.data.uploads
from dashboard.data.uploads import MAX_UPLOAD_MB, MEGABYTE, read_upload, safe_name
from planner import DecodePlan
from sim import HardwareProfile, Recording, Workload
from sim.errors import KvOverlapError
from sim.units import ms


@pytest.fixture(scope="module")
def case_folder(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("made") / "run", [Workload(2, 64, 1)])
    return folder / "cases" / "b2-s64-lp"


@pytest.fixture(scope="module")
def measured(case_folder):
    return (case_folder / "measured.json.gz").read_bytes()


@pytest.fixture(scope="module")
def plan(case_folder):
    return (case_folder / "plan.json").read_bytes()


def refusal(name, payload):
    with pytest.raises(KvOverlapError) as caught:
        read_upload(name, payload)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert tempfile.gettempdir() not in sentence, "the visitor has no use for our folders"
    return sentence


def edited(payload, **changes):
    text = gzip.decompress(payload) if payload[:2] == b"\x1f\x8b" else payload
    return json.dumps({**json.loads(text), **changes}).encode()


def test_our_own_files_are_accepted_plain_and_gzipped(case_folder, measured, plan, tmp_path):
    machine().save(tmp_path / "profile.json")
    profile = read_upload("profile.json", (tmp_path / "profile.json").read_bytes())
    assert (profile.kind, profile.content) == ("profile", machine())
    assert profile.summary == "test: made for tests"
    loaded = read_upload("plan.json", plan)
    assert (loaded.kind, loaded.content) == ("plan", DecodePlan.load(case_folder / "plan.json"))
    recording = read_upload("measured.json.gz", measured)
    assert recording.kind == "recording"
    assert recording.content == Recording.load(case_folder / "measured.json.gz")
    assert read_upload("measured.json", gzip.decompress(measured)).content == recording.content
    assert "3 runs of" in recording.summary


def test_a_bad_value_is_refused_with_file_key_and_rule(plan):
    sentence = refusal("my plan.json", edited(plan, makespan_s="soon"))
    assert sentence.startswith("my-plan.json: makespan_s(='soon')")
    assert "unknown" in refusal("plan.json", edited(plan, colour="blue"))


def test_an_edited_plan_is_refused(plan):
    changed = edited(plan, graph_sha256="0" * 64)
    assert "it was edited" in refusal("plan.json", changed)


def test_an_edited_recording_is_refused(measured):
    assert "it was edited" in refusal("m.json", edited(measured, graph_sha256="0" * 64))


def test_an_uploaded_prediction_is_drawn_alone_and_is_no_run(measured):
    upload = read_upload("guess.json", edited(measured, source="predicted"))
    assert upload.kind == "prediction"
    app = show("timeline", upload, view="an uploaded prediction")
    assert app.header[0].value == f"Predicted to take {ms(upload.content.typical.makespan_s)}"
    (lanes,) = drawn(app)
    assert {row["source"] for row in lanes["rows"]} == {""}
    assert lanes["count"] == len(upload.content.graph.tasks)
    assert "guess.json (uploaded)" not in show("timeline", upload).selectbox(key="run").options


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "is empty"),
        (b"\x80\x04\x95\x05\x00\x00\x00", "is not text"),
        (b"hello", "is not valid JSON"),
        (b"[1, 2]", "holds a JSON list"),
        (b'{"kind": "report"}', "holds report, which cannot be shown"),
        (b'{"traceEvents": []}', "no kernel, no copy and no operator"),
        (b"[" * 200_000, "is not a document of ours"),
        (b'{"kind": ' + b"9" * 5000 + b"}", "is not a document of ours"),
        (gzip.compress(b"{}", mtime=0)[:-9], "ends too early"),
        (gzip.compress(b"{}", mtime=0)[:-8] + bytes(8), "is corrupt"),
    ],
)
def test_what_is_not_ours_is_refused_with_the_reason(payload, words):
    assert words in refusal("file.json", payload)


def test_a_file_over_the_limit_is_refused_unread():
    sentence = refusal("big.json", b"x" * (MAX_UPLOAD_MB * MEGABYTE + 1))
    assert f"larger than the {MAX_UPLOAD_MB} MB" in sentence


def test_a_file_that_unpacks_beyond_the_limit_is_not_unpacked_whole(monkeypatch):
    monkeypatch.setattr(dashboard.data.uploads, "MAX_UNPACKED_MB", 1)
    packed = gzip.compress(b" " * (3 * MEGABYTE), mtime=0)
    assert len(packed) < 10_000
    assert "unpacks to more than the 1 MB" in refusal("bomb.json.gz", packed)


def test_too_many_tasks_are_refused(measured, monkeypatch):
    monkeypatch.setattr(dashboard.data.uploads, "MAX_TASKS", 10)
    assert "10 is the most" in refusal("m.json.gz", measured)


def test_too_long_prompts_are_refused(measured, monkeypatch):
    monkeypatch.setattr(dashboard.data.uploads, "MAX_TOKENS", 10)
    assert "is of 65 tokens" in refusal("m.json.gz", measured)


def test_names_lose_folders_and_odd_characters():
    assert safe_name("C:\\files\\..\\my profile (2).json") == "my-profile-2-.json"
    assert safe_name("../../etc/passwd") == "passwd"
    assert safe_name("...") == "file"


def test_a_profile_with_a_value_that_is_no_number_is_refused(tmp_path):
    profile = replace(machine(), name="p")
    profile.save(tmp_path / "p.json")
    text = (tmp_path / "p.json").read_bytes().replace(b"1000000000.0", b"NaN", 1)
    assert "flops_per_s" in refusal("p.json", text)
    assert isinstance(profile, HardwareProfile)


def test_unpacking_reads_what_gzip_writes():
    assert zlib.decompress(gzip.compress(b"[]", mtime=0), wbits=31) == b"[]"
    assert "a JSON list" in refusal("list.json.gz", gzip.compress(b"[]", mtime=0))
