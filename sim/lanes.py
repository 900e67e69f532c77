"""The lanes of a machine: engines that run their tasks first in, first out."""

from __future__ import annotations

DISK = "disk"

NET = "net"

LANE_OF_TIER = {"ssd": DISK, "net": NET}
"""The lane that copies K and V of a tier into host memory; tier `dram` needs none."""

TIERS = ("dram", *LANE_OF_TIER)

COMPUTE = "compute"

H2D = "h2d"

D2H = "d2h"

HOST = "host"

COPY_LANES = (H2D, D2H)
"""The two directions of the link; a copy inside the host crosses no link."""

LANES = (COMPUTE, H2D, D2H, HOST)

TIER_LANES = (DISK, NET)
"""Lanes that copy K and V from a tier into host memory when a cached prefix is restored."""
