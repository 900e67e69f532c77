"""Predicted times of tasks on a machine."""
