"""What a serving runtime can do with a cached prompt: load it for a later request, or not."""

from __future__ import annotations

from dataclasses import dataclass

from planner.crossovers import Interval, intervals
from planner.restore import RestorePlanner
from sim.graph.jobs import RestoreRequest
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec

LOAD, COMPUTE = "load", "compute"


@dataclass(frozen=True, slots=True)
class Reuse:
    """A later request that begins with the same prompt and adds a token; seconds to its first one.

    Args:
        load_s: K and V of the prompt come from host memory, all of them, as runtimes do it.
        compute_s: they are computed anew.
        split_s: computed from the front and loaded from the back, best number of tokens.
        by_prefix: which of the first two is faster, by length of the prefix.
        guessed: the profile has no figures for prefill attention; products' rate is taken.
    """

    load_s: float
    compute_s: float
    split_s: float
    by_prefix: tuple[Interval, ...]
    guessed: bool

    @property
    def least_tokens(self) -> int | None:
        """Prefixes from this length on are loaded faster; None if the longest are not."""
        last = self.by_prefix[-1]
        return last.first_tokens if last.verdict == LOAD else None


def reuse(
    model: ModelSpec, hardware: HardwareProfile, prompt_tokens: int, engine: str
) -> Reuse | None:
    """None where GPU memory has no room for weights and the K and V of one such request."""

    def planner(tokens: int) -> RestorePlanner:
        request = RestoreRequest(prompt_tokens=tokens + 1, cached_tokens=tokens)
        return RestorePlanner(model, hardware, request, engine=engine)

    def verdict(tokens: int) -> str:
        one = planner(tokens)
        loads = one.choice("load-only").ttft_s < one.choice("compute-only").ttft_s
        return LOAD if loads else COMPUTE

    budget = hardware.memory.job_device_bytes - model.weight_bytes
    fitting = int(budget // (model.n_layers * model.kv_token_bytes)) - 1
    most = min(model.max_positions - 1, fitting)
    if most < prompt_tokens:
        return None
    here = planner(prompt_tokens)
    load_s, compute_s, split_s = (
        here.choice(policy).ttft_s for policy in ("load-only", "compute-only", "lp")
    )
    guessed = hardware.restore is None or hardware.restore.prefill is None
    return Reuse(load_s, compute_s, split_s, intervals(verdict, 1, most), guessed)
