"""Plan, predict and run what to load and what to recompute when a KV cache does not fit the GPU.

    >>> import kvoverlap as kv
    >>> job = kv.Workload(batch_size=32, prompt_tokens=1024, gen_tokens=1)
    >>> plan = kv.plan("opt-6.7b", "kvpr-a100", job)
    >>> plan.makespan_s < plan.baselines["load-all"]
    True
    >>> kv.simulate(plan).makespan_s == plan.makespan_s
    True

Sizes are bytes and times are seconds; every name that holds one ends in its unit. Expected failures
are subclasses of `KvOverlapError`, whose message says what to change. The command line is a client
of these functions. They call the packages `sim` (model, machine, graph, engines), `planner`,
`hw` (devices) and `measure`, which can be imported too.
"""

from __future__ import annotations

TYPE_CHECKING = False  # loading `typing` would keep the command from expecting Ctrl-C
if TYPE_CHECKING:
    from typing import Any

    from kvoverlap.api import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """A name of `kvoverlap.api`, which is loaded at its first use: `--help` starts without it."""
    import importlib

    if name == "__version__":
        return importlib.import_module("sim.files").VERSION
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module 'kvoverlap' has no attribute {name!r}")
    api = importlib.import_module("kvoverlap.api")  # `from kvoverlap import api` would call this
    return getattr(api, name)


def __dir__() -> list[str]:
    return [*__getattr__("__all__"), "__version__"]
