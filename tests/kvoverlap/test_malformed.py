"""Studies and profiles with one thing wrong: always one sentence, which names the key.

Each example takes a valid document and breaks it in one place: a key goes, appears or is spelled
otherwise; a value becomes another type, no number, negative, zero or huge; the text ends early.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import examples
from hostile import cases, faults
from hypothesis import given
from hypothesis import strategies as st
from studies import RESTORE, SMALL, toml

from kvoverlap.cli.main import main
from planner.sweep.study import Study
from sim.catalog import DATA
from sim.errors import BadFile
from sim.machine.profile import HardwareProfile

STUDIES = (
    {**SMALL, "where": {"few": "batch * prompt < 1e6 and policy in ('lp', 'load-all')"}},
    {**RESTORE, "title": "restore", "zip": {"gpu_share": [0.5, 1.0], "chunk": [256, "1K"]}},
)
"""Each with values of every kind that its scenario knows."""

CURVE = {"work": [1024.0, 4096.0], "seconds": [1e-5, 3e-5]}
GRID = {"rows": [1.0, 8.0], "columns": [128.0, 1024.0], "seconds": [[1e-5, 2e-5], [3e-5, 4e-5]]}

Place = tuple[str | int, ...]


def profile() -> dict[str, Any]:
    """A shipped profile with a table in every place that may have one."""
    content = json.loads((DATA / "hardware" / "h100.json").read_text())
    content["gemm"]["tables"] = [{"n": 4096, "k": 4096, "curve": CURVE}]
    shape = {"n_heads": 32, "n_kv_heads": 32, "head_dim": 128}
    content["attention"]["tables"] = [{**shape, "grid": GRID}]
    content["elementwise"]["curve"] = CURVE
    content["links"]["h2d"]["curve"] = CURVE
    both = {"lane": "h2d", "while_busy": "d2h", "rate": 0.9, "source": "datasheet"}
    content["interference"] = [both]
    uplink = {"name": "switch", "devices": [0, 1], "h2d_bytes_per_s": 5e10, "d2h_bytes_per_s": 5e10}
    content["uplinks"] = [uplink]
    return content


def places(content: Any, path: Place = ()) -> list[Place]:
    """Every key of a document, at any depth."""
    pairs: list[tuple[str | int, Any]] = []
    if isinstance(content, dict):
        pairs = list(content.items())
    elif isinstance(content, list):
        pairs = list(enumerate(content))
    return [place for key, one in pairs for place in ((*path, key), *places(one, (*path, key)))]


def at(content: Any, path: Place) -> Any:
    for key in path:
        content = content[key]
    return content


WRONG = (
    *(math.nan, math.inf, -math.inf, -1, 0, -0.5, 10**400, 1e308, 2**63),
    *("", "nonsense", "1e", "9" * 400, True, [], {}, [[]], {"inside": 1}),
)


@st.composite
def broken(draw: st.DrawFn, documents: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], Place]:
    """A document with one thing wrong, or perhaps only unusual, and where."""
    content = copy.deepcopy(draw(st.sampled_from(documents)))
    path = draw(st.sampled_from(places(content)))
    holder, key = at(content, path[:-1]), path[-1]
    kind = draw(st.sampled_from(("drop", "add", "respell", "replace", "replace")))
    if kind == "drop":
        del holder[key]
    elif kind == "replace" or isinstance(holder, list):
        holder[key] = draw(st.sampled_from(WRONG))
    elif kind == "add":
        holder["surplus"] = 1
        path = (*path[:-1], "surplus")
    else:
        holder[f"{key}x"] = holder.pop(key)
        path = (*path[:-1], f"{key}x")
    return content, path


def check(read: Callable[[], object], file: Path, place: Place) -> None:
    """Either it is fine after all, or one sentence names the file and what is broken in it."""
    try:
        read()
    except BadFile as error:
        start, _, sentence = str(error).partition(str(file))
        names = [str(key).removesuffix("x") for key in place if isinstance(key, str)]
        named = not names or any(name in sentence for name in names)
        if start or "\n" in sentence or not named:
            pytest.fail(f"{place}: {error}")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("malformed") / "document"


@examples(450)
@given(broken(STUDIES))
def test_a_broken_study_is_told_by_its_key(file, case):
    content, path = case
    file.write_text(toml(content))
    check(lambda: list(Study.load(file).points()), file, path)


@examples(450)
@given(broken((profile(),)))
def test_a_broken_profile_is_told_by_its_key(file, case):
    content, path = case
    file.write_text(json.dumps(content))
    check(lambda: HardwareProfile.load(file), file, path)


@examples(100)
@given(st.data())
def test_a_text_that_ends_early_or_is_no_text_is_told_by_its_file(file, data):
    is_study = data.draw(st.booleans())
    text = toml(data.draw(st.sampled_from(STUDIES))) if is_study else json.dumps(profile())
    cut = data.draw(st.integers(0, len(text) - 2))
    noise = data.draw(st.sampled_from((b"", b"\x00", b"\xff\xfe", b"\x1f\x8b", b"[" * 3000)))
    file.write_bytes(text.encode()[:cut] + noise)
    read = Study.load if is_study else HardwareProfile.load
    check(lambda: read(file), file, ())


@pytest.mark.parametrize("place", ["", ".", "file/below", "/proc/nothing/here"])
@pytest.mark.parametrize(
    "command",
    [
        "profile -o",
        "run plan.json --trace",
        "simulate plan.json --plan-out",
        "plan --model opt-125m --hardware h100 --batch 1 --prompt 8 -o",
        "record --out new --pack",
        "doctor --out",
        "accuracy --markdown",
        "sweep pcie-crossover -o",
    ],
)
def test_an_output_is_checked_before_anything_is_measured(
    tmp_path, monkeypatch, capsys, command, place
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert main([*command.split(), place]) == 2
    assert capsys.readouterr().err.startswith(f"error: {command.split()[-1]}: cannot write ")
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("simulate plan.json -o same --trace ./same", "two outputs go to "),
        ("sweep pcie-crossover -o x.csv", "-o x.csv: the table is Parquet"),
        ("sweep pcie-crossover -o y.parquet", "y.parquet.parts is a file"),
        ("sweep pcie-crossover -o z --executor dask --address here", "tcp://HOST:PORT"),
        ("validate --schedule x", "schedule 'x' is unknown"),
        ("validate --prompts 9,,4", "--prompts(=) must be a whole number"),
        ("validate --device cpu --model llama-3.1-70b", "GiB of host memory"),
        ("profile --device cpu --model llama-3.1-70b -o p.json", "GiB of host memory"),
        ("run plan.json --seed 1e30", "--seed(=1e30) must be a whole number"),
    ],
)
def test_a_wrong_option_is_refused_at_once_and_leaves_nothing(
    tmp_path, monkeypatch, capsys, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "y.parquet.parts").write_text("")
    assert main(arguments.split()) == 2
    assert sentence in capsys.readouterr().err
    assert [one.name for one in tmp_path.iterdir()] == ["y.parquet.parts"]


@pytest.mark.parametrize("arguments", [["sweep", "{}", "-o", "x"], ["sweep", "{}", "--dry-run"]])
def test_the_command_prints_the_sentence_and_no_traceback(tmp_path, capsys, arguments):
    path = tmp_path / "study.toml"
    path.write_text(toml({**SMALL, "grid": {"batches": [1]}}))
    assert main([one.format(path) for one in arguments]) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith(
        f"error: {path}: grid: input of scenario 'decode', 'batches' is unknown"
    )
    assert "Traceback" not in stderr


def test_an_extreme_value_of_any_option_gets_an_answer_or_one_sentence():
    assert faults(list(cases())[::17]) == []
