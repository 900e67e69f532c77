"""Dataclasses from file content that has exactly the declared types, without pydantic.

Loading pydantic and building the schema of a machine takes longer than most plans. The files that
come with the program need neither: their values have the declared types. For any other content
`sim.files.parse` asks pydantic, which converts it or says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


class Inexact(Exception):
    """The content is not of exactly the declared types, or such types are not known here."""


Builder = Callable[[Any], Any]

SCALARS = (int, str, bool, float, NoneType)
"""Types of which a value with exactly this type is itself the result."""


@cache
def builder(kind: Any) -> Builder:
    """A function that builds a `kind` from content; it raises Inexact, or what the class raises.

    Raises:
        Inexact: such types are not known here.
    """
    if kind is Any:
        return lambda value: value
    if kind is float:
        return _float
    if kind in SCALARS:
        return _scalar(kind)
    if is_dataclass(kind):
        return _Instances(kind)
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Literal:
        return _literal(inside)
    if origin in (Union, UnionType):
        return _union(inside)
    if origin is tuple and len(inside) == 2 and inside[1] is Ellipsis:
        return _sequence(inside[0])
    if origin is tuple:
        return _record(tuple(map(builder, inside)))
    if origin is dict and inside[0] is str:
        return _mapping(builder(inside[1]))
    raise Inexact


class _Instances:
    """Builds instances of a dataclass; its fields are looked up at the first one."""

    def __init__(self, kind: Any) -> None:
        self._kind = kind
        self._fields: dict[str, Builder] | None = None
        self._scalars: dict[str, type] = {}

    def __call__(self, value: Any) -> Any:
        if type(value) is not dict:
            raise Inexact
        if self._fields is None:
            hints = get_type_hints(self._kind)
            names = [one.name for one in fields(self._kind) if one.init]
            self._fields = {name: builder(hints[name]) for name in names}
            self._scalars = {name: hints[name] for name in names if hints[name] in SCALARS}
        try:
            build, exact = self._fields, self._scalars
            content = {
                name: one if type(one) is exact.get(name) else build[name](one)
                for name, one in value.items()
            }
            return self._kind(**content)
        except (KeyError, TypeError):  # an unknown key, or one that is absent
            raise Inexact from None


def _float(value: Any) -> float:
    if type(value) is float:
        return value
    if type(value) is not int:
        raise Inexact
    return float(value)


def _scalar(kind: type) -> Builder:
    def build(value: Any) -> Any:
        if type(value) is not kind:
            raise Inexact
        return value

    return build


def _literal(known: tuple[Any, ...]) -> Builder:
    def build(value: Any) -> Any:
        if type(value) is not str or value not in known:
            raise Inexact
        return value

    return build


def _union(kinds: tuple[Any, ...]) -> Builder:
    """What exactly one of the kinds can be built from."""
    builders = tuple(map(builder, kinds))

    def build(value: Any) -> Any:
        made = []
        for one in builders:
            try:
                made.append(one(value))
            except Inexact:
                continue
        if len(made) != 1:
            raise Inexact
        return made[0]

    return build


def _sequence(kind: Any) -> Builder:
    item = builder(kind)

    def build(value: Any) -> Any:
        if type(value) is not list:
            raise Inexact
        if kind in SCALARS and {kind}.issuperset(map(type, value)):
            return tuple(value)
        return tuple(map(item, value))

    return build


def _record(items: tuple[Builder, ...]) -> Builder:
    def build(value: Any) -> Any:
        if type(value) is not list or len(value) != len(items):
            raise Inexact
        return tuple(item(one) for item, one in zip(items, value, strict=True))

    return build


def _mapping(item: Builder) -> Builder:
    def build(value: Any) -> Any:
        if type(value) is not dict or not all(type(key) is str for key in value):
            raise Inexact
        return {key: item(one) for key, one in value.items()}

    return build
