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


def shown(monkeypatch, width, rows=ROWS):
    monkeypatch.setattr(output, "out", output.Output("stdout", width))
    file = io.StringIO()
    with redirect_stdout(file):
        output.table("Devices", HEADER, rows)
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
