"""The fast engine's loops, compiled by numba over arrays of records.

Letters: N tasks, M deps of all of them, D devices, L lanes of a device, U uplinks. The lanes of all
devices are numbered `device * L + position in sim.graph.LANES`.

Compiled code is kept on disk until this file changes. So it may hold no number from another file:
all of them, L too, come as arguments.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]
Records = npt.NDArray[Any]

NOBODY = -1
NOT_DONE = -1.0

PLACE = np.dtype(
    [
        ("lane", np.int32),
        ("next_on_lane", np.int32),  # NOBODY after the last
        ("dep_from", np.int32),  # its deps are deps[dep_from:dep_to]
        ("dep_to", np.int32),
    ]
)
"""Where a task stands in its graph."""

RUN = np.dtype(
    [
        ("alone_s", np.float64),  # undisturbed
        ("demand_bytes_per_s", np.float64),  # what a copy then uses of its link
        ("issued_s", np.float64),  # when the host has issued it
        ("start_s", np.float64),
        ("end_s", np.float64),  # NOT_DONE until it ends
    ]
)
"""What a task needs on a machine, and when it ran."""

LANE = np.dtype(
    [
        ("head", np.int32),  # the task it runs or will run next, or NOBODY
        ("dep_at", np.int32),  # the dep that it waits for
        ("running", np.bool_),
        ("earliest_s", np.float64),  # before which the head cannot start
        ("event_s", np.float64),  # when the head starts or ends; infinite while it waits for a dep
        ("left_s", np.float64),  # what the head needed alone at `since_s`
        ("since_s", np.float64),
        ("pace", np.float64),
        ("share", np.float64),  # of the head's demand that the uplinks leave
    ]
)
"""Where a lane stands."""

compiled = njit(cache=True, nogil=True, error_model="numpy")


@compiled
def issue(
    places: Records,
    kind: Ints,
    kind_issue_s: Floats,
    n_devices: int,
    n_lanes: int,
    ahead_s: float,
    runs: Records,
) -> None:
    """When each task has been issued; the host thread of each device issues in graph order.

    Args:
        n_lanes: L.
    """
    spent_s = np.zeros(n_devices)
    for task in range(places.size):
        device = places[task].lane // n_lanes
        spent_s[device] += kind_issue_s[kind[task]]
        runs[task].issued_s = max(0.0, spent_s[device] - ahead_s)


@compiled
def run_alone(
    places: Records, deps: Ints, n_queues: int, gap_s: float, handover_s: float, runs: Records
) -> None:
    """Nothing is shared: every task starts as soon as host, deps and lane allow.

    Args:
        n_queues: D * L.
    """
    free_s = np.zeros(n_queues)
    for task in range(places.size):
        place, run = places[task], runs[task]
        earliest_s = max(free_s[place.lane], run.issued_s)
        for at in range(place.dep_from, place.dep_to):
            if places[deps[at]].lane != place.lane:
                earliest_s = max(earliest_s, runs[deps[at]].end_s + handover_s)
        run.start_s = earliest_s
        run.end_s = earliest_s + run.alone_s
        free_s[place.lane] = run.end_s + gap_s


@compiled
def run_shared(
    places: Records,
    deps: Ints,
    lanes: Records,
    factor: Floats,
    shares: Bools,
    capacity: Floats,
    crosses: Bools,
    gap_s: float,
    handover_s: float,
    runs: Records,
) -> None:
    """Event after event: whenever a task starts or ends, the paces of the others are set anew.

    Args:
        lanes: [D * L], each with its first task as head.
        factor: [L, 2 ** L], pace of a lane by the set of busy lanes of its device, a bit each.
        shares: [L], whether a lane copies over uplinks.
        capacity: [L, U], bytes/s of each uplink in the direction of such a lane.
        crosses: [D, U], whether a device's copies cross an uplink.
    """
    n_lanes = factor.shape[0]
    busy = np.zeros(lanes.size // n_lanes, np.int32)
    runs["end_s"][:] = NOT_DONE
    for number in range(lanes.size):
        if lanes[number].head != NOBODY:
            _take(lanes[number], places, runs, lanes[number].head, 0.0)
            _look(lanes[number], places, deps, runs, 0.0, handover_s)
    while True:
        number = _soonest(lanes)
        lane = lanes[number]
        now_s = lane.event_s
        if now_s == np.inf:
            return
        task = lane.head
        if not lane.running:
            runs[task].start_s = now_s
        if lane.running or runs[task].alone_s > 0.0:
            _start_or_stop(lane, runs[task].alone_s, now_s)
            busy[number // n_lanes] ^= 1 << number % n_lanes
            if shares[number % n_lanes]:
                at = number % n_lanes
                _share_uplinks(lanes[at::n_lanes], runs, capacity[at], crosses)
                for device in range(busy.size):
                    _set_pace(lanes[device * n_lanes + at], factor[at, busy[device]], now_s)
            device = number // n_lanes
            for at in range(n_lanes):
                _set_pace(lanes[device * n_lanes + at], factor[at, busy[device]], now_s)
            if lane.running:
                continue
        runs[task].end_s = now_s
        _take(lane, places, runs, places[task].next_on_lane, now_s + gap_s)
        _look(lane, places, deps, runs, now_s, handover_s)
        for other in range(lanes.size):
            waiting = lanes[other]
            waits = waiting.event_s == np.inf and waiting.head != NOBODY
            if waits and deps[waiting.dep_at] == task:
                _look(waiting, places, deps, runs, now_s, handover_s)


@compiled
def _soonest(lanes: Records) -> int:
    best = 0
    for number in range(1, lanes.size):
        if lanes[number].event_s < lanes[best].event_s:
            best = number
    return best


@compiled
def _take(lane: Any, places: Records, runs: Records, task: int, free_s: float) -> None:
    """Make `task` the head of a lane that is free from `free_s` on."""
    lane.head = task
    lane.event_s = np.inf
    if task != NOBODY:
        lane.dep_at = places[task].dep_from
        lane.earliest_s = max(free_s, runs[task].issued_s)


@compiled
def _look(
    lane: Any, places: Records, deps: Ints, runs: Records, now_s: float, handover_s: float
) -> None:
    """Step over the head's deps that are done; after the last its start is known."""
    if lane.head == NOBODY:
        return
    place = places[lane.head]
    while lane.dep_at < place.dep_to:
        dep = deps[lane.dep_at]
        if runs[dep].end_s == NOT_DONE:
            return
        if places[dep].lane != place.lane:
            lane.earliest_s = max(lane.earliest_s, runs[dep].end_s + handover_s)
        lane.dep_at += 1
    lane.event_s = max(now_s, lane.earliest_s)


