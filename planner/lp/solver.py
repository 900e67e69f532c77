"""Solve a linear program with HiGHS."""

from __future__ import annotations

from typing import Any

import pulp

from sim.errors import Infeasible, PlannerFailed


class _Highs(pulp.HiGHS):  # type: ignore[misc]
    """HiGHS with a given start basis, which PuLP does not offer.

    Presolve is off. It finds little on these programs, and takes forty times as long as the
    solution on the long and narrow program of the bound.
    """

    def __init__(self, basis: Any) -> None:
        super().__init__(msg=False, presolve="off")
        self._basis = basis

    def callSolver(self, lp: pulp.LpProblem) -> None:  # noqa: N802 - PuLP's name
        if self._basis is not None:
            lp.solverModel.setBasis(self._basis)
        super().callSolver(lp)


def solve_to_optimum(problem: pulp.LpProblem, basis: Any = None) -> Any:
    """Solve a linear program; its variables and constraints then hold values and duals.

    Args:
        basis: where to start, as this function returned it for a program of the same shape.

    Returns:
        The basis of the optimum.

    Raises:
        PlannerFailed: the solver stopped without an optimum; Infeasible where there is none.
    """
    status = problem.solve(_Highs(basis))
    if status != pulp.LpStatusOptimal:
        failure = Infeasible if status == pulp.LpStatusInfeasible else PlannerFailed
        raise failure(
            f"the LP {problem.name!r} ended {pulp.LpStatus[status]!r} instead of optimal; report "
            "the plan's inputs as a defect."
        )
    return problem.solverModel.getBasis()
