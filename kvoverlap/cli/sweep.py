"""`kvoverlap sweep`: plan every point of a study and write one table."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from kvoverlap.cli.options import Count, Json, OutputFile, Runtime
from kvoverlap.cli.output import err, note, print_json, progress, say, table
from sim.catalog import DATA
from sim.errors import BadInput, UnknownName
from sim.progress import Progress
from sim.units import duration_text, ms, percent

if TYPE_CHECKING:
    from planner.sweep import Crossover, Estimate, Study, Summary, Swept

STUDIES = DATA / "studies"
NEEDED = ("joblib", "pyarrow")
MAX_LINES = 12
PROCESSES_PER_CORE = 4
FASTEST = "Most and fewest tokens a second"
SHOWN = {
    "decode": (FASTEST, ("makespan_s", "tokens_per_s", "overlap_frac", "bottleneck")),
    "restore": (FASTEST, ("ttft_s", "tokens_per_s", "overlap_frac", "bottleneck")),
    "traffic": (
        "Lowest and highest p90 of TTFT",
        ("ttft_p90_s", "tpot_p90_s", "hit_frac", "goodput_frac", "overloaded", "bottleneck"),
    ),
}
"""Title and outputs of the table of the best and the worst point, by scenario."""

QUIET_S, LIVELY_S = 10.0, 0.5
"""Seconds between two reports of progress: to a file, and to a terminal."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Workers:
    """Where the points are planned."""

    executor: Annotated[
        str,
        Parameter(
            help="local: processes of this machine. dask: a cluster, whose workers have kvoverlap "
            "installed."
        ),
    ] = "local"
    jobs: Annotated[
        Count | None, Parameter(help="Local processes; by default one for each core.")
    ] = None
    address: Annotated[str | None, Parameter(help="The Dask scheduler, tcp://HOST:PORT.")] = None


def sweep(
    study: str,
    *,
    output: Annotated[OutputFile | None, Parameter(name=["--output", "-o"])] = None,
    dry_run: bool = False,
    resume: bool = False,
    workers: Workers = Workers(),
    runtime: Runtime = None,
    json: Json = False,
) -> None:
    """Plan every point of a study, in parallel, and write one table.

    A study is a TOML file: [fixed] holds what all points share, [grid] lists to
    combine, [zip] lists to take together, [where] filters. Any option of `plan` is
    a key (model, assume_like, hardware, link_from, batch, prompt, gen, policy,
    schedule, n_batches, gpus, tp, ep, keep, gpu_memory, host_memory, dtype,
    dequantise, kv_bits, runtime, resident_layers, copies), every rate of its --set
    (link.bandwidth, compute.flops, ...) and every size of a model (model.n_layers,
    model.n_kv_heads, ...); with scenario = "restore" those of `restore` (cached,
    tier, chunk, io_chunk, gpu_share, cached_data); with "traffic" those of
    `traffic` (trace, or generate with rate, turns, ...; host_cache, ssd_cache,
    policy, instances, ...). Values are written as on the command line.

      scenario = "decode"
      [fixed]
      model = "opt-13b"
      hardware = "kvpr-a100"
      prompt = "1K"
      [grid]
      "link.bandwidth" = ["25GB/s", "50GB/s", "100GB/s"]
      policy = ["load-all", "recompute-all", "lp"]
      batch = [8, 32]
      [where]
      small = "batch < 32 or policy != 'recompute-all'"

    Each row of the Parquet table holds a point's inputs in SI units, its outputs
    (makespan_s or ttft_s, tokens_per_s, overlap, exposed copy, split, bottleneck,
    memory, whether the profile's range holds; of traffic hit rates, TTFT and time
    per token at p50, p90 and p99, goodput, overload), an error where it has no
    answer, and which version answered which study.

    OUTPUT.parts holds finished points until the table is complete. If a sweep is
    stopped or killed, the same command with --resume computes the remaining points.

    For example:
      kvoverlap sweep pcie-crossover --dry-run
      kvoverlap sweep pcie-crossover -o pcie.parquet
      kvoverlap sweep ./study.toml -o out.parquet --resume
      kvoverlap sweep ./study.toml -o out.parquet --executor dask \\
          --address tcp://10.0.0.1:8786

    Parameters
    ----------
    study
        A study.toml, or the name of a shipped study (data/studies).
    output
        The table to write: out.parquet.
    dry_run
        Check the study, count its points, and time a few to estimate the whole sweep.
    resume
        Reuse the finished points of an earlier run of the same study into OUTPUT.
    """
    if not all(map(find_spec, NEEDED)):
        raise BadInput("sweep needs joblib and pyarrow: pip install 'kvoverlap[sweep]'.")
    import planner.sweep as sweeps

    asked = sweeps.Study.load(find_study(study), runtime)
    executor, address, jobs = workers.executor, workers.address, workers.jobs
    if executor not in sweeps.EXECUTORS:
        raise UnknownName("executor", executor, sweeps.EXECUTORS)
    if (executor == "dask") != (address is not None):
        raise BadInput(f"--address(={address}) goes with --executor dask, and dask needs it.")
    if address is not None and not re.fullmatch(r"[a-z]+://[^/]+:\d+", address):
        raise BadInput(f"--address(={address}) must be of the form tcp://HOST:PORT.")
    if output is None and not dry_run:
        raise BadInput("-o is missing: name the table to write, such as -o out.parquet.")
    most = PROCESSES_PER_CORE * sweeps.cores()
    processes = min(jobs or sweeps.cores(), most)
    if jobs is not None and jobs > most:
        note(f"--jobs(={jobs}): {most} processes are enough for {sweeps.cores()} cores.")
    target = output or Path("out.parquet")
    if target.suffix not in ("", ".parquet"):
        raise BadInput(f"-o {target}: the table is Parquet; name it {target.stem}.parquet.")
    if dry_run:
        checkpoints = sweeps.Checkpoints(asked, target)
        _print_estimate(asked, sweeps.estimate(asked, checkpoints, processes), json)
        return
    pool = sweeps.dask(address) if address is not None else sweeps.local(processes)
    try:
        with progress("sweep") as bar:
            swept = sweeps.run_sweep(asked, target, pool, processes, resume, _Throttled(bar))
    except KeyboardInterrupt:
        note("finished points are saved; the same command with --resume continues.")
        raise
    found = sweeps.summarize(asked, swept.table)
    if json:
        print_json(_answer(asked, target, swept, found))
        return
    _print(asked, target, swept, found)