@compiled
def _start_or_stop(lane: Any, alone_s: float, now_s: float) -> None:
    lane.running = not lane.running
    lane.left_s = alone_s
    lane.since_s = now_s
    lane.pace = 0.0  # unlike any, so that the first pace counts as a change
    lane.share = 1.0


@compiled
def _set_pace(lane: Any, factor: float, now_s: float) -> None:
    """Where the pace changes, book progress so far and foresee the end anew."""
    pace = lane.share * factor
    if lane.running and pace != lane.pace:
        lane.left_s -= (now_s - lane.since_s) * lane.pace
        lane.since_s = now_s
        lane.pace = pace
        lane.event_s = now_s + max(0.0, lane.left_s / pace)


@compiled
def _share_uplinks(copies: Records, runs: Records, capacity: Floats, crosses: Bools) -> None:
    """Max-min fair shares of all copies in one direction, as `sim.resources.max_min_share`.

    Args:
        copies: [D], the lane of each device.
        capacity: [U], bytes/s.
    """
    left = capacity.copy()
    room = np.empty(left.size)
    is_open = copies["running"].copy()
    while np.any(is_open):
        for uplink in range(left.size):
            users = np.sum(is_open & crosses[:, uplink])
            room[uplink] = left[uplink] / users if users else np.inf
        tightest = np.min(room)
        satisfied = False
        for device in range(copies.size):
            demand = runs[copies[device].head].demand_bytes_per_s
            satisfied |= is_open[device] and demand <= tightest
        for device in range(copies.size):
            demand = runs[copies[device].head].demand_bytes_per_s
            closes = demand <= tightest if satisfied else _any_full(crosses[device], room, tightest)
            if is_open[device] and closes:
                is_open[device] = False
                rate = min(demand, tightest)
                copies[device].share = rate / demand
                for uplink in range(left.size):
                    if crosses[device, uplink]:
                        left[uplink] = max(0.0, left[uplink] - rate)


@compiled
def _any_full(crosses: Bools, room: Floats, tightest: float) -> bool:
    full = False
    for uplink in range(room.size):
        full |= crosses[uplink] and room[uplink] <= tightest
    return full
