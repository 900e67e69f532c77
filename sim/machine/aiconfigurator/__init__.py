"""Operator timings that others measured and published, brought into the form of a profile."""

from sim.machine.aiconfigurator.derive import derive_part
from sim.machine.aiconfigurator.tables import PACKAGE, SystemTables, engines, system_names

__all__ = ["PACKAGE", "SystemTables", "derive_part", "engines", "system_names"]
