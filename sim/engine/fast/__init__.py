"""The compiled engine: SimPy's times from numba loops over arrays."""
