"""Engines that predict the timeline of a graph: the SimPy reference and the compiled one."""
