"""Regret of the joint restore policy, and its gain over the two-ended restore.

    python benchmarks/restore_regret.py [--cases 200] [--seed 0] [--engine fast] [--json]

Each case draws a model, a machine, a tier, a prompt and a GPU share, and simulates every policy.
Regret is the joint plan's time to first token over the least of any policy, minus 1; the gain is
the two-ended time over the joint one, minus 1.
"""

from __future__ import annotations

import random
from dataclasses import replace
from statistics import median

from common import counted, options, report

from planner.restore import RESTORE_POLICIES, RestorePlanner
from sim import HardwareProfile, ModelSpec, find_hardware, find_model
from sim.graph.jobs import RestoreRequest
from sim.lanes import LANE_OF_TIER
from sim.machine.prefill import Restore, Tier
from sim.machine.provenance import SourcedValue

MODELS = ("opt-1.3b", "opt-6.7b", "longalpaca-7b", "longalpaca-13b", "llama-3.1-8b", "qwen3-8b")
MACHINES = ("a100-80g", "2xa100-80g", "h100")
POLICIES = [policy for policy in RESTORE_POLICIES if policy != "auto"]


def draw_case(rng: random.Random) -> tuple[ModelSpec, HardwareProfile, RestoreRequest]:
    """A shipped model on a shipped machine, behind a link of 0.3 to 30 GB/s."""
    tier = rng.choice(("dram", *LANE_OF_TIER))
    rate = 3e9 * 10 ** rng.uniform(-1, 1)
    machine = find_hardware(rng.choice(MACHINES))
    if tier == "dram":
        machine = machine.with_faster("h2d", rate / machine.links.h2d.bytes_per_s)
    else:
        block = machine.restore or Restore()
        machine = replace(
            machine,
            restore=block.with_tier(Tier(LANE_OF_TIER[tier], SourcedValue("datasheet", rate))),
        )
    prompt = round(512 * 2 ** rng.uniform(1, 6))
    request = RestoreRequest(
        prompt_tokens=prompt,
        cached_tokens=prompt - rng.choice((1, 1, 64, prompt // 8)),
        tier=tier,
        gpu_share=rng.choice((0.125, 0.5, 0.875, 1.0)),
        tier_kv_bits=rng.choice((16, 16, 8)),
    )
    return find_model(rng.choice(MODELS)), machine, request


def main() -> None:
    chosen = options(__doc__, cases=200, seed=0, engine="simpy")
    rng = random.Random(chosen.seed)  # noqa: S311
    regrets, gains = [], []
    wins = dict.fromkeys(POLICIES, 0)
    for _ in counted(chosen.cases):
        planner = RestorePlanner(*draw_case(rng), engine=chosen.engine, cached_data="kv+x")
        times = {policy: planner.choice(policy).ttft_s for policy in POLICIES}
        regrets.append(times["joint"] / min(times.values()) - 1)
        gains.append(times["two-ended"] / times["joint"] - 1)
        wins[planner.fastest()] += 1
    found = {
        "cases": chosen.cases,
        "max_regret_frac": max(regrets),
        "median_gain_vs_two_ended_frac": median(gains),
        "best_gain_vs_two_ended_frac": max(gains),
        "fastest_cases": wins,
    }
    report(
        found,
        chosen.json,
        f"{found['cases']} cases, joint against every other policy",
        f"worst regret {found['max_regret_frac']:.3%}",
        f"gain over two-ended: median {found['median_gain_vs_two_ended_frac']:.1%}, "
        f"best {found['best_gain_vs_two_ended_frac']:.1%}",
        "simplest of the fastest: " + ", ".join(f"{name} {n}" for name, n in wins.items() if n),
    )


if __name__ == "__main__":
    main()
