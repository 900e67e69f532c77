"""Measuring on a device: what needs a planner and hardware together. It returns data."""
