"""A restore: compute from the front, loads from the back, and the source of each token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import plotly.graph_objects as go

from dashboard.figures.style import (
    ALERT_COLOUR,
    MUTED,
    OP_COLOUR,
    RESTORE_COLOUR,
    SPLIT_COLOUR,
    TaskBoxes,
    area,
    columns,
    darker,
    dots,
    line,
    style_curves,
    time_bars,
    vertical_line,
)
from dashboard.questions.restore import request_of
from planner.restore import RestoreSplit
from sim.graph.claims import claimed
from sim.graph.jobs import RestoreRequest
from sim.graph.tasks import LANE_OF_OP, Task
from sim.graph.timeline import Timeline
from sim.lanes import COMPUTE
from sim.machine.availability import Availability
from sim.model.spec import ModelSpec
from sim.units import ms

WALK_PX = 420
LANE_COLOUR = {"compute": "#d9683c", "h2d": "#3f7fc1", "disk": "#5cc0b8", "net": "#4fb3c8"}
MAX_BOXES = 1_500
"""Largest number of tasks that are drawn as one box each, however short."""

SHORTEST_PART = 1 / 700
"""Shortest box of merged neighbours as a part of the time shown: about 1.5 pixels."""

SOURCE_COLOUR = {
    "computed": OP_COLOUR["prefill"],
    "projected from X": OP_COLOUR["load_x"],
    "loaded": SPLIT_COLOUR["loaded"],
}


@dataclass(frozen=True, slots=True)
class Meeting:
    """The first token that is not computed in a run, and the time at which it is on the device."""

    token: int
    at_s: float

    @classmethod
    def of(cls, timeline: Timeline) -> Meeting | None:
        """The meeting of a run, or None if it only computes or only loads.

        Every task of the run must work on all layers.
        """
        computed, loaded = _fronts(timeline)
        if not computed or not loaded:
            return None
        return cls(computed[-1][1], max(computed[-1][0], loaded[-1][0]))


Front = list[tuple[float, int]]
"""Time in seconds and the token that one end has reached."""


def _done(timeline: Timeline) -> list[tuple[float, float, Task]]:
    """Start, end and task of each task that handled tokens."""
    graph = timeline.graph
    times = zip(timeline.start_s, timeline.end_s, claimed(graph, timeline.start_s), strict=True)
    done = [one for one in times if one[2].n_tokens and one[2].op != "head"]
    return [
        (start_s, end_s, replace(task, token_start=graph.loaded_rows(task).start))
        if task.bytes
        else (start_s, end_s, task)
        for start_s, end_s, task in done
    ]


def _fronts(timeline: Timeline) -> tuple[Front, Front]:
    """Progress of compute from the front, and of loads onto the device from the back."""
    cached = request_of(timeline.graph).cached_tokens
    done = sorted(_done(timeline), key=lambda one: one[1])
    computed = [
        (end_s, task.token_stop)
        for _, end_s, task in done
        if task.op == "prefill" and task.token_start < cached
    ]
    loaded = [(end_s, task.token_start) for _, end_s, task in done if task.op == "load_kv"]
    return computed, loaded


def both_ends(timeline: Timeline) -> go.Figure:
    """Tokens over time: computed from the front, loaded from the back.

    Each task is a box: its height is its tokens, its length its time. A load through host memory
    has two boxes. For runs whose tasks work on all layers.
    """
    figure = go.Figure()
    for trace in _present(timeline):
        figure.add_trace(trace)
    boxes = _boxes(_done(timeline), timeline.makespan_s)
    for op in sorted(boxes, key=list(LANE_OF_OP).index):
        figure.add_trace(boxes[op].trace(op))
    _mark_end(figure, timeline, "first token")
    meeting = Meeting.of(timeline)
    if meeting is not None:
        figure.add_trace(_meeting_mark(meeting, "the ends meet", "star"))
        _name_meeting(figure, meeting, timeline)
    _style_walk(figure, timeline.graph.workload.prompt_tokens)
    return figure


def both_ends_compared(predicted: Timeline, measured: Timeline) -> go.Figure:
    """The measured run as boxes under the predicted progress of each end."""
    figure = both_ends(measured)
    ends = (
        ("predicted compute", "prefill", 0),
        ("predicted loads", "load_kv", request_of(measured.graph).cached_tokens),
    )
    for (name, op, start), front in zip(ends, _fronts(predicted), strict=True):
        if not front:
            continue
        figure.add_trace(
            line(
                name,
                [0.0, *(end_s * 1e3 for end_s, _ in front)],
                [start, *(token for _, token in front)],
                f"{name}: token %{{y:,}} after %{{x:,.1f}} ms",
                color=darker(OP_COLOUR[op]),
                dash="dot",
                shape="hv",
            )
        )
    meeting = Meeting.of(predicted)
    if meeting is not None:
        figure.add_trace(_meeting_mark(meeting, "predicted to meet", "star-open"))
    _mark_end(figure, predicted, "first token, predicted")
    return figure


def _boxes(done: Sequence[tuple[float, float, Task]], makespan_s: float) -> dict[str, TaskBoxes]:
    """The boxes by operation, neighbours in time merged where there are many."""
    shortest_s = SHORTEST_PART * makespan_s if len(done) > MAX_BOXES else 0.0
    boxes: dict[str, TaskBoxes] = {}
    groups: dict[str, list[list[tuple[float, float, Task]]]] = {}
    for one in sorted(done, key=lambda one: one[0]):
        queue = groups.setdefault(one[2].op, [])
        if queue and one[1] - queue[-1][0][0] <= shortest_s:
            queue[-1].append(one)
        else:
            queue.append([one])
    for op, queue in groups.items():
        boxes[op] = TaskBoxes()
        for group in queue:
            _add_box(boxes[op], group)
    return boxes


def _add_box(boxes: TaskBoxes, group: Sequence[tuple[float, float, Task]]) -> None:
    start_s, end_s = group[0][0], group[-1][1]
    low = min(task.token_start for *_, task in group)
    high = max(task.token_stop for *_, task in group)
    task = group[0][2]
    size = f"{sum(one.bytes for *_, one in group) / 2**20:,.4g} MiB"
    if task.lane == COMPUTE:
        size = f"{sum(one.flops for *_, one in group) / 1e12:,.4g} TFLOP"
    count = "" if len(group) == 1 else f" ({len(group)} tasks)"
    hover = (
        f"<b>{task.op}</b>, {task.lane}{count}<br>tokens {low:,} to {high:,}<br>"
        f"{start_s * 1e3:,.1f} to {end_s * 1e3:,.1f} ms, {size}"
    )
    boxes.add((start_s, end_s), (low + high) / 2, high - low, hover)


def _present(timeline: Timeline) -> Iterable[go.Scatter]:
    """Shading of the tokens on the device: below one front and above the other."""
    end_ms, cached = timeline.makespan_s * 1e3, request_of(timeline.graph).cached_tokens
    fronts = zip(_fronts(timeline), (0, cached), ("prefill", "load_kv"), strict=True)
    for front, start, op in fronts:
        if not front:
            continue
        reached = [(0.0, start), *((end_s * 1e3, token) for end_s, token in front)]
        reached.append((end_ms, front[-1][1]))
        shade = area(
            "",
            [0.0, *(time_ms for time_ms, _ in reached), end_ms],
            [start, *(token for _, token in reached), start],
            OP_COLOUR[op],
        )
        yield shade.update(name=None, opacity=0.13, line_shape="hv", showlegend=False)


def _meeting_mark(meeting: Meeting, what: str, symbol: str) -> go.Scatter:
    name = f"{what} at token {meeting.token:,}, {ms(meeting.at_s)}"
    edge = ALERT_COLOUR if symbol.endswith("open") else "white"
    return dots(
        name,
        [meeting.at_s * 1e3],
        [meeting.token],
        name,
        symbol=symbol,
        size=15,
        color=ALERT_COLOUR,
        line={"color": edge, "width": 1},
    )


def _name_meeting(figure: go.Figure, meeting: Meeting, timeline: Timeline) -> None:
    """Label the meeting where nothing is drawn."""
    high = meeting.token > 0.6 * timeline.graph.workload.prompt_tokens
    figure.add_annotation(
        x=meeting.at_s * 1e3,
        y=meeting.token,
        text=f"meet at token {meeting.token:,}",
        ax=-60 if high else -50,
        ay=80 if high else -60,
        arrowcolor=ALERT_COLOUR,
        arrowwidth=1.5,
        standoff=9,
    )


def _mark_end(figure: go.Figure, timeline: Timeline, what: str) -> None:
    end_s, top = timeline.makespan_s, timeline.graph.workload.prompt_tokens
    figure.add_trace(vertical_line(end_s * 1e3, 0, top, f"{what}: {ms(end_s)}"))


def _style_walk(figure: go.Figure, prompt_tokens: int) -> None:
    style_curves(
        figure,
        "time since the request (ms)",
        "token of the prompt",
        {"rangemode": "tozero"},
        {"range": [0, prompt_tokens], "tickformat": ",d"},
        height=WALK_PX,
        barmode="overlay",
    )


def sources_by_layer(split: RestoreSplit, model: ModelSpec, request: RestoreRequest) -> go.Figure:
    """Token by layer: computed, projected from X or loaded; windows leave out those in between."""
    cached, layers = request.cached_tokens, model.n_layers
    computed, projected = split.computed_tokens, split.projected_tokens
    loaded = split.loaded_tokens(model, request)
    ends = [cached - count for count in loaded]
    starts = [end - count for end, count in zip(ends, projected, strict=True)]
    parts = (
        ("computed", [0] * layers, list(computed), True),
        ("projected from X", starts, list(projected), any(projected)),
        ("loaded", ends, list(loaded), True),
        ("computed", [cached] * layers, [request.prompt_tokens - cached] * layers, False),
    )
    figure = go.Figure()
    for name, base, counts, legend in parts:
        figure.add_trace(
            columns(
                name,
                counts,
                SOURCE_COLOUR[name],
                f"layer %{{x}}: %{{customdata[0]:,}} tokens {name}"
                "<br>%{customdata[1]:,} to %{customdata[2]:,}",
                base=base,
                legendgroup=name,
                showlegend=legend,
                customdata=[
                    (count, low, low + count) for low, count in zip(base, counts, strict=True)
                ],
            )
        )
    style_curves(
        figure,
        "layer",
        "token of the prompt",
        {"showgrid": False, "tickformat": "d"},
        {"range": [0, request.prompt_tokens], "tickformat": ",d"},
        height=340,
        barmode="overlay",
        bargap=0.08,
    )
    return figure


def ttft_bars(times_s: Mapping[str, float], base: str) -> go.Figure:
    """Times to first token in the order given, each with its ratio to that of `base`."""
    colours = [ALERT_COLOUR if name == base else RESTORE_COLOUR["lp"] for name in times_s]
    return time_bars(times_s, base, colours, "time to first token (ms)")


def availability_steps(trace: Availability, lanes: Sequence[str], end_s: float) -> go.Figure:
    """Available part of each lane in per cent, from the request until `end_s`."""
    starts = [step.start_s for step in trace.steps]
    times = [0.0, *starts, max([end_s, *(start_s * 1.1 for start_s in starts)])]
    figure = go.Figure()
    for lane in lanes:
        figure.add_trace(
            line(
                lane,
                [time_s * 1e3 for time_s in times],
                [100 * trace.at(time_s, lane) for time_s in times],
                f"{lane}: %{{y:.4g}} % from %{{x:,.1f}} ms",
                color=LANE_COLOUR.get(lane, MUTED),
                width=2.5,
                shape="hv",
            )
        )
    titles, axis = ("time since the request (ms)", "available (%)"), {"rangemode": "tozero"}
    style_curves(figure, *titles, axis, axis, height=200, showlegend=True)
    return figure
