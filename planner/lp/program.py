"""Linear programs with named variables and rows, built in Python and solved by HiGHS.

HiGHS is loaded with numpy when the first program is solved: a restore needs neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from sim.errors import Infeasible, PlannerFailed

if TYPE_CHECKING:
    import highspy

Terms = list[tuple[int, float]]
"""Variables, as `LinearProgram.variable` returned them, and their factors; each at most once."""

Key = TypeVar("Key")


class Basis(NamedTuple):
    """Which variables and rows determine an optimum: HiGHS's status of each."""

    variables: list[highspy.HighsBasisStatus]
    rows: list[highspy.HighsBasisStatus]


@dataclass(frozen=True, slots=True)
class Solution:
    """An optimum.

    Args:
        values: of the variables.
        duals: of the rows.
        basis: a start for similar programs.
    """

    values: list[float]
    duals: list[float]
    basis: Basis

    def of(self, variables: Mapping[Key, int]) -> dict[Key, float]:
        """The values of some variables."""
        return {key: self.values[variable] for key, variable in variables.items()}


class LinearProgram:
    """Minimises a sum of variables under rows of inequalities.

    HiGHS gets the variables sorted by name. Which of several optima it finds then does not depend
    on the order in which they were added.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.variables: list[str] = []
        self.rows: list[str] = []
        self._low: list[float] = []
        self._high: list[float] = []
        self._cost: dict[int, float] = {}
        self._least: list[float] = []
        self._terms: list[Terms] = []

    def variable(self, name: str, low: float = 0.0, high: float = inf) -> int:
        """Add a variable; returns its number."""
        self.variables.append(name)
        self._low.append(low)
        self._high.append(high)
        return len(self.variables) - 1

    def bound(self, variable: int, low: float = 0.0, high: float = inf) -> None:
        """Change the bounds of a variable."""
        self._low[variable], self._high[variable] = low, high

    def at_least(self, name: str, terms: Terms, least: float) -> int:
        """Add the row `sum of terms >= least`; returns its number."""
        self.rows.append(name)
        self._least.append(least)
        self._terms.append(terms)
        return len(self.rows) - 1

    def minimise(self, terms: Iterable[tuple[int, float]]) -> None:
        """Set the objective."""
        self._cost = dict(terms)

    def solve(self, basis: Basis | None = None) -> Solution:
        """The optimum.

        Presolve is off. It finds little on these programs, and takes forty times as long as the
        solution on the long and narrow program of the bound.

        Args:
            basis: where to start: from the solution of a program of the same shape, or of this one
                with fewer variables and rows.

        Raises:
            Infeasible: there is none.
            PlannerFailed: HiGHS stopped without an optimum.
        """
        import highspy

        order = sorted(range(len(self.variables)), key=self.variables.__getitem__)
        column = [0] * len(order)
        for position, variable in enumerate(order):
            column[variable] = position
        solver = highspy.Highs()  # type: ignore[no-untyped-call]
        solver.setOptionValue("output_flag", False)
        solver.setOptionValue("presolve", "off")
        solver.passModel(self._model(order, column))
        if basis is not None:
            solver.setBasis(self._start(basis, order))
        solver.run()
        status = solver.getModelStatus()
        if status != highspy.HighsModelStatus.kOptimal:
            known = highspy.HighsModelStatus
            infeasible = status in (known.kInfeasible, known.kUnboundedOrInfeasible)
            failure = Infeasible if infeasible else PlannerFailed
            raise failure(
                f"the LP {self.name!r} ended {solver.modelStatusToString(status)!r} instead of "
                "optimal; report the plan's inputs as a defect."
            )
        found = solver.getSolution()
        values, reached = list(found.col_value), solver.getBasis()
        status_of = list(reached.col_status)
        return Solution(
            [values[position] for position in column],
            list(found.row_dual),
            Basis([status_of[position] for position in column], list(reached.row_status)),
        )

    def _start(self, basis: Basis, order: list[int]) -> highspy.HighsBasis:
        """The basis as HiGHS holds it; what was added since is not in it."""
        import highspy

        new_variables = len(self.variables) - len(basis.variables)
        new_rows = len(self.rows) - len(basis.rows)
        variables = [*basis.variables, *[highspy.HighsBasisStatus.kLower] * new_variables]
        start = highspy.HighsBasis()
        start.valid = True
        start.col_status = [variables[variable] for variable in order]
        start.row_status = [*basis.rows, *[highspy.HighsBasisStatus.kBasic] * new_rows]
        return start

    def _model(self, order: list[int], column: list[int]) -> highspy.HighsLp:
        """The program as HiGHS holds it, by rows."""
        import highspy

        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = len(order), len(self.rows)
        model.col_cost_ = [self._cost.get(variable, 0.0) for variable in order]
        model.col_lower_ = [self._low[variable] for variable in order]
        model.col_upper_ = [self._high[variable] for variable in order]
        model.row_lower_ = self._least
        model.row_upper_ = [inf] * len(self.rows)
        starts, columns, factors = [0], [], []
        for terms in self._terms:
            for variable, factor in terms:
                if factor != 0.0:
                    columns.append(column[variable])
                    factors.append(factor)
            starts.append(len(columns))
        matrix = model.a_matrix_
        matrix.format_ = highspy.MatrixFormat.kRowwise
        matrix.start_, matrix.index_, matrix.value_ = starts, columns, factors
        return model
