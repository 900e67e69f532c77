"""Numbers as people write them and read them."""

from __future__ import annotations

import pytest

from sim.errors import BadInput
from sim.units import ms, parse_bytes, parse_count, parse_counts, parse_rate, percent


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1", 1),
        ("32", 32),
        ("4K", 4096),
        ("4k", 4096),
        ("1.5K", 1536),
        ("0.5K", 512),
        (" 2M ", 2 << 20),
    ],
)
def test_counts_are_binary_like_context_lengths(text, count):
    assert parse_count("prompt", text) == count


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "1.5", "0.3K", "1G", "1e3", "K", "8 8", "nan", "inf", "9" * 400]
)
def test_what_is_no_count_is_refused_by_name(text):
    with pytest.raises(BadInput, match=r"prompt\(=.*\) must be a whole number of at least 1"):
        parse_count("prompt", text)


def test_a_list_of_counts_is_sorted_without_repeats():
    assert parse_counts("batch", "32,1,8,1") == [1, 8, 32]
    with pytest.raises(BadInput, match="batch"):
        parse_counts("batch", "1,,2")


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("25GB/s", 25e9),
        ("25 GB/s", 25e9),
        ("24GiB/s", 24 * 2**30),
        ("0.4GB/s", 0.4e9),
        ("1.5e9B/s", 1.5e9),
        ("1000", 1000.0),
    ],
)
def test_rates_are_decimal_unless_they_say_binary(text, rate):
    assert parse_rate("link", text) == pytest.approx(rate, rel=1e-15)


@pytest.mark.parametrize(
    "text",
    ["", "fast", "0GB/s", "-1GB/s", "25Gb/s", "25 furlongs", "1e999B/s", "1e-300", "3TFLOP/s"],
)
def test_what_is_no_rate_is_refused_by_name(text):
    with pytest.raises(BadInput, match=r"link\(=.*\) must be a rate of at least 1 B/s"):
        parse_rate("link", text)


def test_operations_a_second_are_no_bytes_a_second():
    assert parse_rate("compute", "312TFLOP/s", "FLOP") == parse_rate("compute", "312e12", "FLOP")
    with pytest.raises(BadInput, match="at least 1 FLOP/s, such as 312TFLOP/s"):
        parse_rate("compute", "64GB/s", "FLOP")


def test_times_are_shown_in_the_unit_that_suits_them():
    assert [ms(seconds) for seconds in (0.0412, 1.5, 2e-4, 99e-6, 0.0)] == [
        "41.2 ms",
        "1,500.0 ms",
        "0.2 ms",
        "99.0 us",
        "0.0 us",
    ]
    assert ms(-0.0412) == "-41.2 ms"


def test_fractions_are_shown_as_percent():
    assert (percent(0.061), percent(0.061, signed=True), percent(-0.02)) == (
        "6.1 %",
        "+6.1 %",
        "-2.0 %",
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GiB", 24 * 2**30), ("40GB", 40e9), ("1.5 TiB", 1.5 * 2**40), ("1024", 1024.0)],
)
def test_sizes_are_read(text, size):
    assert parse_bytes("memory", text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "4 iB", "24GiB/s", "many"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(BadInput, match="must be a size above 0"):
        parse_bytes("memory", text)
