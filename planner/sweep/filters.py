"""Filters of a study: `prompt <= 32768 and batch * prompt < 2e6`.

The text is parsed by Python's own parser, but nothing of it is executed: of its grammar only knobs,
numbers, texts, comparisons, `and`, `or`, `not`, `in` and arithmetic are known here.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

from sim.errors import BadInput

Values = Mapping[str, Any]
Term = Callable[[Values], Any]

ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
COMPARISONS: dict[type, Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
}
LONGEST = 1000
"""Characters of a filter; a longer one is a mistake, and could nest deeper than a parser goes."""

DEEPEST = 50


class Filter:
    """One filter, ready to be asked about many points.

    Args:
        key: where it stands in the study, for errors.
        text: the expression; knobs by name, values in SI units.
        knobs: names it may use.

    Raises:
        BadInput: not an expression of this kind, or of a knob that the study does not set.
    """

    def __init__(self, key: str, text: str, knobs: Collection[str]) -> None:
        self.key = key
        self.text = text
        self._knobs = knobs
        if len(text) > LONGEST:
            raise BadInput(f"{key} has {len(text)} characters and may have {LONGEST}; split it.")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                tree = ast.parse(text.strip(), mode="eval")
        except (SyntaxError, SyntaxWarning, ValueError, RecursionError, MemoryError):
            raise self._bad("is not an expression") from None
        self._term = self._read(tree.body, 0)

    def holds(self, values: Values) -> bool:
        """Whether a point with these values is wanted.

        Raises:
            BadInput: the values cannot be compared or computed with in this way.
        """
        try:
            return bool(self._term(values))
        except (TypeError, ArithmeticError) as error:
            raise self._bad(f"cannot be worked out ({error})") from None

    def _bad(self, what: str) -> BadInput:
        return BadInput(
            f"{self.key}(={self.text!r}) {what}; write comparisons of knobs, such as "
            "'batch * prompt <= 1e6 and policy != \"kvpr\"'."
        )

    def _read(self, node: ast.expr, depth: int) -> Term:
        if depth > DEEPEST:
            raise self._bad("is nested too deeply")
        below = [self._read(one, depth + 1) for one in _parts(node)]
        match node:
            case ast.BoolOp(op=ast.And()):
                return lambda values: all(part(values) for part in below)
            case ast.BoolOp():
                return lambda values: any(part(values) for part in below)
            case ast.UnaryOp(op=ast.Not()):
                return lambda values: not below[0](values)
            case ast.UnaryOp(op=ast.USub()):
                return lambda values: -below[0](values)
            case ast.BinOp(op=op) if type(op) in ARITHMETIC:
                work = ARITHMETIC[type(op)]
                return lambda values: _computed(work, below[0](values), below[1](values))
            case ast.Compare(ops=ops) if all(type(op) in COMPARISONS for op in ops):
                tests = [COMPARISONS[type(op)] for op in ops]
                return lambda values: _chain(tests, [part(values) for part in below])
            case ast.Tuple() | ast.List():
                return lambda values: tuple(part(values) for part in below)
            case ast.Constant(value=bool() | int() | float() | str() as value):
                return lambda _: value
            case ast.Name() | ast.Attribute():
                return self._knob(node)
        raise self._bad(f"uses {ast.unparse(node)!r}, which filters do not know")

    def _knob(self, node: ast.expr) -> Term:
        name = ast.unparse(node)
        if name not in self._knobs:
            known = ", ".join(sorted(self._knobs))
            raise self._bad(f"uses {name!r}, which this study does not set (it sets {known})")
        return lambda values: values[name]


def _parts(node: ast.expr) -> list[ast.expr]:
    match node:
        case ast.BoolOp(values=values):
            return values
        case ast.UnaryOp(operand=operand):
            return [operand]
        case ast.BinOp(left=left, right=right):
            return [left, right]
        case ast.Compare(left=left, comparators=others):
            return [left, *others]
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            return elements
    return []


def _computed(work: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    """Arithmetic on numbers alone: a text times a number could fill the memory."""
    for side in (left, right):
        if not isinstance(side, int | float):
            raise TypeError(f"{side!r} is not a number")
    return work(left, right)


def _chain(tests: list[Callable[[Any, Any], bool]], sides: list[Any]) -> bool:
    pairs = zip(tests, sides, sides[1:], strict=False)
    return all(test(left, right) for test, left, right in pairs)
