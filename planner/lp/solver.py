"""Solve a linear program of PuLP with HiGHS."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

import highspy
import pulp

from sim.errors import Infeasible, PlannerFailed

_STATUS = {
    highspy.HighsModelStatus.kOptimal: pulp.LpStatusOptimal,
    highspy.HighsModelStatus.kInfeasible: pulp.LpStatusInfeasible,
    highspy.HighsModelStatus.kUnboundedOrInfeasible: pulp.LpStatusInfeasible,
    highspy.HighsModelStatus.kUnbounded: pulp.LpStatusUnbounded,
}


class Basis(NamedTuple):
    """The variables and rows that determine an optimum: names, and HiGHS's status of each."""

    variables: list[str]
    found: highspy.HighsBasis


class _Highs(pulp.HiGHS):  # type: ignore[misc]
    """HiGHS for programs of real variables, with a given start basis.

    PuLP's own class has no start basis, and passes a program column by column and row by row,
    which takes several times as long as the solution. Presolve is off. It finds little on these
    programs, and takes forty times as long as the solution on the long and narrow program of the
    bound.
    """

    def __init__(self, basis: Basis | None) -> None:
        super().__init__(msg=False)
        self._basis = basis
        self.columns: list[pulp.LpVariable] = []

    def actualSolve(self, lp: pulp.LpProblem) -> int:  # noqa: N802 - PuLP's name
        columns, rows = lp.variables(), lp.constraints()
        self.columns = columns
        solver = highspy.Highs()  # type: ignore[no-untyped-call]
        solver.setOptionValue("output_flag", False)
        solver.setOptionValue("presolve", "off")
        solver.passModel(_model(lp.objective, columns, rows))
        if self._basis is not None:
            solver.setBasis(_start(self._basis, columns, rows))
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


def _start(
    basis: Basis, columns: list[pulp.LpVariable], rows: list[pulp.LpConstraint]
) -> highspy.HighsBasis:
    """A basis as HiGHS holds it; variables and rows that it does not have are new."""
    start = highspy.HighsBasis()
    start.valid = True
    known = dict(zip(basis.variables, basis.found.col_status, strict=True))
    new = highspy.HighsBasisStatus.kLower
    start.col_status = [known.get(one.name, new) for one in columns]
    known_rows = list(basis.found.row_status)
    added = len(rows) - len(known_rows)
    start.row_status = [*known_rows, *[highspy.HighsBasisStatus.kBasic] * added]
    return start


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


def solve_to_optimum(problem: pulp.LpProblem, basis: Basis | None = None) -> Basis:
    """Solve a linear program; its variables and constraints then hold values and duals.

    Args:
        basis: where to start, as this function returned it for a program of the same shape, or for
            this one with fewer variables and rows.

    Returns:
        The basis of the optimum.

    Raises:
        PlannerFailed: the solver stopped without an optimum; Infeasible where there is none.
    """
    solver = _Highs(basis)
    status = problem.solve(solver)
    if status != pulp.LpStatusOptimal:
        failure = Infeasible if status == pulp.LpStatusInfeasible else PlannerFailed
        raise failure(
            f"the LP {problem.name!r} ended {pulp.LpStatus[status]!r} instead of optimal; report "
            "the plan's inputs as a defect."
        )
    names = [one.name for one in solver.columns]
    return Basis(names, problem.solverModel.getBasis())
