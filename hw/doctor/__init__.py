"""Checks of a machine before measurements on it are trusted."""

from hw.doctor.check import QUICK, Check, Durations, guarded
from hw.doctor.checkup import Named, examine
from hw.doctor.compute import Matmul, Steadiness, Sustained, steadiness, sustained
from hw.doctor.concurrency import Overlap, overlap
from hw.doctor.copies import CopyRates, copy_rates
from hw.doctor.disk import DiskRate, disk_rate

__all__ = [
    "QUICK",
    "Check",
    "CopyRates",
    "DiskRate",
    "Durations",
    "Matmul",
    "Named",
    "Overlap",
    "Steadiness",
    "Sustained",
    "copy_rates",
    "disk_rate",
    "examine",
    "guarded",
    "overlap",
    "steadiness",
    "sustained",
]
