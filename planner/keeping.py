"""What stays on the device before tokens are chosen, and how much room that leaves."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from planner.residency import Residency, evenly_spaced
from planner.room import Room

if TYPE_CHECKING:
    from planner.decode import DecodePlanner

WHOLE_LAYER = 1e-6
"""What the LP's tolerances may take off a layer of weights that it keeps."""


def kept_from_start(planner: DecodePlanner) -> Residency:
    """All that would be moved, or weights of as many layers as pays, or nothing."""
    n_layers = planner.model.n_layers
    everything = Residency.whole_cache(planner.model, planner.workload)
    weights = planner.nothing_kept
    if planner.schedule == "column":
        weights = replace(weights, weight_layers=tuple(range(n_layers)))
        everything = replace(everything, weight_layers=weights.weight_layers)
        if planner.room(weights).free_bytes < 0:
            weights = _some_weights(planner)
    return everything if planner.room(everything).free_bytes >= 0 else weights


def _some_weights(planner: DecodePlanner) -> Residency:
    """Whole layers of weights: as many as the LP wants where it may keep parts of layers, or as
    fit beside staged X, whichever the LP does better with."""
    room, n_layers = planner.room(planner.nothing_kept), planner.model.n_layers
    parts = planner.program_beside(planner.nothing_kept, keep_weights=True).solve().kept_weights
    staged_x_bytes = room.staged_x_token_bytes * planner.workload.max_tokens
    most = max(0.0, room.free_bytes - staged_x_bytes) // room.layer_weight_bytes
    counts = {int(sum(parts.values()) + WHOLE_LAYER), int(most)}
    some = [
        replace(planner.nothing_kept, weight_layers=evenly_spaced(count, n_layers))
        for count in sorted(min(count, n_layers - 1) for count in counts)
    ]
    return min(some, key=lambda kept: planner.program_beside(kept).solve(choose=False).objective_s)


def most_room(planner: DecodePlanner) -> Room:
    """No less than any plan can have that does not keep everything, whichever layers it moves.

    One that moves a single layer's cache has one staging slot, any other two.
    """
    last, job = planner.model.n_layers - 1, planner.workload
    but_one = replace(planner.nothing_kept, kv_tokens=(job.prompt_tokens,) * last + (0,))
    room = planner.room(planner.nothing_kept)
    if planner.room(but_one).free_bytes < 0:
        return room
    slot_bytes = job.max_tokens * room.kv_token_bytes
    return replace(room, free_bytes=room.free_bytes + slot_bytes)
