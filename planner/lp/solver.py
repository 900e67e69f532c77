"""Solve a linear program of PuLP with HiGHS."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf
from typing import NamedTuple, TypeAlias

import highspy
import pulp

from sim.errors import Infeasible, PlannerFailed

_STATUS = {
    highspy.HighsModelStatus.kOptimal: pulp.LpStatusOptimal,
    highspy.HighsModelStatus.kInfeasible: pulp.LpStatusInfeasible,
    highspy.HighsModelStatus.kUnboundedOrInfeasible: pulp.LpStatusInfeasible,
    highspy.HighsModelStatus.kUnbounded: pulp.LpStatusUnbounded,
}


Limits: TypeAlias = Mapping[pulp.LpVariable, pulp.LpConstraint]
"""The row that determines the value of each variable which is above its lower bound."""

_PRIMAL_SIMPLEX = int(highspy.simplex_constants.SimplexStrategy.kSimplexStrategyPrimal)


class Basis(NamedTuple):
    """The variables and rows that determine an optimum: names, and HiGHS's status of each."""

    variables: list[str]
    found: highspy.HighsBasis


class Start(NamedTuple):
    """A vertex of a linear program.

    Args:
        basis: an optimum of a program of the same shape, or of this one with fewer variables and
            rows; None for no such optimum.
        limits: of variables that `basis` does not have. Others are at their lower bound.
    """

    basis: Basis | None
    limits: Limits


class _Highs(pulp.HiGHS):  # type: ignore[misc]
    """HiGHS for programs of real variables, with a start.

    PuLP's own class has no start, and passes a program column by column and row by row, which takes
    several times as long as the solution. Presolve is off. It finds little on these programs, and
    takes forty times as long as the solution on the long and narrow program of the bound. A start
    is a feasible vertex or close to one, from which the primal simplex method needs less time than
    the dual one.
    """

    def __init__(self, start: Start | None) -> None:
        super().__init__(msg=False)
        self._start = start
        self.columns: list[pulp.LpVariable] = []

    def actualSolve(self, lp: pulp.LpProblem) -> int:  # noqa: N802 - PuLP's name
        columns, rows = lp.variables(), lp.constraints()
        self.columns = columns
        solver = highspy.Highs()  # type: ignore[no-untyped-call]
        solver.setOptionValue("output_flag", False)
        solver.setOptionValue("presolve", "off")
        solver.passModel(_model(lp.objective, columns, rows))
        if self._start is not None:
            solver.setOptionValue("simplex_strategy", _PRIMAL_SIMPLEX)
            solver.setBasis(_basis(self._start, columns, rows))
        solver.run()
        found = solver.getSolution()
        for variable, value in zip(columns, list(found.col_value), strict=True):
            variable.varValue = value
        for row, dual in zip(rows, list(found.row_dual), strict=True):
            row.pi = dual
        lp.solverModel = solver
        status: int = _STATUS.get(solver.getModelStatus(), pulp.LpStatusNotSolved)
        lp.assignStatus(status)
        return status


def _basis(
    start: Start, columns: list[pulp.LpVariable], rows: list[pulp.LpConstraint]
) -> highspy.HighsBasis:
    """A start as HiGHS holds it."""
    at_bound, free = highspy.HighsBasisStatus.kLower, highspy.HighsBasisStatus.kBasic
    statuses, known_rows = {}, []
    if start.basis is not None:
        statuses = dict(zip(start.basis.variables, start.basis.found.col_status, strict=True))
        known_rows = list(start.basis.found.row_status)
    limiting = set(start.limits.values())
    basis = highspy.HighsBasis()
    basis.valid = True
    basis.col_status = [
        free if one in start.limits else statuses.get(one.name, at_bound) for one in columns
    ]
    added = rows[len(known_rows) :]
    basis.row_status = [*known_rows, *(at_bound if row in limiting else free for row in added)]
    return basis


def lower_limits(
    rows: Iterable[pulp.LpConstraint], values: Mapping[pulp.LpVariable, float]
) -> Limits:
    """The strictest row for each variable that comes first in a row.

    Variables that no row lifts above their lower bound are left out.

    Args:
        rows: each of the form `variable + others >= least`. The others have a value in `values`,
            or are first in an earlier row, or are at their lower bound.
    """
    found, limits = dict(values), {}
    for row in rows:
        (variable, _), *others = row.items()
        least = -row.constant
        for other, factor in others:
            least -= factor * found.get(other, other.lowBound)
        if least > found.get(variable, variable.lowBound):
            found[variable], limits[variable] = least, row
    return limits


def _model(
    objective: pulp.LpAffineExpression,
    columns: list[pulp.LpVariable],
    rows: list[pulp.LpConstraint],
) -> highspy.HighsLp:
    """A program to minimise, as HiGHS holds it."""
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = len(columns), len(rows)
    model.col_cost_ = [objective.get(one, 0.0) for one in columns]
    model.col_lower_ = [-inf if one.lowBound is None else one.lowBound for one in columns]
    model.col_upper_ = [inf if one.upBound is None else one.upBound for one in columns]
    model.row_lower_ = [-inf if (low := one.getLb()) is None else low for one in rows]
    model.row_upper_ = [inf if (high := one.getUb()) is None else high for one in rows]
    position = {one: at for at, one in enumerate(columns)}
    starts, index, values = [0], list[int](), list[float]()
    for row in rows:
        for variable, factor in row.items():
            if factor != 0:
                index.append(position[variable])
                values.append(factor)
        starts.append(len(index))
    matrix = model.a_matrix_
    matrix.format_ = highspy.MatrixFormat.kRowwise
    matrix.start_, matrix.index_, matrix.value_ = starts, index, values
    return model


def solve_to_optimum(problem: pulp.LpProblem, start: Start | None = None) -> Basis:
    """Solve a linear program; its variables and constraints then hold values and duals.

    Returns:
        The basis of the optimum.

    Raises:
        PlannerFailed: the solver stopped without an optimum; Infeasible where there is none.
    """
    solver = _Highs(start)
    status = problem.solve(solver)
    if status != pulp.LpStatusOptimal:
        failure = Infeasible if status == pulp.LpStatusInfeasible else PlannerFailed
        raise failure(
            f"the LP {problem.name!r} ended {pulp.LpStatus[status]!r} instead of optimal; report "
            "the plan's inputs as a defect."
        )
    names = [one.name for one in solver.columns]
    return Basis(names, problem.solverModel.getBasis())
