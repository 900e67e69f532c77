"""`kvoverlap traffic`: generate a trace, read it, and answer."""

from __future__ import annotations

import json

import pytest
from golden.freeze import call


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("traffic")
    status, out, _ = call("traffic --generate 400 --rate 2 --seed 5 -o trace.jsonl.gz", made)
    assert (status, out) == (0, "400 requests written to trace.jsonl.gz\n")
    return made


def test_hit_rates_rise_with_the_size_in_blocks_or_bytes(folder):
    asked = "traffic trace.jsonl.gz --hit-rates --json"
    by_blocks = json.loads(call(f"{asked} --blocks 64,1K --eviction lru,fifo", folder)[1])
    rows = by_blocks["hit_rates"]
    assert [(one["eviction"], one["blocks"]) for one in rows] == [
        (name, blocks) for name in ("lru", "fifo") for blocks in (64, 1024)
    ]
    assert 0 < rows[0]["hit_rate"] < rows[1]["hit_rate"] <= by_blocks["ceiling"]
    bytes_of_64 = 64 * 512 * 32 * 2 * 8 * 128 * 2
    sized = f"{asked} --model llama-3.1-8b --sizes 0,{bytes_of_64} --eviction lru"
    none, same = json.loads(call(sized, folder)[1])["hit_rates"]
    assert (none["blocks"], none["hit_rate"]) == (0, 0.0)
    assert (same["blocks"], same["bytes"]) == (64, bytes_of_64)
    assert same["hit_rate"] == rows[0]["hit_rate"]


def test_the_table_names_ceiling_and_columns(folder):
    status, out, _ = call("traffic trace.jsonl.gz --hit-rates", folder)
    assert status == 0
    assert "no cache can hit more than" in out
    assert "blocks" in out
    assert "optimal" in out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("", "TRACE is missing"),
        ("trace.jsonl.gz", "what to answer is missing"),
        ("trace.jsonl.gz --hit-rates --sizes 4GB", "--sizes are in bytes: name the --model"),
        ("trace.jsonl.gz --hit-rates --sizes 4GB,x", "--sizes(=x) must be a size above 0"),
        ("trace.jsonl.gz --hit-rates --eviction mru", "eviction 'mru' is unknown"),
        ("absent.jsonl --hit-rates", "cannot read absent.jsonl"),
        ("--generate 10", "--generate writes a trace"),
        ("--generate 10 -o x.jsonl --turns 0", "turns(=0.0) must be from 1"),
    ],
)
def test_wrong_options_are_one_sentence(folder, options, sentence):
    status, out, err = call(f"traffic {options}", folder)
    assert (status, out) == (2, "")
    assert sentence in " ".join(err.split())


def test_bad_lines_end_it_or_are_counted(folder):
    (folder / "bad.jsonl").write_text("{\n" * 1000)
    status, _, err = call("traffic bad.jsonl --hit-rates", folder)
    assert status == 2
    assert "line 1: it is not a line of JSON" in " ".join(err.split())
    status, _, err = call("traffic bad.jsonl --hit-rates --skip-bad", folder)
    assert status == 2
    assert "has no request; 1,000 bad lines" in " ".join(err.split())
