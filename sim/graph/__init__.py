"""The task graph that simulator and device both execute, and what is true of it."""
