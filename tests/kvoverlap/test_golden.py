"""Answers of the command line are those that were frozen; see golden/freeze.py."""

from __future__ import annotations

import pytest
from golden.freeze import GOLDEN, differences, frozen

SHOWN = 20
CASES = [(name, command) for name, (_, commands) in GOLDEN.items() for command in commands]


@pytest.mark.parametrize(("name", "command"), CASES, ids=[f"{a}: {b}" for a, b in CASES])
def test_the_answer_is_the_frozen_one(name, command):
    answer, _ = GOLDEN[name]
    found = differences(frozen(name)[command], answer(command))
    assert not found, "\n".join([f"{len(found)} differences:", *found[:SHOWN]])


def test_the_files_hold_these_command_lines_and_no_others():
    for name, (_, commands) in GOLDEN.items():
        assert list(frozen(name)) == commands, f"run: python tests/golden/freeze.py {name}"


def test_prose_and_examples_of_help_fit_80_columns():
    lines = [line for text in frozen("help").values() for line in text.splitlines()]
    wide = [line for line in lines if len(line) > 80 and line[0] not in "│╭╰"]
    assert [line for line in wide if not line.startswith("Usage: ")] == []


def test_a_number_may_differ_by_rounding_and_nothing_else_may():
    was = {"a": [1.0, 2], "b": "x"}
    assert differences(was, {"a": [1.0 + 1e-12, 2], "b": "x"}) == []
    assert differences(was, {"a": [1.0 + 1e-6, 3], "b": "y"}) == [
        ".a[0]: 1.0 -> 1.000001",
        ".a[1]: 2 -> 3",
        ".b: 'x' -> 'y'",
    ]
    assert differences(was, {"a": [1.0], "c": None}) == [".b: gone", ".c: new", ".a: 2 -> 1 long"]
