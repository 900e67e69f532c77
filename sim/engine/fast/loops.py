"""The fast engine's loops, compiled by numba over arrays of records.

Letters: N tasks, M deps of all of them, K of the tasks under G claims, D devices, L lanes of a
device, U uplinks, S changes of what is available. The lanes of all devices are numbered
`device * L + lane of the device`.

Compiled code is kept on disk until this file changes. So it may hold no number from another file:
all of them, L too, come as arguments.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from sim.engine.fast.records import Bools, Floats, Ints, Records

NOBODY = -1
NOT_DONE = -1.0
NO_PACE = -1.0
"""Of a task that has just started, so that its first pace, 0 too, counts as a change."""

NOTHING, PART, WHOLE = 0, 1, 2
"""Share of its tokens that a claim leaves a task."""


class Work(NamedTuple):
    """A graph: `places` [N], `deps` [M], `claims` [K], `taken` [G], a row of CLAIM or NOBODY."""

    places: Records
    deps: Ints
    claims: Records
    taken: Ints


class Sharing(NamedTuple):
    """Rates that slow tasks down while they run.

    Args:
        change_s: [S + 1], when availability changes, infinite at last.
        pace: [S + 1, L, 2 ** L], of a lane before each change and after the last, by the set of
            busy lanes of its device, a bit each.
        shares: [L], whether a lane copies over uplinks.
        capacity: [L, U], bytes/s of each uplink in the direction of such a lane.
        crosses: [D, U], whether a device's copies cross an uplink.
    """

    change_s: Floats
    pace: Floats
    shares: Bools
    capacity: Floats
    crosses: Bools


class State(NamedTuple):
    """State of a run.

    Args:
        lanes: [D * L] of LANE.
        busy: [D], the set of busy lanes of each device.
        changes: [1], number of past changes of availability.
        runs: [N] of RUN.
    """

    lanes: Records
    busy: Ints
    changes: Ints
    runs: Records


compiled = njit(cache=True, nogil=True, error_model="numpy")


@compiled
def prepare(
    places: Records,
    kind: Ints,
    kind_costs: Records,
    n_devices: int,
    n_lanes: int,
    ahead_s: float,
    runs: Records,
) -> None:
    """Fill in the cost of each task, and its launch by the host thread of its device.

    Args:
        kind_costs: of KIND_COST, by kind of task.
        n_lanes: L.
    """
    spent_s = np.zeros(n_devices)
    for task in range(places.size):
        cost, run = kind_costs[kind[task]], runs[task]
        device = places[task].lane // n_lanes
        spent_s[device] += cost.launch_s
        run.launched_s = max(cost.earliest_s, spent_s[device] - ahead_s)
        run.uncontended_s = cost.uncontended_s
        run.demand_bytes_per_s = cost.demand_bytes_per_s


@compiled
def run_uncontended(
    places: Records, deps: Ints, n_queues: int, gap_s: float, handover_s: float, runs: Records
) -> None:
    """Run without contention: every task starts as soon as host, deps and lane allow.

    Args:
        n_queues: D * L.
    """
    free_s = np.zeros(n_queues)
    for task in range(places.size):
        place, run = places[task], runs[task]
        earliest_s = max(free_s[place.lane], run.launched_s)
        for at in range(place.dep_from, place.dep_to):
            if places[deps[at]].lane != place.lane:
                earliest_s = max(earliest_s, runs[deps[at]].end_s + handover_s)
        run.start_s = earliest_s
        run.end_s = earliest_s + run.uncontended_s
        free_s[place.lane] = run.end_s + gap_s


@compiled
def begin(work: Work, state: State, handover_s: float) -> None:
    """Put the first task of each lane, its head, where it waits for its deps."""
    state.runs["end_s"][:] = NOT_DONE
    for number in range(state.lanes.size):
        _set_head(state.lanes[number], work.places, state.runs, state.lanes[number].head)
        _find_start(state.lanes[number], work, state.runs, 0.0, handover_s)


@compiled
def run_events(work: Work, sharing: Sharing, state: State, gap_s: float, handover_s: float) -> int:
    """Process events until the end; a start or an end changes the paces of other tasks.

    Returns:
        The position of a task that got a part of its tokens: the caller sets `uncontended_s` and
        `demand_bytes_per_s` of its run for that part, and calls again. NOBODY at the end.
    """
    lanes, busy, runs = state.lanes, state.busy, state.runs
    n_lanes = sharing.shares.size
    while True:
        number = _soonest(lanes)
        lane = lanes[number]
        now_s = lane.event_s
        change_s = sharing.change_s[state.changes[0]]
        if change_s <= now_s and change_s < np.inf:
            state.changes[0] += 1
            for device in range(busy.size):
                _set_paces(device, sharing, state, change_s)
            continue
        if now_s == np.inf:
            return NOBODY
        task = lane.head
        if lane.turn != NOBODY:
            lane.turn = NOBODY
            got = _claim(work.claims, work.taken, work.places[task].claim)
            if got == PART:
                return int(task)
            if got == NOTHING:
                runs[task].uncontended_s = 0.0
        if not lane.running:
            runs[task].start_s = now_s
        if lane.running or runs[task].uncontended_s > 0.0:
            device, at = number // n_lanes, number % n_lanes
            _start_or_stop(lane, runs[task].uncontended_s, now_s)
            busy[device] ^= 1 << at
            if sharing.shares[at]:
                _share_uplinks(lanes[at::n_lanes], runs, sharing.capacity[at], sharing.crosses)
                for other in range(busy.size):
                    if other != device:
                        _set_paces(other, sharing, state, now_s)
            _set_paces(device, sharing, state, now_s)
            if lane.running:
                continue
        runs[task].end_s = now_s
        if runs[task].uncontended_s > 0.0 or work.places[task].claim == NOBODY:
            lane.free_s = now_s + gap_s
        _set_head(lane, work.places, runs, work.places[task].next_on_lane)
        _find_start(lane, work, runs, now_s, handover_s)
        for other in range(lanes.size):
            waiting = lanes[other]
            waits = waiting.event_s == np.inf and not waiting.running and waiting.head != NOBODY
            if waits and work.deps[waiting.dep_at] == task:
                _find_start(waiting, work, runs, now_s, handover_s)


@compiled
def _soonest(lanes: Records) -> int:
    """The lane with the next event; ties go to lanes without a claim, then by position."""
    best = 0
    for number in range(1, lanes.size):
        one, other = lanes[number], lanes[best]
        if one.event_s < other.event_s or (one.event_s == other.event_s and one.turn < other.turn):
            best = number
    return best


@compiled
def _set_head(lane: Any, places: Records, runs: Records, task: int) -> None:
    """Make `task` the head of a lane."""
    lane.head = task
    lane.event_s = np.inf
    lane.turn = NOBODY
    if task != NOBODY:
        lane.dep_at = places[task].dep_from
        lane.earliest_s = max(lane.free_s, runs[task].launched_s)
        if places[task].claim != NOBODY:
            lane.turn = task


@compiled
def _find_start(lane: Any, work: Work, runs: Records, now_s: float, handover_s: float) -> None:
    """Advance over the head's finished deps; after the last, set its start."""
    if lane.head == NOBODY:
        return
    place = work.places[lane.head]
    while lane.dep_at < place.dep_to:
        dep = work.deps[lane.dep_at]
        if runs[dep].end_s == NOT_DONE:
            return
        if work.places[dep].lane != place.lane:
            lane.earliest_s = max(lane.earliest_s, runs[dep].end_s + handover_s)
        lane.dep_at += 1
    lane.event_s = now_s + max(0.0, lane.earliest_s - now_s)  # rounded as the reference does


