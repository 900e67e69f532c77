"""Arrays of records that the loops of the fast engine work on.

Where one task refers to another, -1 means none (`sim.engine.fast.loops.NOBODY`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]
Records = npt.NDArray[Any]

PLACE = np.dtype(
    [
        ("lane", np.int32),
        ("next_on_lane", np.int32),  # NOBODY after the last
        ("dep_from", np.int32),  # its deps are deps[dep_from:dep_to]
        ("dep_to", np.int32),
        ("claim", np.int32),  # its row among the tasks under claims, or NOBODY
    ]
)
"""Lane, deps and claim of a task."""

CLAIM = np.dtype(
    [
        ("group", np.int32),  # tasks of one group are alternatives
        ("first_leg", np.int32),  # the row of the first leg, whose tokens it works on, or NOBODY
        ("start", np.int32),  # the tokens that it can do, half open
        ("stop", np.int32),
        ("got_start", np.int32),  # those that it does
        ("got_stop", np.int32),
        ("taken_start", np.int32),  # an interval of its group's tokens that are taken
        ("taken_stop", np.int32),
        ("next_taken", np.int32),  # the row of the next interval, disjoint from this one
    ]
)
"""A task under a claim. The taken tokens of a group are a linked list of intervals from row
`Work.taken`: a restore from two ends has two intervals, whatever its number of chunks."""

KIND_COST = np.dtype(
    [
        ("uncontended_s", np.float64),
        ("demand_bytes_per_s", np.float64),
        ("launch_s", np.float64),  # of the host
        ("earliest_s", np.float64),  # earliest launch by any host
    ]
)
"""Cost of a kind of task on a machine."""

RUN = np.dtype(
    [
        ("uncontended_s", np.float64),  # without contention
        ("demand_bytes_per_s", np.float64),  # what a copy then uses of its link
        ("launched_s", np.float64),  # when the host has launched it
        ("start_s", np.float64),
        ("end_s", np.float64),  # NOT_DONE until it ends
    ]
)
"""Cost of a task on a machine, and its times."""

LANE = np.dtype(
    [
        ("head", np.int32),  # the task it runs or will run next, or NOBODY
        ("dep_at", np.int32),  # the dep that it waits for
        ("turn", np.int32),  # position of a head that has not claimed its tokens, else NOBODY
        ("running", np.bool_),
        ("free_s", np.float64),  # when the lane's pause after its last task is over
        ("earliest_s", np.float64),  # earliest start of the head
        ("event_s", np.float64),  # when the head starts or ends; infinite while it cannot
        ("left_s", np.float64),  # uncontended seconds left at `since_s`
        ("since_s", np.float64),
        ("pace", np.float64),
        ("share", np.float64),  # of the head's demand that the uplinks leave
    ]
)
"""State of a lane."""
