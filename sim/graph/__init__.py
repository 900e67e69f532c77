"""The task graph that simulator and device both execute, with its memory, races and timeline."""
