"""`kvoverlap restore`: compute a cached prefix, load it, or do both at once."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from kvoverlap.cli.options import (
    CachedKvBits,
    Count,
    Decimal,
    Engine,
    Json,
    MachineOptions,
    ModelOptions,
    PlanOutput,
    Prompt,
    cached_kv_bits,
    installed_engine,
)
from kvoverlap.cli.output import policy_table, print_json, say, table
from planner.job import Job, PlanOptions
from planner.restore.headline import restore_headline
from planner.restore.plan import RestorePlan, plan_restore
from planner.restore.replanning import Adaptation
from planner.task_times import beyond_calibration, describe_sources
from sim.engine.api import AUTO, fast_engine_installed
from sim.errors import BadInput
from sim.graph.jobs import KV, RestoreRequest
from sim.lanes import TIERS
from sim.machine.availability import ALWAYS, Availability
from sim.model.spec import ModelSpec
from sim.units import ms

LONG_CHUNKS = 256
"""I/O chunks of a prompt from which planning under a trace takes longer than the fast engine takes
to start."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RestoreJob:
    """A request whose prompt has a cached prefix."""

    prompt: Prompt
    cached: Annotated[
        Count | None,
        Parameter(
            help="Leading tokens whose KV is cached. By default all but the last, which is always "
            "computed."
        ),
    ] = None
    tier: Annotated[
        str,
        Parameter(
            help="Location of the cached KV: dram, ssd or net with the profile's rates, or a "
            "link's rate: 4GiB/s, or a number of Gbps as published restore measurements count "
            "them (32 is 4 GiB/s)."
        ),
    ] = "dram"
    chunk: Annotated[
        Count, Parameter(help="Tokens of an engine step, those of other requests included.")
    ] = 512
    io_chunk: Annotated[Count, Parameter(help="Tokens of one load.")] = 128
    cached_data: Annotated[
        str,
        Parameter(
            help="What is stored of the cached tokens. kv: K and V, as serving runtimes do. kv+x: "
            "the attention inputs X too, from which layer-wise and joint may project K and V."
        ),
    ] = KV
    gpu_share: Annotated[
        Decimal, Parameter(help="Fraction of every engine step that the restore gets.")
    ] = 1.0
    kv_bits: CachedKvBits | None = None

    def request(self, model: ModelSpec) -> RestoreRequest:
        """The request as the planner reads it; a tier given as a rate is `net`."""
        return RestoreRequest(
            prompt_tokens=self.prompt,
            cached_tokens=self.prompt - 1 if self.cached is None else self.cached,
            tier=self.tier if self.tier in TIERS else "net",
            chunk_tokens=self.chunk,
            io_chunk_tokens=self.io_chunk,
            gpu_share=self.gpu_share,
            tier_kv_bits=cached_kv_bits(self.kv_bits, model),
        )


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class LoadTraces:
    """Other uses of the machine during the restore."""

    availability: Annotated[
        Path | None,
        Parameter(
            help="CSV or TOML trace: start_s and from then on the available fractions of the lanes "
            "compute, h2d, disk, net. The policies plan for the whole machine and run under it."
        ),
    ] = None
    foresight: Annotated[
        bool,
        Parameter(help="The policies know the trace of --availability in advance.", negative=""),
    ] = False
    others: Annotated[
        Path | None,
        Parameter(
            help="CSV file of requests without a cached prefix: arrival_s, prompt_tokens, "
            "gen_tokens. Each engine step decodes for them first, then computes their prompts; a "
            "two-ended restore gets the remaining tokens of the step. Their TTFT and TPOT are "
            "reported. Needs --gpu-share 1."
        ),
    ] = None


