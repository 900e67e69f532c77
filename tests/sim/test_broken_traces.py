"""Damaged, huge and foreign files: one sentence, or the answer for what can be read."""

from __future__ import annotations

import gzip
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kineto import d2h, h2d, kernel, step, write

from sim.errors import BadFile
from sim.traces import json_events
from sim.traces.measured import open_trace

EVENTS = [kernel(10 * number, 5) for number in range(2000)]
TEXT = json.dumps({"traceEvents": EVENTS})


def opened(tmp_path, payload, name="t.json"):
    path = tmp_path / name
    path.write_bytes(payload if isinstance(payload, bytes) else payload.encode())
    return open_trace(path)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ("", "is not a trace in JSON"),
        ("hello", "is not a trace in JSON"),
        (b"\x80\x04\x95\x05", "is not a trace in JSON"),
        ("{}", "holds no list traceEvents"),
        ('{"a": 1', "holds no list traceEvents (the file ends early)"),
        ('{"a": tru}', "holds no list traceEvents"),
        ('{"a" 1}', "holds no list traceEvents (a key without a value)"),
        ('{"traceEvents": 5}', "holds no list traceEvents"),
        ('{"traceEvents": []}', "no kernel, no copy and no operator among its 0 events"),
        ('{"traceEvents": [1, null, "x", []]}', "4 events left out: no object."),
        ('{"traceEvents": ' + "[" * 100_000, "nested too deeply"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"a": ' + "[" * 100_000, "nested too deeply"),
        (gzip.compress(b"hello", mtime=0), "is not a trace in JSON"),
        (gzip.compress(TEXT.encode(), mtime=0)[:9], "(the compressed data end early)"),
        (b"SQLite format 3\0" + bytes(100), "cannot be read as a database of Nsight Systems"),
        ("Start (ns),Duration (ns)\n1,2\n", "has no header with Start, Duration and Name"),
        ('{"traceEvents": [{"ph": "B", "cat": "kernel"}]}', "begin and end pair"),
    ],
)
def test_what_holds_no_gpu_work_is_refused_in_one_sentence(tmp_path, payload, words):
    with pytest.raises(BadFile) as caught:
        opened(tmp_path, payload)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "t.json" in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(BadFile, match="does not exist"):
        open_trace(tmp_path / "absent.json")
    with pytest.raises(BadFile, match="is not a file"):
        open_trace(tmp_path)
    (tmp_path / "a.nsys-rep").write_bytes(b"x")
    with pytest.raises(BadFile, match="nsys export --type sqlite"):
        open_trace(tmp_path / "a.nsys-rep")


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_file_that_ends_early_gives_the_events_before(tmp_path, keep):
    plain = opened(tmp_path, TEXT[: int(keep * len(TEXT))])
    packed = gzip.compress(TEXT.encode(), mtime=0)
    zipped = opened(tmp_path, packed[: int(keep * len(packed))], "t.json.gz")
    for found, reason in ((plain, "the file ends early"), (zipped, "the compressed data end")):
        assert 100 < found.events.n_events < len(EVENTS)
        n = found.events.n_events
        assert found.measures.kernel_s == pytest.approx(5e-6 * n)
        (note,) = found.notes
        assert f"breaks off after {n:,} events" in note
        assert reason in note
        assert not found.to_dict()["complete"]


def test_a_file_with_a_damaged_middle_gives_the_events_before(tmp_path):
    at = len(TEXT) // 2
    found = opened(tmp_path, TEXT[:at] + "\x00}{" + TEXT[at:])
    assert 100 < found.events.n_events < len(EVENTS)
    assert "invalid JSON" in found.notes[0]


def test_a_flipped_byte_of_a_compressed_file_is_noticed(tmp_path):
    packed = bytearray(gzip.compress(TEXT.encode(), mtime=0))
    packed[-6] ^= 0xFF
    assert "damaged" in opened(tmp_path, bytes(packed)).notes[0]


def test_values_that_are_no_times_are_left_out_and_counted(tmp_path):
    events = [
        kernel(0, 10),
        kernel(20, -5),
        kernel(math.nan, 5),
        kernel(30, math.inf),
        kernel(10**40, 5),
        kernel("40", 5),
        {**kernel(50, 5), "dur": None},
        {**kernel(50, 5), "name": None},
        {"ph": "X", "cat": "kernel"},
        {"ph": "X", "cat": ["kernel"], "name": "x", "ts": 1, "dur": 1},
        {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": "x", "dur": 1},
        5,
    ]
    found = open_trace(write(tmp_path / "t.json", events))
    assert found.measures.kernel_s == pytest.approx(10e-6)
    assert found.measures.span_s == pytest.approx(10e-6)
    notes = " ".join(found.notes)
    assert "1 event left out: negative duration." in notes
    assert "3 events left out: ts or dur is no time." in notes
    assert "3 events left out: no number as ts or dur." in notes
    assert "1 event left out: no name." in notes
    assert "1 event left out: no object." in notes


def test_args_may_be_missing_or_of_another_type(tmp_path):
    events = [
        {**kernel(0, 10), "args": None, "tid": "stream 9"},
        {**h2d(0, 10, 5), "args": {"stream": 13, "bytes": "many", "device": "gpu"}},
        {**d2h(20, 10, 5), "args": {"bytes": -5, "correlation": [1]}, "pid": -3},
        {**step("ProfilerStep#1", 0, 30), "args": 7},
    ]
    found = open_trace(write(tmp_path / "t.json", events))
    assert [row.name for row in found.kernel_streams] == ["GPU 0, stream 9"]
    assert [(row.stream, row.bytes) for row in found.copies] == [("13", 0), ("14", 0)]
    assert "2 GPU events have no args.stream" in found.notes[0]


def test_events_longer_than_a_piece_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(json_events, "PIECE_BYTES", 50)
    long = kernel(0, 5, name="x" * 500)
    found = open_trace(write(tmp_path / "t.json", [long, *EVENTS[1:20]], deviceProperties=[]))
    assert found.events.n_events == 20
    assert found.notes == ()


def test_a_value_without_end_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(json_events, "MAX_EVENT_CHARS", 2000)
    monkeypatch.setattr(json_events, "PIECE_BYTES", 500)
    found = opened(tmp_path, '{"traceEvents": [' + json.dumps(EVENTS[0]) + ', "' + "x" * 50_000)
    assert found.events.n_events == 1
    assert "breaks off after 1 events" in found.notes[0]


JSON_TEXT = st.text(alphabet='{}[]",: \n1.e-"abXtruefalsenullé\\', max_size=30)


@given(st.integers(0, len(TEXT[:3000])), JSON_TEXT, st.integers(20, 400))
def test_any_text_in_the_middle_is_survived(tmp_path_factory, at, text, piece):
    """Whatever comes in between: a sentence, or an answer for the events before."""
    path = tmp_path_factory.mktemp("t") / "t.json"
    path.write_text(TEXT[:at] + text + TEXT[at:3000], encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_events, "PIECE_BYTES", piece)
        try:
            said = " ".join(open_trace(path).notes)
        except BadFile as error:
            said = str(error)
    assert said
    assert "\n" not in said
