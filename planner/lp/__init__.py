"""Linear programs of decode schedules: costs, rows of time and memory, bounds."""