def restore(
    *,
    model: ModelOptions,
    machine: MachineOptions,
    job: RestoreJob,
    policy: Annotated[
        str,
        Parameter(
            help="compute-only, load-only, two-ended, lp, layer-wise, joint, or auto: the fastest "
            "of them; with --runtime the runtime's own way."
        ),
    ] = "auto",
    load: LoadTraces = LoadTraces(),
    engine: Engine = AUTO,
    output: PlanOutput = None,
    json: Json = False,
) -> None:
    """Decide how to restore a cached prefix, and predict the time to the first token.

    The prefix can be recomputed from the front, loaded from the back, or both at
    once until the two ends meet. The output compares the time of the chosen policy
    with that of every other.

    For example:
      kvoverlap restore --model longalpaca-13b --hardware a100-80g --prompt 16K \\
          --tier 32
      kvoverlap restore --model llama-3.1-8b --hardware h100-sxm --prompt 32K \\
          --cached 30K --tier 7GB/s --gpu-share 0.5 --policy two-ended --json
      kvoverlap restore --model llama-3.1-8b --hardware h100-sxm --prompt 50000 \\
          --runtime vllm
      kvoverlap restore --model longalpaca-7b --hardware h100 --prompt 16K \\
          --tier 32 --availability drop.csv --foresight -o plan.json
      kvoverlap restore --model llama-3.1-70b-fp8 --hardware h200+pcie5-x16 \\
          --prompt 16K --set link.h2d.bandwidth=128GB/s --gpu-memory 90GB
    """
    hardware = machine.load()
    if job.tier not in TIERS:
        if not job.tier[:1].isdigit():
            raise BadInput(
                f"--tier(={job.tier}) must be {', '.join(TIERS)}, a rate such as 4GiB/s, or Gbps."
            )
        from planner.restore.reproduce import behind_link, link_rate

        hardware = behind_link(hardware, link_rate("--tier", job.tier))
    spec = model.load(hardware)
    request = job.request(spec)
    trace = ALWAYS if load.availability is None else Availability.load(load.availability)
    if engine == AUTO and trace != ALWAYS and fast_engine_installed():
        engine = "fast" if job.prompt >= LONG_CHUNKS * request.io_chunk_tokens else AUTO
    if load.foresight and trace == ALWAYS:
        raise BadInput("--foresight is of a trace: name one by --availability.")
    options = PlanOptions(
        policy=policy,
        availability=trace,
        foresight=load.foresight,
        engine=installed_engine(engine),
        cached_data=job.cached_data,
        runtime=machine.serving,
    )
    made = plan_restore(Job(spec, hardware, request), options)
    served = None if load.others is None else _serve(made, load.others)
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


def _serve(made: RestorePlan, requests: Path) -> dict[str, Any]:
    """TTFT of the restore, and TTFT and TPOT of the other requests with and without it."""
    from sim.engine.serving import read_others, serve

    others = read_others(requests)
    request = made.workload
    if request.gpu_share < 1:
        raise BadInput(
            f"--gpu-share(={request.gpu_share}) must be 1 with --others, which decide the share."
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
    for number, (shared, alone) in enumerate(pairs, start=1):
        rows.append((f"request {number}", *cells(shared), *cells(alone)))
    columns = ("", "TTFT", "TPOT", "TTFT without the restore", "TPOT without it")
    table("\nAmong other requests", columns, rows)


def _print(made: RestorePlan) -> None:
    request = made.workload
    say(f"{restore_headline(made)}\n")
    say(
        f"{made.model.name} on {made.hardware.name}: {request.cached_tokens:,} of "
        f"{request.prompt_tokens:,} tokens cached ({request.tier}), {100 * request.gpu_share:g} % "
        f"of the GPU, policy {made.policy}"
    )
    if made.x_bytes:
        kv_bytes = request.kv_bytes(made.model)
        say(
            f"X of {request.cached_tokens:,} tokens takes {made.x_bytes / 2**30:.1f} GiB, its K "
            f"and V {kv_bytes / 2**30:.1f} GiB"
        )
    if made.unforeseen_s is not None and made.foreseen_s is not None:
        say(
            f"planned for the whole machine {ms(made.unforeseen_s)}, with the trace known in "
            f"advance (--foresight) {ms(made.foreseen_s)}"
        )
    if made.runtime is not None:
        say(made.runtime.restore_text(made.model))
    say(describe_sources(made))
    if (outside := beyond_calibration(made)) is not None:
        say(outside)
    for sentence in made.notes:
        say(sentence)
    say("" if made.hardware.memory.unified else f"{made.reason}\n")
    policy_table("Policies", "TTFT", made.baselines, "load-only")
    if made.adaptation is not None:
        _print_adaptation(made.adaptation)


def _print_adaptation(found: Adaptation) -> None:
    rows = [
        ("lp, planned once for the idle machine", ms(found.stale_s)),
        (f"lp, planned again {len(found.changes)} times", ms(found.replanned_s)),
        ("two-ended, without a plan", ms(found.two_ended_s)),
        ("lp, with the trace known in advance", ms(found.foreseen_s)),
    ]
    table("\nIf the trace is unknown", ("restore", "TTFT"), rows)
    for one in found.changes:
        say(
            f"at {ms(one.at_s)} {one.lane} was found at {one.rate_frac:.2f} of its rate: now "
            f"{one.computed_tokens:,} tokens are computed"
        )
