"""Measured and predicted timelines: files, comparison, accuracy, traces."""
