"""Files of every kind as input and output: links, pipes, devices, huge and damaged ones."""

from __future__ import annotations

import gzip
import os
import stat
import threading

import pytest

import sim.files
from sim.errors import BadFile
from sim.files import decode_csv, decode_json, decode_toml, read_text, write_bytes, write_json


@pytest.fixture
def pipe(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


def test_a_link_as_output_is_followed(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    write_bytes(link, b"new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_a_link_to_nothing_creates_its_target(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "target").read_text() == "new"


def test_links_in_a_circle_are_refused(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(BadFile, match="cannot write"):
        write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").is_symlink()


def test_a_pipe_as_output_stays_a_pipe_and_gets_the_content(pipe):
    got = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    while True:  # until the reader has opened the pipe
        try:
            write_bytes(pipe, b"content")
            break
        except BadFile as error:
            assert "No such device" in str(error)  # noqa: PT017
    reader.join(10)
    assert got == [b"content"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_the_null_device_as_output_stays_a_device():
    write_bytes("/dev/null", b"content")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_standard_output_as_a_file(capfd):
    write_bytes("/dev/stdout", b"content")
    assert capfd.readouterr().out == "content"


@pytest.mark.parametrize("name", ["", ".", "x" * 300, "file/below", "zero\0byte"])
def test_a_path_that_cannot_be_written_is_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("old")
    with pytest.raises(BadFile, match="cannot write"):
        write_bytes(name, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "plan.json").write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sim.files.Path, "replace", full)
    with pytest.raises(BadFile, match="No space left on device"):
        write_bytes(tmp_path / "plan.json", b"new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"plan.json": "old"}


def test_files_have_the_mode_of_the_user_and_keep_their_own(tmp_path):
    before = os.umask(0o077)
    try:
        write_bytes(tmp_path / "new", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600
    (tmp_path / "new").chmod(0o640)
    write_bytes(tmp_path / "new", b"again")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_a_pipe_as_input(pipe):
    writer = threading.Thread(target=pipe.write_text, args=("[1]",))
    writer.start()
    assert decode_json(pipe) == [1]
    writer.join(10)


def test_a_pipe_that_nobody_writes_is_not_waited_for(pipe, monkeypatch):
    monkeypatch.setattr(sim.files, "MAX_WAIT_S", 0.1)
    with pytest.raises(BadFile, match="got no content"):
        read_text(pipe)


def test_endless_and_huge_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sim.files, "MAX_FILE_BYTES", 2**20)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(b" " * 2**21))
    for path in ("/dev/zero", tmp_path / "bomb.gz"):
        with pytest.raises(BadFile, match="more than 1 MiB"):
            read_text(path)


def test_a_byte_order_mark_is_not_content(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert decode_json(tmp_path / "a.json") == [1]


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (decode_json, '{"a": 1, "a": 2}', "key 'a' is given twice"),
        (decode_json, '{"a": ' + "9" * 5000 + "}", "[Ee]xceeds the limit"),
        (decode_json, "[" * 100_000, "nested too deeply"),
        (decode_json, "{", "not valid JSON"),
        (decode_toml, "a = " + "9" * 5000, "not valid TOML"),
        (decode_toml, "a = 1\na = 2", "not valid TOML"),
        (decode_csv, "", "has no rows"),
        (decode_csv, "a,b\n", "has no rows"),
        (decode_csv, "a,a\n1,2\n", "column 'a' is given twice"),
        (decode_csv, "a,b\n1,2\n3\n", "line 3 has 1 values for 2 columns"),
    ],
)
def test_damaged_content_is_one_sentence(tmp_path, read, text, message):
    (tmp_path / "file").write_text(text)
    with pytest.raises(BadFile, match=message) as caught:
        read(tmp_path / "file")
    assert str(tmp_path / "file") in str(caught.value)


def test_json_is_written_and_read_back_plain_and_packed(tmp_path):
    for name in ("a.json", "a.json.gz"):
        write_json(tmp_path / name, "plan", {"tokens": [1, 2]})
        assert sim.files.read_json(tmp_path / name, "plan") == {"tokens": [1, 2]}
