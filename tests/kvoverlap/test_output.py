"""Tables on narrow terminals."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

import pytest

from kvoverlap.cli import output

ROWS = [
    ("a100-sxm-40g", "1,321 GB/s (fitted)", "a100-sxm-40g+pcie4-x16"),
    ("b200", "346 GB/s (measured)", "b200+pcie5-x16"),
]
HEADER = ("device", "decode attention", "with its usual link")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, width, rows=ROWS, header=HEADER):
    monkeypatch.setattr(output, "out", output.Output("stdout", width))
    with redirect_stdout(io.StringIO()) as file:
        output.table("Devices", header, rows)
    return file.getvalue()


@pytest.mark.parametrize("width", [52, 60, 160])
def test_names_and_numbers_with_their_units_stay_whole(monkeypatch, width):
    text = shown(monkeypatch, width)
    for part in ("a100-sxm-40g+pcie4-x16", "1,321 GB/s", "(fitted)", "attention"):
        assert part in text
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("width", [8, 20, 30])
def test_nothing_is_cut_where_nothing_fits(monkeypatch, width):
    text = shown(monkeypatch, width, ROWS[:1])
    assert "…" not in text
    for cell in ROWS[0]:
        letters = iter(text)
        assert all(letter in letters for letter in cell if letter != " ")


def test_a_wide_terminal_shows_a_row_a_line(monkeypatch):
    assert len(shown(monkeypatch, 160).splitlines()) == 2 + len(ROWS)


def test_a_terminal_shows_titles_and_headers_in_bold(monkeypatch):
    monkeypatch.setattr(output, "out", output.Output("stdout", 80))
    for no_colour, bold in (("", 2), ("1", 0)):
        monkeypatch.setenv("NO_COLOR", no_colour)
        with redirect_stdout(Terminal()) as file:
            output.table("Devices", HEADER, ROWS)
        assert file.getvalue().count("\x1b[1m") == bold


def test_only_columns_of_numbers_are_flush_right(monkeypatch):
    rows = [("one", "1,321 GB/s", "8 of 128 experts", "-"), ("two", "9 GB/s", "dense", "2.5 %")]
    text = shown(monkeypatch, 80, rows, ("name", "rate", "what it is", "share"))
    assert text.splitlines()[2:] == [
        "one   1,321 GB/s  8 of 128 experts      -",
        "two       9 GB/s  dense             2.5 %",
    ]


@pytest.mark.parametrize("width", range(20, 60))
def test_a_terminal_keeps_a_number_on_the_line_of_its_unit(monkeypatch, width):
    monkeypatch.setattr(output, "out", output.Output("stdout", width))
    text = "predicted 158.6 ms, measured 557.4 ms: 71.5 % too fast at 12 GB/s (spread 19.0 %)"
    with redirect_stdout(Terminal()) as file:
        output.say(text)
    lines = file.getvalue().splitlines()
    assert " ".join(lines) == text
    assert max(map(len, lines)) <= width
    for whole in ("158.6 ms", "557.4 ms", "71.5 %", "12 GB/s", "19.0 %)"):
        assert any(whole in line for line in lines)
