"""When each task of a graph runs: the SimPy reference and the compiled engine."""
