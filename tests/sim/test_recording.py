"""A timeline on disk comes back as it was, or the file is refused with the reason."""

from __future__ import annotations

import gzip
import json

import pytest
from builders import decode_graph, graph, machine, task

from sim.engine.api import simulate
from sim.errors import BadFile, BadInput
from sim.files import write_json
from sim.graph.timeline import Timeline
from sim.lanes import COMPUTE, H2D
from sim.results.recording import Recording

HARDWARE = machine()
GRAPH = decode_graph()
PREDICTED = Recording("predicted", HARDWARE, (simulate(GRAPH, HARDWARE),))
PAIR = graph(task("a", H2D, 1), task("b", COMPUTE, 1, "a"))


def run(makespan_s):
    return Timeline(PAIR, (0.0, 1.0), (1.0, makespan_s))


def measured(*makespans_s):
    environment, checks = {"gpu": "none"}, {"tokens_equal": True}
    return Recording("measured", HARDWARE, tuple(map(run, makespans_s)), environment, checks)


@pytest.mark.parametrize("name", ["a.json", "deep/er/a.json.gz"])
def test_a_recording_comes_back_from_disk_unchanged(tmp_path, name):
    for recording in (PREDICTED, measured(2.0, 3.0)):
        recording.save(tmp_path / name)
        again = Recording.load(tmp_path / name)
        assert again == recording
        assert again.graph.sha256 == recording.graph.sha256


def test_a_name_in_gz_is_compressed_and_the_same_every_time(tmp_path):
    PREDICTED.save(tmp_path / "a.json.gz")
    PREDICTED.save(tmp_path / "b.json.gz")
    first, second = ((tmp_path / f"{name}.json.gz").read_bytes() for name in "ab")
    assert first == second
    assert json.loads(gzip.decompress(first))["kind"] == "timeline"


def test_the_makespan_is_the_median_and_the_spread_is_relative_to_it():
    recording = measured(4.0, 2.0, 2.5, 9.0, 2.2)
    assert recording.makespan_s == 2.5
    assert recording.spread_frac == pytest.approx((4.0 - 2.2) / 2.5)  # the middle half
    assert recording.typical is recording.runs[2]


def test_between_two_runs_the_median_lies_in_the_middle():
    assert measured(2.0, 3.0).makespan_s == 2.5


def test_one_run_has_no_spread():
    assert PREDICTED.spread_frac == 0
    assert PREDICTED.typical is PREDICTED.runs[0]


def test_a_recording_without_runs_is_refused():
    with pytest.raises(BadInput, match="at least one run"):
        Recording("measured", HARDWARE, ())


def test_a_run_that_took_no_time_is_refused():
    still = Timeline(PAIR, (0.0, 0.0), (0.0, 0.0))
    with pytest.raises(BadInput, match="must take time"):
        Recording("measured", HARDWARE, (run(2.0), still))


def test_runs_of_different_graphs_are_refused():
    with pytest.raises(BadInput, match="graph"):
        Recording("measured", HARDWARE, (run(2.0), PREDICTED.runs[0]))


def edited(tmp_path, change):
    """The saved prediction after `change` has worked on its document."""
    path = tmp_path / "edited.json"
    PREDICTED.save(path)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


def set_key(*where, value):
    def change(document):
        for key in where[:-1]:
            document = document[key]
        document[where[-1]] = value

    return change


def drop_key(*where):
    def change(document):
        for key in where[:-1]:
            document = document[key]
        del document[where[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (set_key("kind", value="plan"), "holds 'plan', not a kvoverlap 'timeline'"),
        (set_key("schema_version", value=99), "schema_version 99"),
        (drop_key("schema_version"), "schema_version None"),
        (set_key("graph", "tasks", 0, "flops", value=77), "does not match its graph_sha256"),
        (set_key("graph", "workload", "batch_size", value=3), "does not match its graph_sha256"),
        (set_key("graph_sha256", value="0" * 64), "does not match its graph_sha256"),
        (set_key("graph", "tasks", 0, "deps", value=["ghost"]), "ghost"),
        (set_key("graph", "tasks", 0, "colour", value=1), "colour' is unknown"),
        (set_key("source", value="guessed"), "guessed"),
        (set_key("runs", value=[]), "at least one run"),
        (set_key("runs", 0, "end_s", value=[1.0]), "cannot belong to a graph"),
        (set_key("runs", 0, "end_s", 0, value=-1.0), "not a time span"),
        (set_key("runs", 0, "end_s", 0, value="late"), "late"),
        (set_key("runs", value="none"), "none"),
        (set_key("hardware", "links", "h2d", "bytes_per_s", value=-1), "must be > 0"),
        (drop_key("hardware", "gemm"), "gemm' is missing"),
        (drop_key("graph"), "'graph' is missing"),
        (drop_key("runs"), "'runs' is missing"),
        (drop_key("runs", 0, "start_s"), "start_s' is missing"),
        (set_key("runs", 0, "middle_s", value=[]), "middle_s' is unknown"),
        (set_key("environment", value="a laptop"), "environment"),
        (set_key("checks", value=[1]), "checks"),
        (drop_key("environment"), "'environment' is missing"),
    ],
)
def test_a_broken_document_is_refused_with_the_file_and_the_reason(tmp_path, change, reason):
    path = edited(tmp_path, change)
    with pytest.raises(BadFile, match=r"edited\.json") as failure:
        Recording.load(path)
    assert reason in str(failure.value)


@pytest.fixture
def compressed(tmp_path):
    path = tmp_path / "a.json.gz"
    PREDICTED.save(path)
    return path


@pytest.mark.parametrize("keep", [3, 12, 40, -9, -1])
def test_a_truncated_archive_is_corrupt(compressed, keep):
    compressed.write_bytes(compressed.read_bytes()[:keep])
    with pytest.raises(BadFile, match=r"a\.json\.gz cannot be read"):
        Recording.load(compressed)


@pytest.mark.parametrize("at", [11, 40, 300, -6])
def test_an_archive_with_a_flipped_byte_is_corrupt(compressed, at):
    payload = bytearray(compressed.read_bytes())
    payload[at] ^= 0xFF
    compressed.write_bytes(payload)
    with pytest.raises(BadFile, match=r"a\.json\.gz cannot be read"):
        Recording.load(compressed)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [(b"", "not valid JSON"), (b"{", "not valid JSON"), (b"[]", "list"), (b"\xff\xfe", "corrupt")],
)
def test_a_file_that_is_no_document_of_ours_is_refused(tmp_path, payload, reason):
    path = tmp_path / "a.json"
    path.write_bytes(payload)
    with pytest.raises(BadFile, match=reason):
        Recording.load(path)


def test_an_absent_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(BadFile, match="does not exist"):
        Recording.load(tmp_path / "none.json")
    with pytest.raises(BadFile, match="cannot be read"):
        Recording.load(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    PREDICTED.save(path)
    before = path.read_bytes()
    with pytest.raises((ValueError, TypeError)):
        write_json(path, "timeline", {"runs": [float("nan")]})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_cannot_replace_its_target_leaves_nothing_half_written(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(BadFile, match="choose a writable path"):
        PREDICTED.save(tmp_path / "a.json")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_a_path_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadFile, match="choose a writable path"):
        PREDICTED.save(tmp_path / "file" / "a.json")
