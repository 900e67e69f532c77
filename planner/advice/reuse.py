"""Times of a later request whose prefix is cached: loaded, computed, or both."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from planner.crossovers import Interval, intervals
from planner.restore import RestorePlanner
from sim.engine.sharing import machine_of_one_gpu
from sim.graph.jobs import RestoreRequest
from sim.machine.profile import HardwareProfile
from sim.model.spec import ModelSpec

LOAD, COMPUTE = "load", "compute"


@dataclass(frozen=True, slots=True)
class Reuse:
    """Seconds to the first token of a later request that appends one token to the same prompt.

    Args:
        load_s: all K and V of the prompt that are still attended to are loaded from host memory.
        compute_s: all are computed.
        split_s: the first tokens are computed and the others loaded, in the best proportion.
        by_prefix: the faster of the first two by length of the prefix.
        guessed: the profile has no times of prefill attention, and matmul rates replace them.
    """

    load_s: float
    compute_s: float
    split_s: float
    by_prefix: tuple[Interval, ...]
    guessed: bool

    @property
    def least_tokens(self) -> int | None:
        """Shortest prefix from which loading is faster, or None if it never is."""
        last = self.by_prefix[-1]
        return last.first_tokens if last.verdict == LOAD else None


def reuse(
    model: ModelSpec,
    hardware: HardwareProfile,
    prompt_tokens: int,
    engine: str,
    kv_bits: int | None = None,
) -> Reuse | None:
    """Times of the later request, or None if its K and V and the weights exceed GPU memory.

    Args:
        kv_bits: of K and V in host memory; None for the model's dtype.
    """

    machine = machine_of_one_gpu(hardware, model)

    def planner(tokens: int) -> RestorePlanner:
        request = RestoreRequest(
            prompt_tokens=tokens + 1, cached_tokens=tokens, tier_kv_bits=kv_bits or 16
        )
        return RestorePlanner(model, machine, request, engine=engine)

    def verdict(tokens: int) -> str:
        one = planner(tokens)
        loads = one.choice("load-only").ttft_s < one.choice("compute-only").ttft_s
        return LOAD if loads else COMPUTE

    lengths = range(1, model.max_positions)
    max_tokens = bisect_right(
        lengths, hardware.memory.job_device_bytes, key=lambda tokens: planner(tokens).device_bytes
    )
    if max_tokens < prompt_tokens:
        return None
    here = planner(prompt_tokens)
    load_s, compute_s, split_s = (
        here.choice(policy).ttft_s for policy in ("load-only", "compute-only", "lp")
    )
    guessed = hardware.restore is None or hardware.restore.prefill is None
    return Reuse(load_s, compute_s, split_s, intervals(verdict, 1, max_tokens), guessed)
