"""`kvoverlap traffic`: generate a trace, read it, and answer."""

from __future__ import annotations

import json
import re

import pyarrow.parquet as pq
import pytest
from golden.freeze import call

SERVED = "trace.jsonl.gz --model llama-3.1-8b --hardware h100-sxm+pcie5-x16"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("traffic")
    status, out, _ = call("traffic --generate 200 --rate 2 --seed 5 -o trace.jsonl.gz", made)
    assert (status, out) == (0, "200 requests written to trace.jsonl.gz\n")
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
        ("trace.jsonl.gz", "name what serves the requests by --model and --hardware"),
        ("trace.jsonl.gz --model opt-125m --set link.bandwidth=1GB/s", "--hardware"),
        ("trace.jsonl.gz --model opt-125m --hardware h100 --blocks 4", "--blocks are of --hit"),
        (f"{SERVED} --policy swap", "policy 'swap' is unknown"),
        (f"{SERVED} --routing nearest", "routing 'nearest' is unknown"),
        (f"{SERVED} --chunk 256", "max_batch(=256) must be at least 1 and below the 256 tokens"),
        (f"{SERVED} --gpu-memory 16GB", "leaves no block for K and V"),
        (f"{SERVED} --tp 3", "--tp(=3) must divide the 32 query heads"),
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


def test_policies_of_a_service_beside_each_other(folder):
    """GPU memory holds 113 blocks, so that many hits are in the host cache."""
    small = f"{SERVED} --gpu-memory 24GB --host-cache 64GB --policy two-ended --instances 2"
    options = "--routing prefix-aware --ttft-slo 0.5 --tpot-slo 0.1 --gpu-hour 2.5 --gb-month 3"
    status, out, _ = call(f"traffic {small} {options} -o table.parquet --json", folder)
    assert status == 0
    found = json.loads(out)
    runs = {one["run"]: one for one in found["runs"]}
    assert [*runs] == ["no offload", "load-only", "two-ended", "free copies"]
    none, loaded, both, free = runs.values()
    assert none["hit_rate"].keys() == {"gpu"}
    assert both["hit_rate"]["dram"] > 0.02
    assert free["ttft_s"]["mean"] < loaded["ttft_s"]["mean"] < none["ttft_s"]["mean"]
    assert both["ttft_s"]["p50"] <= both["ttft_s"]["p90"] <= both["ttft_s"]["p99"]
    assert 0 < both["goodput"]["fraction"] <= 1
    assert both["price_per_million_tokens"] > none["price_per_million_tokens"] > 0
    assert both["busy"]["d2h"] > 0
    rows = pq.read_table(folder / "table.parquet").to_pylist()
    assert len(rows) == 200
    ttft = sum(row["first_token_s"] - row["arrival_s"] for row in rows) / 200
    assert ttft == pytest.approx(both["ttft_s"]["mean"])
    assert rows[-1]["hit_tokens_gpu"] + rows[-1]["computed_tokens"] > 0


def test_a_curve_of_sizes_says_from_where_more_does_not_pay(folder):
    curve = f"{SERVED} --gpu-memory 24GB --sizes 0,8GB,64GB,512GB"
    found = json.loads(call(f"traffic {curve} --json", folder)[1])
    sizes = [one["host_cache_bytes"] for one in found["runs"]]
    assert sizes == [0, 8e9, 64e9, 512e9]
    means = [one["ttft_s"]["mean"] for one in found["runs"]]
    assert means == sorted(means, reverse=True)
    assert found["enough_bytes"] in sizes[1:3]
    _, out, _ = call(f"traffic {curve}", folder)
    assert "of host cache does not lower the p90 of TTFT by 5 %" in out


def test_overload_is_said_and_by_how_much(folder):
    busy = "traffic --generate 200 --rate 60 --turns 1 --agents 0 -o busy.jsonl"
    assert call(busy, folder)[0] == 0
    options = SERVED.replace("trace.jsonl.gz", "busy.jsonl")
    _, out, _ = call(f"traffic {options}", folder)
    assert re.search(r"overload, load-only: \d+\.\d\d requests arrive for each served", out)


def test_bad_lines_end_it_or_are_counted(folder):
    (folder / "bad.jsonl").write_text("{\n" * 1000)
    status, _, err = call("traffic bad.jsonl --hit-rates", folder)
    assert status == 2
    assert "line 1: it is not a line of JSON" in " ".join(err.split())
    status, _, err = call("traffic bad.jsonl --hit-rates --skip-bad", folder)
    assert status == 2
    assert "has no request; 1,000 bad lines" in " ".join(err.split())