def find_study(name_or_path: str) -> Path:
    """A shipped study by name, or any by path.

    Raises:
        UnknownName: neither.
    """
    shipped = STUDIES / f"{name_or_path}.toml"
    if "/" not in name_or_path and shipped.is_file():
        return shipped
    if Path(name_or_path).exists():
        return Path(name_or_path)
    names = [path.stem for path in STUDIES.glob("*.toml")]
    raise UnknownName("study", name_or_path, names, "A path to a study.toml works too.")


class _Throttled:
    """Progress that forwards a report every few seconds."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.note = progress.note
        self._pause_s = LIVELY_S if err.is_terminal else QUIET_S
        self._last_s = -self._pause_s

    def __call__(self, text: str, done: float | None = None) -> None:
        now_s = time.monotonic()
        if done == 1.0 or now_s - self._last_s >= self._pause_s:
            self._last_s = now_s
            self._progress(text, done)


def _print_estimate(asked: Study, found: Estimate, json: bool) -> None:
    if json:
        print_json({**asdict(found), "study_sha256": asked.sha256})
        return
    axes = {**asked.grid, **asked.zipped}
    listed = ", ".join(f"{key} ({len(values)})" for key, values in axes.items()) or "none"
    say(f"{asked.title or 'study'}: {found.points:,} points; axes: {listed}")
    say(
        f"{found.missing:,} to do at {ms(found.point_s)} each on one core: the sweep takes about "
        f"{duration_text(found.seconds)}"
    )


def _answer(asked: Study, target: Path, swept: Swept, found: Summary) -> dict[str, Any]:
    return {
        "output": str(target),
        "study_sha256": asked.sha256,
        "models": list(dict.fromkeys(one.name for one in asked.models)),
        "answered": swept.answered,
        "seconds": swept.seconds,
        **asdict(found),
    }


def _print(asked: Study, target: Path, swept: Swept, found: Summary) -> None:
    failed = sum(found.errors.values())
    say(
        f"{asked.title or 'study'}: {found.points:,} points in {target}, {swept.answered:,} of "
        f"them answered now in {duration_text(swept.seconds)}; {failed:,} have no answer"
    )
    for name in dict.fromkeys(one.name for one in asked.models if one.assumed):
        say(f"  {name}")
    for error, count in list(found.errors.items())[:MAX_LINES]:
        say(f"  {count:,} x {error}")
    if found.best is None or found.worst is None:
        return
    say("")
    title, outputs = SHOWN[asked.scenario]
    shown = [*asked.axes, *outputs]
    columns = (("best", found.best), ("worst", found.worst))
    rows = [(key, *(_cell(key, row[key]) for _, row in columns)) for key in shown]
    table(title, ("", *(name for name, _ in columns)), rows)
    if found.crossovers:
        say("")
        _print_crossovers(found.crossovers)


def _print_crossovers(crossovers: Sequence[Crossover]) -> None:
    rows = [
        (
            ", ".join(f"{key}={_cell(key, value)}" for key, value in one.where.items()) or "all",
            one.below,
            one.above,
            f"{_rate(one.low_bytes_per_s)} to {_rate(one.high_bytes_per_s)}",
            "" if one.at_bytes_per_s is None else _rate(one.at_bytes_per_s),
        )
        for one in crossovers[:MAX_LINES]
    ]
    what = crossovers[0].what
    columns = ("where", f"{what} below", "above", "between", "equal at")
    table("Where the link decides", columns, rows)
    if len(crossovers) > MAX_LINES:
        say(f"and {len(crossovers) - MAX_LINES} more; --json has all")


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:.4g} GB/s"


def _cell(key: str, value: Any) -> str:
    if isinstance(value, float):
        if key.endswith("bandwidth"):
            return _rate(value)
        if key.endswith("_cache"):
            return f"{value / 1e9:,.4g} GB"
        if key.endswith("memory"):
            return f"{value / 2**30:.4g} GiB"
        if key.endswith("_s"):
            return f"{value:,.4g}" if key == "tokens_per_s" else ms(value)
        if key.endswith("_frac"):
            return percent(value)
        return f"{value:,.4g}"
    return str(value)
