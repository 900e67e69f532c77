"""Short terms of the pages, spelled out; `docs/glossary.md` has more."""

from __future__ import annotations

from collections.abc import Sequence

TERMS = {
    "h2d": "copy from host memory to GPU memory, over the link",
    "d2h": "copy from GPU memory to host memory",
    "compute": "the GPU's kernels; in a restore: tokens computed from the prompt",
    "lane": "an engine that does one thing at a time: compute, h2d, d2h, disk, net",
    "K, V": "keys and values of past tokens, which attention reads",
    "KV cache": "K and V of all past tokens in all layers",
    "X": "the input of a layer for a token; K and V follow from it by one matrix product",
    "load": "copy K and V from host memory to the GPU",
    "recompute": "compute K and V of a token from its X",
    "project": "the same in a restore, from cached X",
    "resident": "in GPU memory all the time",
    "lp": "the plan of a linear program: the exact optimum, with its own split for every layer",
    "kvpr": "the plan of KVPR's closed formula: the same split for every layer",
    "load-all": "the plan that loads all past K and V in every step",
    "recompute-all": "the plan that recomputes all past K and V in every step",
    "two-ended": "a restore that computes from the front and loads from the back (Cake)",
    "layer-wise": "a restore of whole layers: computed, projected from X, or loaded (HCache)",
    "joint": "a restore that mixes tokens, layers and modes",
    "row": "a schedule: all layers of a step, then the next step; weights stay on the GPU",
    "column": "a schedule: weights come from host memory, several batches pass each loaded layer",
    "embed, qkv, attention, mlp, head": "the parts of a decode step that compute",
    "place_kv": "copy of K and V that stay in GPU memory to where attention reads them",
    "recompute_resident": "recompute from X that stays in GPU memory",
    "load_kv, load_x": "copies of K and V, and of X, to the GPU",
    "store_kv, store_x": "copies of a new token's K and V, and of its X, to host memory",
    "makespan": "time from the start to the end of the last task",
    "exposed copy": "copy time during which the GPU does not compute",
    "hand-over": "time between the end of what a task waits for and its start: launch and pauses",
    "drained": "a lane with no more work until the end of the run",
    "TTFT": "time to first token, from the arrival of a request",
    "TPOT": "time per output token after the first",
    "p90": "value that nine of ten requests do not exceed",
    "hit rate": "part of the prompt tokens whose K and V are in GPU memory or in the cache",
    "goodput": "part of the requests within the limits of TTFT and TPOT",
    "bound": "a time that no split can beat",
}

PAGE_TERMS: dict[str, tuple[str, ...]] = {
    "Advise": ("KV cache", "X", "load", "recompute", "resident", "h2d", "d2h"),
    "Plan": ("lp", "kvpr", "X", "h2d", "d2h", "row", "column", "resident", "bound"),
    "What-if": ("lp", "kvpr", "load-all", "recompute-all", "row", "column", "h2d"),
    "Restore": ("TTFT", "X", "two-ended", "lp", "layer-wise", "joint", "project", "load"),
    "Traffic": ("TTFT", "TPOT", "p90", "hit rate", "goodput", "two-ended", "joint"),
    "Timeline": ("lane", "h2d", "d2h", "X", "exposed copy", "hand-over", "drained"),
    "Accuracy": ("lp", "kvpr", "two-ended", "makespan"),
    "Machines": ("h2d", "d2h", "lane"),
}


def explained(names: Sequence[str]) -> str:
    """Terms with their meanings, in one paragraph of Markdown."""
    return " · ".join(f"**{name}**: {TERMS[name]}" for name in names)
