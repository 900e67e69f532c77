"""Request traces: what each format says, bad lines, and generated traffic."""

from __future__ import annotations

import gzip
import json
import random
from contextlib import suppress
from math import inf
from statistics import fmean

import pytest
from builders import examples
from hypothesis import given
from hypothesis import strategies as st
from services import BLOCK, tiny_service

from sim.errors import BadFile, BadInput
from sim.service import (
    RequestTrace,
    Traffic,
    hit_rates,
    holds_requests,
    read_trace,
    simulate_service,
    write_traffic,
)
from sim.service.generate import generated_lines

MOONCAKE = (
    '{"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]}\n'
    '{"timestamp": 2500, "input_length": 1030, "output_length": 1, "hash_ids": [0, 1, 3]}\n'
    '{"timestamp": 2600, "input_length": 600, "output_length": 0, "hash_ids": [3, 1]}\n'
)


def lists(trace):
    """Requests as (arrival in s, prompt, output, nodes)."""
    return [
        (trace.arrival_s[at], trace.prompt_tokens[at], trace.output_tokens[at], [*trace.path(at)])
        for at in range(len(trace))
    ]


@pytest.mark.parametrize("packed", [False, True])
def test_mooncake_ids_are_paths_of_512_tokens(tmp_path, packed):
    file = tmp_path / "trace.jsonl"
    file.write_bytes(gzip.compress(MOONCAKE.encode()) if packed else MOONCAKE.encode())
    trace = read_trace(file)
    assert lists(trace) == [
        (0.0, 1100, 5, [1, 2, 3]),
        (2.5, 1030, 1, [1, 2, 4]),
        (2.6, 600, 0, [5, 6]),  # id 1 after id 3 is another block than id 1 after id 0
    ]
    assert (trace.block_tokens, trace.unique_blocks, [*trace.parent]) == (
        512,
        6,
        [0, 0, 1, 2, 2, 0, 5],
    )


def test_bailian_lines_are_in_seconds_and_blocks_of_16(tmp_path):
    file = tmp_path / "bailian.jsonl"
    line = {"chat_id": 7, "parent_chat_id": -1, "timestamp": 61.114, "input_length": 33}
    line |= {"output_length": 4, "type": "text", "turn": 1, "hash_ids": [10**9, "x", "12"]}
    file.write_text(json.dumps(line) + "\n" + json.dumps(line | {"hash_ids": [10**9, "x", 12]}))
    trace = read_trace(file)
    assert trace.block_tokens == 16
    assert lists(trace) == 2 * [(61.114, 33, 4, [1, 2, 3])]


def test_csv_groups_share_their_whole_blocks(tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text(
        "arrival_s,prompt_tokens,gen_tokens,prefix_group,prefix_tokens\n"
        "0.5,10,3,a,\n1,20,3,a,\n2,10,3,,\n3,12,3,a,5\n"
    )
    assert lists(read_trace(file, block_tokens=4)) == [
        (0.5, 10, 3, [1, 2, 3]),
        (1.0, 20, 3, [1, 2, 4, 5, 6]),
        (2.0, 10, 3, [7, 8, 9]),
        (3.0, 12, 3, [1, 10, 11]),
    ]


@pytest.mark.parametrize("name", ["trace.jsonl", "trace.csv"])
def test_files_of_windows_have_the_same_requests(tmp_path, name):
    """A byte order mark, line ends of two characters, and a header in capitals."""
    text = MOONCAKE if name.endswith("jsonl") else f"{CSV_HEADER}\n{CSV_LINE}\n{CSV_LINE}\n"
    (tmp_path / name).write_text(text)
    windows = text if name.endswith("jsonl") else text.replace(CSV_HEADER, CSV_HEADER.title())
    file = tmp_path / f"windows-{name}"
    file.write_bytes(b"\xef\xbb\xbf" + windows.replace("\n", "\r\n").encode())
    assert lists(read_trace(file)) == lists(read_trace(tmp_path / name))
    assert holds_requests(file)


def test_a_wrong_header_is_named_and_cannot_be_skipped(tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text("TIMESTAMP,ContextTokens\n1,2\n")
    for skip in (False, True):
        with pytest.raises(BadFile, match="line 1: the header must have arrival_s") as caught:
            read_trace(file, skip_bad=skip)
        assert "--skip-bad" not in str(caught.value)


def test_requests_are_put_in_order_of_arrival(tmp_path):
    file = tmp_path / "trace.jsonl"
    file.write_text("".join(reversed(MOONCAKE.splitlines(keepends=True))))
    assert [one[0] for one in lists(read_trace(file).in_order())] == [0.0, 2.5, 2.6]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "it is not a line of JSON"),
        ("[" * 100_000, "it is not a line of JSON"),
        ("[1]", "it is not a JSON object"),
        (MOONCAKE.splitlines()[0].replace("1100", "-3"), "input_length(=-3) must be a whole"),
        (MOONCAKE.splitlines()[0].replace("1100", "1.5"), "input_length(=1.5) must be a whole"),
        (MOONCAKE.splitlines()[0].replace("1100", "1e999"), "input_length(=inf)"),
        (MOONCAKE.splitlines()[0].replace("[0, 1, 2]", "null"), "hash_ids(=None) must be a list"),
        (MOONCAKE.splitlines()[0].replace("1, 2]", "[]]"), "hash_ids holds []"),
        (MOONCAKE.splitlines()[0].replace("0,", "NaN,", 1), "timestamp(=nan) must be a number"),
        (MOONCAKE.splitlines()[0][:-1] + ', "block_size": 16}', "its blocks have 16 tokens"),
    ],
)
def test_a_bad_line_is_named_or_counted(tmp_path, line, sentence):
    file = tmp_path / "trace.jsonl"
    file.write_text(MOONCAKE + "\n" + line + "\n" + MOONCAKE)
    with pytest.raises(BadFile, match=r"trace.jsonl, line 5: ") as caught:
        read_trace(file)
    assert sentence in str(caught.value)
    trace = read_trace(file, skip_bad=True)
    assert (len(trace), trace.skipped) == (6, 1)


