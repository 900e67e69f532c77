"""Regret of the LP's plan: its makespan over that of the best split of a search.

    python benchmarks/regret.py [--cases 200] [--seed 0] [--json]

Each case draws a schedule, a model, a machine and a job. Search tries the same split in every
layer at 65 points and then improves the best of them: all layers, the first, the last and each
half of the others move up and down by strides that halve. Regret is the LP plan's simulated
makespan over the least one found, minus 1. The `kvpr` closed form is reported as well.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from common import counted, options, report, timed

from planner import Job, PlanOptions, make_plan
from planner.decode.lower import lower
from planner.decode.problem import DecodeProblem
from sim import HardwareProfile, ModelSpec, find_hardware, find_model, simulate
from sim.graph.jobs import Workload
from sim.machine.links import Dispatch, Interference

MODELS = ("opt-125m", "opt-1.3b", "opt-6.7b", "opt-13b", "opt-30b", "llama-2-7b", "llama-3.1-8b")
GRID = 65
BOTH_WAYS = tuple(
    Interference(lane, other, 0.81, "datasheet") for lane, other in (("h2d", "d2h"), ("d2h", "h2d"))
)

Split = list[list[int]]


def draw_case(rng: random.Random) -> tuple[str, ModelSpec, HardwareProfile, Workload]:
    """A shipped model on a machine between a quarter and four times an A100 with PCIe 4."""
    schedule = rng.choice(("row", "row", "row", "column"))
    model = find_model(rng.choice(MODELS if schedule == "row" else MODELS[:2]))
    machine = find_hardware("kvpr-a100")
    for part in ("h2d", "d2h", "flops", "hbm"):
        machine = machine.with_faster(part, 4 ** rng.uniform(-1, 1))
    pauses = rng.choice((0.0, 2e-6, 8e-6))
    machine = replace(
        machine,
        memory=replace(machine.memory, device_bytes=1e12, host_bytes=1e13),
        dispatch=Dispatch("datasheet", kernel_s=pauses, gap_s=pauses, handover_s=pauses),
        interference=rng.choice(((), BOTH_WAYS)),
    )
    job = Workload(
        batch_size=rng.choice((1, 4, 8, 16, 32, 64)),
        prompt_tokens=rng.randint(32, 1900),
        gen_tokens=rng.choice((1, 1, 2)),
        n_batches=1 if schedule == "row" else rng.choice((2, 4)),
    )
    return schedule, model, machine, job


def search(schedule: str, model: ModelSpec, machine: HardwareProfile, job: Workload) -> float:
    """The least makespan over the uniform grid and a local search from its best."""
    pasts = [job.context_tokens(step) for step in range(job.gen_tokens)]

    def makespan(split: Split) -> float:
        return simulate(lower(schedule, model, job, split), machine).makespan_s

    def uniform(part: float) -> Split:
        return [[round(part * past)] * model.n_layers for past in pasts]

    best_s, best = min(
        (makespan(split), split) for split in (uniform(at / (GRID - 1)) for at in range(GRID))
    )
    last, middle = model.n_layers - 1, model.n_layers // 2
    groups = (range(last + 1), (0,), (last,), range(1, middle), range(middle, last))
    stride = max(1, job.prompt_tokens // (GRID - 1))
    while stride:
        improved = False
        for layers in groups:
            for sign in (-1, 1):
                split = moved(best, pasts, layers, sign * stride)
                if (trial_s := makespan(split)) < best_s:
                    best_s, best, improved = trial_s, split, True
        if not improved:
            stride //= 2
    return best_s


def moved(split: Split, pasts: Sequence[int], layers: Sequence[int], by: int) -> Split:
    """The split with some layers' counts changed, each kept between 0 and its past tokens."""
    return [
        [min(max(count + by * (at in layers), 0), past) for at, count in enumerate(row)]
        for row, past in zip(split, pasts, strict=True)
    ]


def main() -> None:
    chosen = options(__doc__, cases=200, seed=0)
    rng = random.Random(chosen.seed)  # noqa: S311
    regrets, kvpr_regrets, solves_s = [], [], []
    for _ in counted(chosen.cases):
        schedule, model, machine, job = draw_case(rng)
        plan = make_plan(Job(model, machine, job), PlanOptions(schedule=schedule))
        least_s = min(search(schedule, model, machine, job), plan.makespan_s)
        regrets.append(plan.makespan_s / least_s - 1)
        kvpr_regrets.append(plan.baselines["kvpr"] / least_s - 1)
        if model.n_layers == 48 and job.gen_tokens == 1:
            program = DecodeProblem(model, machine, job, schedule).program()
            solves_s.append(timed(lambda program=program: program.solve(choose=False)))
    found = {
        "cases": chosen.cases,
        "median_regret_frac": median(regrets),
        "max_regret_frac": max(regrets),
        "kvpr_median_regret_frac": median(kvpr_regrets),
        "kvpr_max_regret_frac": max(kvpr_regrets),
        "lp_solve_median_s": median(solves_s) if solves_s else None,
        "lp_solves": len(solves_s),
    }
    lp_line = "LP of 48 layers: no case drawn"
    if solves_s:
        solve_ms = 1e3 * median(solves_s)
        lp_line = f"LP of 48 layers: {solve_ms:.1f} ms, median of {len(solves_s)} solves"
    report(
        found,
        chosen.json,
        f"{found['cases']} cases, row and column schedule, against {GRID} uniform splits and local "
        "search",
        f"lp    median regret {found['median_regret_frac']:.3%}, "
        f"worst {found['max_regret_frac']:.3%}",
        f"kvpr  median regret {found['kvpr_median_regret_frac']:.1%}, "
        f"worst {found['kvpr_max_regret_frac']:.1%}",
        lp_line,
    )


if __name__ == "__main__":
    main()
