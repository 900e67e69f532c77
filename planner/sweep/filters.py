"""Filters of a study: `prompt <= 32768 and batch * prompt < 2e6`.

Python's parser reads the text, and nothing is executed. Allowed are names of inputs, numbers,
strings, comparisons, `and`, `or`, `not`, `in` and arithmetic.
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
MAX_CHARACTERS = 1000
"""Characters of a filter: a bound on the parser's recursion."""

MAX_DEPTH = 50


class Filter:
    """One parsed filter.

    Args:
        key: its key in the study, for errors.
        text: the expression, with inputs by name and values in SI units.
        inputs: names that it may use.

    Raises:
        BadInput: no expression of this kind, or it names an input that the study does not set.
    """

    def __init__(self, key: str, text: str, inputs: Collection[str]) -> None:
        self.key = key
        self.text = text
        self._inputs = inputs
        if len(text) > MAX_CHARACTERS:
            raise BadInput(f"{key} has {len(text)} characters, at most {MAX_CHARACTERS}; split it.")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                tree = ast.parse(text.strip(), mode="eval")
        except (SyntaxError, SyntaxWarning, ValueError, RecursionError, MemoryError):
            raise self._bad("is not an expression") from None
        self._term = self._read(tree.body, 0)

    def holds(self, values: Values) -> bool:
        """Whether a point with these values passes.

        Raises:
            BadInput: the values cannot be compared or computed like this.
        """
        try:
            return bool(self._term(values))
        except (TypeError, ArithmeticError) as error:
            raise self._bad(f"cannot be evaluated ({error})") from None

    def _bad(self, what: str) -> BadInput:
        return BadInput(
            f"{self.key}(={self.text!r}) {what}; write comparisons of inputs, such as "
            "'batch * prompt <= 1e6 and policy != \"kvpr\"'."
        )

    def _read(self, node: ast.expr, depth: int) -> Term:
        if depth > MAX_DEPTH:
            raise self._bad("is nested too deeply")
        below = [self._read(one, depth + 1) for one in _operands(node)]
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
                return self._input(node)
        raise self._bad(f"uses {ast.unparse(node)!r}, which filters do not know")

    def _input(self, node: ast.expr) -> Term:
        name = ast.unparse(node)
        if name not in self._inputs:
            known = ", ".join(sorted(self._inputs))
            raise self._bad(f"uses {name!r}, which this study does not set (it sets {known})")
        return lambda values: values[name]


def _operands(node: ast.expr) -> list[ast.expr]:
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
    """Arithmetic on numbers only: a string times a number could fill the memory."""
    for side in (left, right):
        if not isinstance(side, int | float):
            raise TypeError(f"{side!r} is not a number")
    return work(left, right)


def _chain(tests: list[Callable[[Any, Any], bool]], sides: list[Any]) -> bool:
    pairs = zip(tests, sides, sides[1:], strict=False)
    return all(test(left, right) for test, left, right in pairs)