CSV_HEADER = "arrival_s,prompt_tokens,gen_tokens,prefix_group,prefix_tokens"
CSV_LINE = "1.5,900,7,chat,512"
ODD_VALUES = (
    "",
    "-1",
    "1e999",
    "NaN",
    "null",
    "[]",
    "{}",
    '"x"',
    "true",
    "9" * 400,
    "0x10",
    "\x00",
)


def mutated(good: str, chance: random.Random) -> str:
    """A line with one thing wrong, or none."""
    at, kind = chance.randrange(len(good)), chance.randrange(6)
    if kind == 0:
        return good[:at]
    if kind == 1:
        return good[:at] + chance.choice(ODD_VALUES) + good[at:]
    if kind == 2:
        return good[:at] + good[at + 1 :]
    if kind == 3:
        odd = chance.randbytes(3).decode("latin-1").replace("\n", "")
        return good[:at] + odd + good[at + 1 :]
    parts = good.split(",")
    place = chance.randrange(len(parts))
    if kind == 4:
        name, colon, _ = parts[place].rpartition(":")
        parts[place] = name + colon + chance.choice(ODD_VALUES)
    else:
        parts.pop(place)
    return ",".join(parts)


@pytest.mark.parametrize(
    ("name", "first", "good"),
    [
        ("trace.jsonl", MOONCAKE.splitlines()[0], MOONCAKE.splitlines()[1]),
        ("trace.csv", f"{CSV_HEADER}\n{CSV_LINE}", CSV_LINE),
    ],
    ids=["jsonl", "csv"],
)
def test_each_of_a_thousand_malformed_lines_is_named_or_counted(tmp_path, name, first, good):
    chance, file = random.Random(1), tmp_path / name  # noqa: S311

    def read(lines, skip_bad=False):
        file.write_text("\n".join([first, *lines]), encoding="utf-8")
        return read_trace(file, skip_bad=skip_bad)

    lines = [mutated(good, chance) for _ in range(500)]
    bad, n_good = [], 0
    for number, line in enumerate(lines, start=2 + first.count("\n")):
        try:
            n_good += len(read([line])) - 1
        except BadFile:
            bad.append(number)
    assert len(bad) > 250
    with pytest.raises(BadFile, match=rf"{name}, line {bad[0]}: .* --skip-bad leaves it out"):
        read(lines)
    trace = read(lines, skip_bad=True)
    assert (len(trace), trace.skipped) == (1 + n_good, len(bad))


@examples(40)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 3), st.integers(1, 120), st.integers(0, 9), st.lists(st.integers(0, 2))
        ),
        min_size=1,
        max_size=12,
    )
)
def test_whatever_is_read_can_be_served(requests):
    """Block ids may be more or fewer than a prompt has blocks, and arrivals in any order."""
    trace = RequestTrace(BLOCK)
    for arrival_s, prompt, output, ids in requests:
        trace.add(arrival_s, prompt, output, ids)
    for policy in ("load-only", "two-ended"):
        outcome = simulate_service(tiny_service(policy, gpu_blocks=12), trace)
        assert len(outcome.served) + len(outcome.journal.rejected) == len(trace)
        assert all(outcome.journal.finish_s[at] < inf for at in outcome.served)
    rates = hit_rates(trace, [1, 4, 100])
    assert all(0 <= one.hit_rate <= rates.ceiling <= 1 for one in rates.rates)


@examples(60)
@given(st.binary(max_size=200), st.sampled_from(("t.jsonl", "t.csv", "t.csv.gz")))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content, name):
    file = tmp_path_factory.mktemp("any") / name
    file.write_bytes(content)
    for skip in (False, True):
        with suppress(BadFile):
            read_trace(file, skip_bad=skip)


def test_a_cut_archive_and_a_folder_are_refused(tmp_path):
    file = tmp_path / "trace.jsonl.gz"
    file.write_bytes(gzip.compress(MOONCAKE.encode())[:-20])
    for path in (file, tmp_path, tmp_path / "absent"):
        with pytest.raises(BadFile, match="cannot read"):
            read_trace(path)


def test_generated_traffic_has_the_means_it_was_asked_for(tmp_path):
    asked = Traffic(requests=2000, rate_per_s=2.0, agents=0.0, seed=3)
    write_traffic(asked, tmp_path / "a.jsonl.gz")
    trace = read_trace(tmp_path / "a.jsonl.gz")
    assert len(trace) == 2000
    assert trace.in_order() is trace
    assert trace.arrival_s[-1] == pytest.approx(1000, rel=0.15)
    assert fmean(trace.output_tokens) == pytest.approx(256, rel=0.06)
    ids = [len(trace.path(at)) for at in range(len(trace))]
    assert ids == [-(-tokens // 512) for tokens in trace.prompt_tokens]
    assert [*generated_lines(asked)][:50] == [*generated_lines(asked)][:50]
    assert [*generated_lines(asked)][1] != [
        *generated_lines(Traffic(requests=3, rate_per_s=2.0, agents=0.0, seed=4))
    ][1]


@pytest.mark.parametrize(
    "wrong", [{"rate_per_s": 0}, {"agents": 1.5}, {"turns": 0}, {"system_tokens": 0}]
)
def test_traffic_out_of_range_is_refused(wrong):
    with pytest.raises(BadInput, match=next(iter(wrong))):
        Traffic(requests=3, **wrong)
