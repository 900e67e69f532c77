"""The exact linear program: rows of the schedule and of memory, costs, solver, bounds."""
