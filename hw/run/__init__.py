"""Executors of task graphs, checks before a run, generation, other systems."""
