"""Content that is read without pydantic is what pydantic reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest
from builders import examples
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from sim.catalog import DATA
from sim.exact import Inexact, builder
from sim.files import STRICT_KEYS, read_json
from sim.machine.components import ComputePart, LinkPart
from sim.machine.profile import HardwareProfile
from sim.machine.runtime import Runtime

SHIPPED = [
    (kind, name, path)
    for kind, name, folder in (
        (HardwareProfile, "hardware-profile", "hardware"),
        (ComputePart, "compute-part", "hardware/compute"),
        (LinkPart, "link-part", "hardware/links"),
        (Runtime, "runtime", "runtimes"),
    )
    for path in sorted((DATA / folder).glob("*.json"))
]


@pytest.mark.parametrize("kind", [HardwareProfile, ComputePart, LinkPart, Runtime])
def test_shipped_files_are_exact_and_mean_the_same(kind):
    lenient = TypeAdapter(kind)
    for each, name, path in SHIPPED:
        if each is kind:
            content = read_json(path, name)
            assert repr(builder(kind)(content)) == repr(lenient.validate_python(content)), path


@dataclass(frozen=True)
class Point:
    __pydantic_config__ = STRICT_KEYS

    x: float
    tag: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Line:
    __pydantic_config__ = STRICT_KEYS

    points: tuple[Point, ...]
    size: tuple[int, float]
    by_name: dict[str, float]
    name: str = ""
    closed: bool = False
    centre: Point | None = None
    extra: Any = None
    words: tuple[str | int, ...] = ()


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.sampled_from("ab1")
)
POINTS = st.fixed_dictionaries(
    {"x": st.one_of(st.floats(allow_nan=False), SCALARS)},
    optional={"tag": st.one_of(st.sampled_from("ab"), SCALARS), "y": SCALARS},
)
LINES = st.fixed_dictionaries(
    {
        "points": st.lists(POINTS, max_size=2),
        "size": st.tuples(SCALARS, SCALARS).map(list),
        "by_name": st.dictionaries(st.sampled_from("ab"), SCALARS, max_size=2),
    },
    optional={
        "name": SCALARS,
        "closed": SCALARS,
        "centre": st.one_of(st.none(), POINTS),
        "extra": SCALARS,
        "words": st.lists(SCALARS, max_size=3),
        "width": SCALARS,
    },
)


@given(st.one_of(LINES, SCALARS))
@examples(300)
def test_what_is_built_is_what_pydantic_builds(content):
    try:
        made = builder(Line)(content)
    except (Inexact, ArithmeticError):
        return
    assert repr(made) == repr(TypeAdapter(Line).validate_python(content))


def test_most_exact_content_is_built():
    content = {
        "points": [{"x": 1}, {"x": 2.5, "tag": "b"}],
        "size": [3, 4],
        "by_name": {"a": 1},
        "centre": {"x": 0.0},
        "words": ["a", 1],
    }
    made = builder(Line)(content)
    assert made.points == (Point(1.0), Point(2.5, "b"))
    assert type(made.points[0].x) is float
    for broken in ({"points": 1}, {"size": [3]}, {"size": ["3", 4]}, {"by_name": {1: 2.0}}):
        with pytest.raises(Inexact):
            builder(Line)(content | broken)
    with pytest.raises(ValidationError):
        TypeAdapter(Line).validate_python(content | {"size": [3]})
