"""What the fast engine's loops work on: arrays of records.

Where one task refers to another, -1 says that there is none (`sim.engine.fast.loops.NOBODY`).
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
"""Where a task stands in its graph."""

CLAIM = np.dtype(
    [
        ("group", np.int32),  # tasks of one group are alternatives
        ("first_leg", np.int32),  # the row with whose tokens it goes on, or NOBODY
        ("start", np.int32),  # the tokens that it can do, half open
        ("stop", np.int32),
        ("got_start", np.int32),  # those that it does
        ("got_stop", np.int32),
        ("taken_start", np.int32),  # a stretch of its group's tokens that are taken
        ("taken_stop", np.int32),
        ("next_taken", np.int32),  # the row of another stretch, which this one does not touch
    ]
)
"""A task under a claim. The taken tokens of a group are a list of stretches, `Work.taken` its
first row: a restore from two ends has two stretches, however many chunks."""

KIND_COST = np.dtype(
    [
        ("uncontended_s", np.float64),
        ("demand_bytes_per_s", np.float64),
        ("launch_s", np.float64),  # of the host
        ("earliest_s", np.float64),  # before which no host can issue it
    ]
)
"""What a kind of task needs on a machine."""

RUN = np.dtype(
    [
        ("uncontended_s", np.float64),  # undisturbed
        ("demand_bytes_per_s", np.float64),  # what a copy then uses of its link
        ("launched_s", np.float64),  # when the host has issued it
        ("start_s", np.float64),
        ("end_s", np.float64),  # NOT_DONE until it ends
    ]
)
"""What a task needs on a machine, and when it ran."""

LANE = np.dtype(
    [
        ("head", np.int32),  # the task it runs or will run next, or NOBODY
        ("dep_at", np.int32),  # the dep that it waits for
        ("turn", np.int32),  # of a head that has yet to claim its tokens its position, else NOBODY
        ("running", np.bool_),
        ("free_s", np.float64),  # when the lane's pause after its last task is over
        ("earliest_s", np.float64),  # before which the head cannot start
        ("event_s", np.float64),  # when the head starts or ends; infinite while it cannot
        ("left_s", np.float64),  # what the head needed alone at `since_s`
        ("since_s", np.float64),
        ("pace", np.float64),
        ("share", np.float64),  # of the head's demand that the uplinks leave
    ]
)
"""Where a lane stands."""
