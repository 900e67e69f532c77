"""`kvoverlap restore`: a cached prefix, computed, loaded, or both at once."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from kvoverlap.cli.output import print_json, say, table
from kvoverlap.cli.plan import Output, apply_setting, installed_engine, match_dtype
from planner.restore import Adaptation, RestorePlan, behind_link, link_rate, make_restore_plan
from sim.catalog import find_hardware, find_model
from sim.engine.api import fast_engine_installed
from sim.engine.serving import OtherRequest, read_others, serve
from sim.errors import BadInput
from sim.graph.jobs import RestoreRequest
from sim.lanes import TIERS
from sim.machine.availability import ALWAYS, Availability
from sim.units import ms, parse_count

LONG_CHUNKS = 256
"""I/O chunks of a prompt from which planning under a trace, and anew at each change of it, takes
longer than it takes the fast engine to start."""


def restore(
    *,
    model: str,
    hardware: str,
    prompt: str,
    cached: str | None = None,
    tier: str = "dram",
    chunk: str = "512",
    io_chunk: str = "128",
    gpu_share: float = 1.0,
    kv_bits: int = 16,
    policy: str = "auto",
    availability: Path | None = None,
    others: Path | None = None,
    dtype: str | None = None,
    set: tuple[str, ...] = (),  # noqa: A002
    engine: str | None = None,
    output: Output = None,
    json: bool = False,
) -> None:
    """Decide how to restore a cached prefix, and predict the time to the first token.

    The prefix can be computed from the front, loaded from the back, or both at once until the
    two ends meet. The answer is the time to first token under the chosen policy and every other.

    Examples:
      kvoverlap restore --model longalpaca-13b --hardware a100-80g --prompt 16K --tier 32
      kvoverlap restore --model llama-3.1-8b --hardware h100 --prompt 32K --cached 30K \\
        --tier 7GB/s --gpu-share 0.5 --policy two-ended --json
      kvoverlap restore --model longalpaca-7b --hardware h100 --prompt 16K --tier 32 \\
        --availability drop.csv -o plan.json
      kvoverlap restore --model llama-3.1-70b-fp8 --hardware h200+pcie5-x16 --prompt 16K \\
        --set link.h2d.bandwidth=128GB/s

    Parameters
    ----------
    model
        Name of a shipped model (`kvoverlap models`) or path of a config.json.
    hardware
        Name of a shipped profile, of a device and a link such as h100-sxm+pcie5-x16 (`kvoverlap
        hardware` lists them), or path of a profile.json.
    prompt
        Tokens of the prompt; 16K means 16384.
    cached
        Leading tokens whose KV is cached; by default all but the last, which is always computed.
    tier
        Where they are: dram, ssd or net as the profile has them, or a link's rate: 4GiB/s, or a
        bare number of Gbps as published restore measurements count them (32 is 4 GiB/s).
    chunk
        Tokens of an engine step, other requests' included.
    io_chunk
        Tokens that are loaded at a time.
    gpu_share
        The restore's part of every step.
    kv_bits
        Bits of an element of the cached KV: 16, 8, 4 or 3.
    policy
        compute-only, load-only, two-ended, lp, layer-wise, joint, or auto: the fastest of them.
    availability
        A CSV or TOML trace: start_s and fractions of the lanes compute, h2d, disk, net from then
        on. The policies know it; what it does to those who do not is reported beside them.
    others
        A CSV file of requests without a cached prefix: arrival_s, prompt_tokens, gen_tokens. Each
        step first decodes for them, then computes their prompts, and a two-ended restore takes
        what is left of its tokens; the answer says what each of them sees. --gpu-share must be 1.
    dtype
        float32, float16 or bfloat16; by default the model's, or the profile's if its size differs.
    set
        What-if change of the hardware, such as link.h2d.bandwidth=128GB/s or compute.flops=2e15.
    engine
        simpy, or fast: compiled, the same times within rounding. By default simpy, and fast for a
        long prompt under a trace where it is installed.
    output
        Write the plan here, for simulate.
    json
        Print JSON instead of text.
    """
    machine = find_hardware(hardware)
    for setting in set:
        machine = apply_setting(machine, setting)
    if tier not in TIERS:
        if not tier[:1].isdigit():
            raise BadInput(
                f"--tier(={tier}) must be {', '.join(TIERS)}, a rate such as 4GiB/s, or Gbps."
            )
        machine = behind_link(machine, link_rate("--tier", tier))
    spec = match_dtype(find_model(model, dtype), machine, chosen=dtype is not None)
    n_tokens = parse_count("--prompt", prompt)
    request = RestoreRequest(
        prompt_tokens=n_tokens,
        cached_tokens=n_tokens - 1 if cached is None else parse_count("--cached", cached),
        tier=tier if tier in TIERS else "net",
        chunk_tokens=parse_count("--chunk", chunk),
        io_chunk_tokens=parse_count("--io-chunk", io_chunk),
        gpu_share=gpu_share,
        tier_kv_bits=kv_bits,
    )
    trace = ALWAYS if availability is None else Availability.load(availability)
    if engine is None:
        long = n_tokens >= LONG_CHUNKS * request.io_chunk_tokens and trace != ALWAYS
        engine = "fast" if long and fast_engine_installed() else "simpy"
    made = make_restore_plan(spec, machine, request, policy, trace, installed_engine(engine))
    served = None if others is None else _serve(made, read_others(others))
    if output is not None:
        made.save(output)
    if json:
        print_json({**made.answer(), **({} if served is None else {"served": served})})
        return
    _print(made)
    if served is not None:
        _print_served(served)
    if output is not None:
        say(f"\nplan written to {output}; next: kvoverlap simulate {output}")


def _serve(made: RestorePlan, others: tuple[OtherRequest, ...]) -> dict[str, Any]:
    """What the restore and the others see of each other."""
    request = made.workload
    if request.gpu_share < 1:
        raise BadInput(
            f"--gpu-share(={request.gpu_share}) must be 1 with --others, which say what is left."
        )
    both = serve(made.model, made.hardware, request, others)
    alone = serve(made.model, made.hardware, request, others, restores=False)
    return {
        "restore_ttft_s": both.restore.ttft_s,
        "others": [asdict(one) for one in both.others],
        "others_without_restore": [asdict(one) for one in alone.others],
    }


def _print_served(served: dict[str, Any]) -> None:
    def cells(one: dict[str, float | None]) -> tuple[str, str]:
        return ms(one["ttft_s"] or 0.0), "" if one["tpot_s"] is None else ms(one["tpot_s"])

    pairs = zip(served["others"], served["others_without_restore"], strict=True)
    rows = [("restore, two-ended", ms(served["restore_ttft_s"]), "", "", "")]
    for number, (beside, alone) in enumerate(pairs, start=1):
        rows.append((f"request {number}", *cells(beside), *cells(alone)))
    columns = ("", "TTFT", "TPOT", "TTFT without the restore", "TPOT without it")
    table("\nAmong other requests", columns, rows)


def _print(made: RestorePlan) -> None:
    request = made.workload
    say(
        f"{made.model.name} on {made.hardware.name}: {request.cached_tokens:,} of "
        f"{request.prompt_tokens:,} tokens cached ({request.tier}), {100 * request.gpu_share:g} % "
        f"of the GPU, policy {made.policy}"
    )
    projected = f", project {made.projected_tokens:,} from X" if made.projected_tokens else ""
    say(f"compute {made.computed_tokens:,} tokens{projected}, load {made.loaded_tokens:,}")
    say(f"first token after {ms(made.ttft_s)}; hardware figures: {made.source}")
    if made.beyond_figures is not None:
        say(made.beyond_figures)
    say(f"{made.reason}\n")
    rows = [
        (name, ms(value), f"{made.load_only_s / value:.2f}", f"{made.compute_only_s / value:.2f}")
        for name, value in sorted(made.baselines.items(), key=lambda item: item[1])
    ]
    table("Policies", ("policy", "TTFT", "x load-only", "x compute-only"), rows)
    if made.adaptation is not None:
        _print_adaptation(made.adaptation)


def _print_adaptation(found: Adaptation) -> None:
    rows = [
        ("lp, planned for the whole machine and kept", ms(found.stale_s)),
        (f"lp, planned again {len(found.changes)} times", ms(found.replanned_s)),
        ("two-ended, which plans nothing", ms(found.two_ended_s)),
        ("lp, had it known the trace", ms(found.foreseen_s)),
    ]
    table("\nIf nobody knows the trace beforehand", ("restore", "TTFT"), rows)
    for one in found.changes:
        say(
            f"at {ms(one.at_s)} {one.lane} was found at {one.rate_frac:.2f} of its rate: now "
            f"{one.computed_tokens:,} tokens are computed"
        )