@compiled
def _claim(claims: Records, taken: Ints, row: int) -> int:
    """Claim tokens for a task as `sim.graph.claims.Claims.take`; returns NOTHING, PART or WHOLE."""
    mine = claims[row]
    mine.got_start, mine.got_stop = mine.start, mine.stop
    if mine.first_leg != NOBODY:
        first = claims[mine.first_leg]
        mine.got_start, mine.got_stop = first.got_start, first.got_stop
    else:
        at = taken[mine.group]
        while at != NOBODY:
            interval = claims[at]
            if interval.taken_start <= mine.got_start < interval.taken_stop:
                mine.got_start = min(interval.taken_stop, mine.got_stop)
            if interval.taken_start < mine.got_stop <= interval.taken_stop:
                mine.got_stop = max(interval.taken_start, mine.got_start)
            at = interval.next_taken
    if mine.got_start == mine.got_stop:
        return NOTHING
    if mine.first_leg == NOBODY:
        _mark_taken(claims, taken, row)
    return WHOLE if mine.got_stop - mine.got_start == mine.stop - mine.start else PART


@compiled
def _mark_taken(claims: Records, taken: Ints, row: int) -> None:
    """Merge the tokens of a task with the taken intervals that they touch."""
    mine = claims[row]
    mine.taken_start, mine.taken_stop = mine.got_start, mine.got_stop
    before, at = NOBODY, taken[mine.group]
    while at != NOBODY:
        interval = claims[at]
        if interval.taken_start <= mine.taken_stop and mine.taken_start <= interval.taken_stop:
            mine.taken_start = min(mine.taken_start, interval.taken_start)
            mine.taken_stop = max(mine.taken_stop, interval.taken_stop)
            if before == NOBODY:
                taken[mine.group] = interval.next_taken
            else:
                claims[before].next_taken = interval.next_taken
        else:
            before = at
        at = interval.next_taken
    mine.next_taken = taken[mine.group]
    taken[mine.group] = row


@compiled
def _start_or_stop(lane: Any, uncontended_s: float, now_s: float) -> None:
    lane.running = not lane.running
    lane.left_s = uncontended_s
    lane.since_s = now_s
    lane.pace = NO_PACE
    lane.share = 1.0


@compiled
def _set_paces(device: int, sharing: Sharing, state: State, now_s: float) -> None:
    """Where the pace of a device's lane changes, book its progress and predict its new end."""
    n_lanes = sharing.shares.size
    for at in range(n_lanes):
        lane = state.lanes[device * n_lanes + at]
        pace = lane.share * sharing.pace[state.changes[0], at, state.busy[device]]
        if lane.running and pace != lane.pace:
            lane.left_s -= (now_s - lane.since_s) * lane.pace
            lane.since_s = now_s
            lane.pace = pace
            lane.event_s = now_s + max(0.0, lane.left_s / pace) if pace else np.inf


@compiled
def _share_uplinks(copies: Records, runs: Records, capacity: Floats, crosses: Bools) -> None:
    """Max-min fair shares of all copies in one direction, as `sim.engine.sharing.max_min_share`.

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
