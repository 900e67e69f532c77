"""Traces that profilers recorded of any program: what copies and kernels did, and when.

`read_trace_file` opens them, `measure` does the arithmetic, `rate_curves` turns copies into rates.
"""
