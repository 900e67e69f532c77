"""`kvoverlap trace`: what a profiler's trace says about copies, kernels and idle time."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kvoverlap.cli.options import Json, OutputFile
from kvoverlap.cli.output import note, print_json, progress, say, shown_frac, table
from sim.traces.measured import TOP_KERNELS, MeasuredTrace, open_trace
from sim.traces.measures import Idle, Measures
from sim.units import ms

MAX_ROWS = 20
NAME_CHARS = 60

IDLE_CAUSES = {
    "host_s": "the host had not launched the next work",
    "host_sync_s": "the host waited for the GPU before it launched the next work",
    "waiting_s": "the next work was launched and waited for an event, its stream or its start",
    "unknown_s": "unknown: the trace has no launch of the next work",
}


def trace(
    file: Path,
    *,
    output: Annotated[
        OutputFile | None,
        Parameter(
            name=["--output", "-o"],
            help="Write the measured timeline here, for `kvoverlap compare`, --link-from and the "
            "dashboard.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Measure overlap in the trace of any program: copies, kernels, idle time.

    It reads what torch.profiler, vLLM and SGLang write (Chrome traces of Kineto),
    and exports of Nsight Systems. The answer has copies by direction and stream,
    pinned or pageable; the overlap of each direction; exposed copy; idle time by
    cause; and the same for every step that the trace marks.

    The overlap of a direction is the time in which a copy of it and at least one
    kernel run, divided by the time in which such a copy runs. A damaged file gives
    the answer for what comes before the damage, and says so.

    For example:
      kvoverlap trace rank0.pt.trace.json.gz
      kvoverlap trace rank0.pt.trace.json.gz -o measured.json
      kvoverlap trace report.sqlite --json

    Parameters
    ----------
    file
        A Chrome trace (.json, .json.gz); of Nsight Systems a database (`nsys export --type
        sqlite`) or a CSV (`nsys stats --report cuda_gpu_trace --format csv`).
    """
    with progress("trace") as steps:
        found = open_trace(file, steps)
        steps("computing overlap", 1.0)
        answer = found.to_dict()
    if output is not None:
        found.save(output)
    for sentence in found.notes:
        note(sentence)
    if json:
        print_json(answer)
        return
    print_trace(found)
    if output is not None:
        say(f"\nwritten to {output}; next: kvoverlap compare predicted.json {output}")


def print_trace(found: MeasuredTrace) -> None:
    """The answer as text and tables."""
    whole, events = found.measures, found.events
    gpus = len(found.devices)
    several = f", {gpus} GPUs (sums over them)" if gpus > 1 else ""
    say(f"{events.file} ({events.format}): {events.n_events:,} events{several}")
    if not gpus:
        say(f"operators of the host span {ms(whole.span_s)}")
    else:
        say(
            f"{ms(whole.span_s)}: kernels {ms(whole.kernel_s)}, exposed copy "
            f"{ms(whole.exposed_copy_s)}, other GPU work {ms(whole.other_s)}, idle "
            f"{ms(whole.idle_s)}"
        )
        if found.copying_kernel_s:
            say(
                f"{ms(found.copying_kernel_s)} of the kernels copy K and V between host and GPU: "
                "they count as kernels, not as copies"
            )
        print_directions(whole)
        print_idle(found.idle)
        print_copies(found)
        print_rates(found)
        print_kernels(found)
    print_steps(found)


def print_directions(whole: Measures) -> None:
    rows = [
        (name, ms(copy_s), ms(hidden_s), shown_frac(overlap))
        for name, copy_s, hidden_s, overlap in (
            ("h2d", whole.h2d_copy_s, whole.h2d_hidden_s, whole.h2d_overlap_frac),
            ("d2h", whole.d2h_copy_s, whole.d2h_hidden_s, whole.d2h_overlap_frac),
            (
                "collectives",
                whole.collective_s,
                whole.collective_hidden_s,
                whole.collective_overlap_frac,
            ),
        )
        if copy_s or name != "collectives"
    ]
    table("\nOverlap with kernels", ("", "time", "hidden", "overlap"), rows)


def print_idle(idle: Idle) -> None:
    rows = [
        (cause, ms(seconds))
        for key, cause in IDLE_CAUSES.items()
        if (seconds := getattr(idle, key)) > 0
    ]
    if rows:
        table("\nIdle time by cause", ("cause", "idle"), rows)


def print_copies(found: MeasuredTrace) -> None:
    several = len(found.devices) > 1
    rows = [
        (
            row.direction,
            row.memory or "-",
            f"{row.device}, {row.stream}" if several else row.stream,
            f"{row.copies:,}",
            shown_bytes(row.bytes),
            ms(row.seconds),
            "-" if row.bytes_per_s is None else f"{shown_bytes(row.bytes_per_s)}/s",
        )
        for row in found.copies
    ]
    if rows:
        stream = "GPU, stream" if several else "stream"
        columns = ("direction", "host memory", stream, "copies", "size", "time", "rate")
        table("\nCopies", columns, rows[:MAX_ROWS])
        say_more(len(rows))


def print_rates(found: MeasuredTrace) -> None:
    rows = [
        (
            f"{direction}, {memory}",
            f"{point.bytes:,}",
            f"{point.copies:,}",
            ms(point.seconds),
            f"{shown_bytes(point.bytes_per_s)}/s",
        )
        for (direction, memory), points in found.rates.items()
        for point in points
    ]
    if rows:
        columns = ("direction", "bytes", "copies", "median", "rate")
        table("\nRate over the size of a copy", columns, rows[:MAX_ROWS])
        say_more(len(rows))


def print_kernels(found: MeasuredTrace) -> None:
    streams = [(row.name, f"{row.kernels:,}", ms(row.seconds)) for row in found.kernel_streams]
    if streams:
        table("\nKernels by stream", ("stream", "kernels", "time"), streams[:MAX_ROWS])
        names = [
            (shortened(row.name), f"{row.kernels:,}", ms(row.seconds))
            for row in found.kernels[:TOP_KERNELS]
        ]
        table("\nLongest kernels", ("kernel", "count", "time"), names)


def print_steps(found: MeasuredTrace) -> None:
    rows = [
        (
            f"{number}: {shortened(step.name)}",
            *map(ms, (step.measures.span_s, step.measures.kernel_s)),
            ms(step.measures.h2d_copy_s),
            shown_frac(step.measures.h2d_overlap_frac),
            ms(step.measures.d2h_copy_s),
            shown_frac(step.measures.d2h_overlap_frac),
            *map(ms, (step.measures.exposed_copy_s, step.measures.idle_s)),
        )
        for number, step in enumerate(found.steps)
    ]
    if rows:
        columns = ("step", "span", "kernels", "h2d", "overlap", "d2h", "overlap", "exposed", "idle")
        table("\nSteps", columns, rows[:MAX_ROWS])
        say_more(len(rows))


def say_more(n_rows: int) -> None:
    if n_rows > MAX_ROWS:
        say(f"and {n_rows - MAX_ROWS:,} more; --json has all")


def shortened(name: str) -> str:
    """A name cut at `NAME_CHARS`."""
    return name if len(name) <= NAME_CHARS else f"{name[: NAME_CHARS - 3]}..."


def shown_bytes(size: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:,.2f} {unit}"
    return f"{size:,.0f} B"
