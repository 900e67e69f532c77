"""Traces that profilers recorded of any program: what copies and kernels did, and when.

`measured.open_trace` reads one and does the arithmetic; `link.with_link_from` gives a machine the
rates of its copies.
"""
