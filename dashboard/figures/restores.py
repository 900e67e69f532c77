"""A restore: two ends that walk towards each other, and who makes which tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import plotly.graph_objects as go

from dashboard.figures.lanes import SHORTEST_PART
from dashboard.figures.style import (
    LATE_COLOUR,
    OP_COLOUR,
    WAY_COLOUR,
    darker,
    style_curves,
    vertical_line,
)
from dashboard.questions.restore import request_of
from sim.graph.claims import claimed
from sim.graph.jobs import RestoreRequest
from sim.graph.tasks import LANE_OF_OP, Task
from sim.graph.timeline import Timeline
from sim.lanes import COMPUTE
from sim.units import ms

WALK_PX = 420
MAX_BOXES = 1_500
"""Tasks up to which every one is a box of its own, however short."""

LAYER_WAYS = {
    "computed": OP_COLOUR["prefill"],
    "projected from X": OP_COLOUR["load_x"],
    "loaded": WAY_COLOUR["loaded"],
}


@dataclass(slots=True)
class _Boxes:
    """Rectangles of one operation, in columns as plotly takes them."""

    base_ms: list[float] = field(default_factory=list)
    length_ms: list[float] = field(default_factory=list)
    middle: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    hover: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the two ends of a run met: the first token that is not computed, and when it was there.

    Of one resource alone there is none.
    """

    token: int
    at_s: float

    @classmethod
    def of(cls, timeline: Timeline) -> Meeting | None:
        """The meeting of a run in which every task works on all layers."""
        computed, loaded = _fronts(timeline)
        if not computed or not loaded:
            return None
        return cls(computed[-1][1], max(computed[-1][0], loaded[-1][0]))


Front = list[tuple[float, int]]
"""Seconds, and the token that one end has reached then."""


def _done(timeline: Timeline) -> list[tuple[float, float, Task]]:
    """Start, end and task of what worked on tokens."""
    tasks = claimed(timeline.graph, timeline.start_s)
    times = zip(timeline.start_s, timeline.end_s, tasks, strict=True)
    return [one for one in times if one[2].n_tokens and one[2].op != "head"]


def _fronts(timeline: Timeline) -> tuple[Front, Front]:
    """How far compute has come from the front, and the loads onto the device from the back."""
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
    """Tokens over time: what is computed from the front and what is loaded from the back.

    Each task is a box as high as its tokens and as long as it takes; both legs of a load from
    behind host memory are boxes of their own. For runs whose tasks work on all layers.
    """
    figure = go.Figure()
    for trace in _present(timeline):
        figure.add_trace(trace)
    boxes = _boxes(_done(timeline), timeline.makespan_s)
    for op in sorted(boxes, key=list(LANE_OF_OP).index):
        figure.add_trace(_box_trace(op, boxes[op]))
    _mark_end(figure, timeline, "first token")
    meeting = Meeting.of(timeline)
    if meeting is not None:
        figure.add_trace(_meeting_mark(meeting, "the ends meet", "star"))
        _name_meeting(figure, meeting, timeline)
    _style_walk(figure, timeline.graph.workload.prompt_tokens)
    return figure


def both_ends_compared(predicted: Timeline, measured: Timeline) -> go.Figure:
    """The measured walk as boxes, and over it how far each end was predicted to have come."""
    figure = both_ends(measured)
    ends = (
        ("predicted compute", "prefill", 0),
        ("predicted loads", "load_kv", request_of(measured.graph).cached_tokens),
    )
    for (name, op, start), front in zip(ends, _fronts(predicted), strict=True):
        if not front:
            continue
        figure.add_trace(
            go.Scatter(
                name=name,
                x=[0.0, *(end_s * 1e3 for end_s, _ in front)],
                y=[start, *(token for _, token in front)],
                mode="lines",
                line={
                    "color": darker(OP_COLOUR[op]),
                    "width": 2,
                    "dash": "dot",
                    "shape": "hv",
                },
                hovertemplate=f"{name}: token %{{y:,}} after %{{x:,.1f}} ms<extra></extra>",
            )
        )
    meeting = Meeting.of(predicted)
    if meeting is not None:
        figure.add_trace(_meeting_mark(meeting, "predicted to meet", "star-open"))
    _mark_end(figure, predicted, "first token, predicted")
    return figure


def _boxes(done: Sequence[tuple[float, float, Task]], makespan_s: float) -> dict[str, _Boxes]:
    """The boxes by operation, neighbours in time merged where there are many."""
    shortest_s = SHORTEST_PART * makespan_s if len(done) > MAX_BOXES else 0.0
    boxes: dict[str, _Boxes] = {}
    groups: dict[str, list[list[tuple[float, float, Task]]]] = {}
    for one in sorted(done, key=lambda one: one[0]):
        queue = groups.setdefault(one[2].op, [])
        if queue and one[1] - queue[-1][0][0] <= shortest_s:
            queue[-1].append(one)
        else:
            queue.append([one])
    for op, queue in groups.items():
        boxes[op] = _Boxes()
        for group in queue:
            _add_box(boxes[op], group)
    return boxes


def _add_box(boxes: _Boxes, group: Sequence[tuple[float, float, Task]]) -> None:
    start_s, end_s = group[0][0], group[-1][1]
    low = min(task.token_start for *_, task in group)
    high = max(task.token_stop for *_, task in group)
    boxes.base_ms.append(start_s * 1e3)
    boxes.length_ms.append((end_s - start_s) * 1e3)
    boxes.middle.append((low + high) / 2)
    boxes.tokens.append(high - low)
    task = group[0][2]
    size = f"{sum(one.bytes for *_, one in group) / 2**20:,.4g} MiB"
    if task.lane == COMPUTE:
        size = f"{sum(one.flops for *_, one in group) / 1e12:,.4g} TFLOP"
    count = "" if len(group) == 1 else f" ({len(group)} tasks)"
    boxes.hover.append(
        f"<b>{task.op}</b>, {task.lane}{count}<br>tokens {low:,} to {high:,}<br>"
        f"{start_s * 1e3:,.1f} to {end_s * 1e3:,.1f} ms, {size}"
    )


def _box_trace(op: str, boxes: _Boxes) -> go.Bar:
    colour = OP_COLOUR[op]
    return go.Bar(
        name=op,
        orientation="h",
        base=boxes.base_ms,
        x=boxes.length_ms,
        y=boxes.middle,
        width=boxes.tokens,
        hovertext=boxes.hover,
        hovertemplate="%{hovertext}<extra></extra>",
        marker={"color": colour, "line": {"color": darker(colour), "width": 0.5}},
    )


def _present(timeline: Timeline) -> Iterable[go.Scatter]:
    """What is on the device at each moment: all below one front and all above the other."""
    end_ms, cached = timeline.makespan_s * 1e3, request_of(timeline.graph).cached_tokens
    fronts = zip(_fronts(timeline), (0, cached), ("prefill", "load_kv"), strict=True)
    for front, start, op in fronts:
        if not front:
            continue
        reached = [(0.0, start), *((end_s * 1e3, token) for end_s, token in front)]
        reached.append((end_ms, front[-1][1]))
        yield go.Scatter(
            x=[0.0, *(time_ms for time_ms, _ in reached), end_ms],
            y=[start, *(token for _, token in reached), start],
            mode="lines",
            line={"width": 0, "shape": "hv"},
            fill="toself",
            fillcolor=OP_COLOUR[op],
            opacity=0.13,
            hoverinfo="skip",
            showlegend=False,
        )


def _meeting_mark(meeting: Meeting, what: str, symbol: str) -> go.Scatter:
    name = f"{what} at token {meeting.token:,}, {ms(meeting.at_s)}"
    return go.Scatter(
        name=name,
        x=[meeting.at_s * 1e3],
        y=[meeting.token],
        mode="markers",
        marker={
            "symbol": symbol,
            "size": 15,
            "color": LATE_COLOUR,
            "line": {"color": LATE_COLOUR if symbol.endswith("open") else "white", "width": 1},
        },
        hovertemplate=f"{name}<extra></extra>",
    )


def _name_meeting(figure: go.Figure, meeting: Meeting, timeline: Timeline) -> None:
    """A label where nothing is drawn: above the loads, or below them where those are high up."""
    high = meeting.token > 0.6 * timeline.graph.workload.prompt_tokens
    figure.add_annotation(
        x=meeting.at_s * 1e3,
        y=meeting.token,
        text=f"meet at token {meeting.token:,}",
        ax=0 if high else -50,
        ay=80 if high else -60,
        arrowcolor=LATE_COLOUR,
        arrowwidth=1.5,
        standoff=9,
    )


def _mark_end(figure: go.Figure, timeline: Timeline, what: str) -> None:
    end_s, top = timeline.makespan_s, timeline.graph.workload.prompt_tokens
    figure.add_trace(vertical_line(end_s * 1e3, 0, top, f"{what}: {ms(end_s)}"))


def _style_walk(figure: go.Figure, prompt_tokens: int) -> None:
    style_curves(figure, "time since the request (ms)", "token of the prompt", WALK_PX)
    figure.update_layout(barmode="overlay")
    figure.update_xaxes(rangemode="tozero")
    figure.update_yaxes(range=[0, prompt_tokens], tickformat=",d")


def ways_of_layers(
    computed: Sequence[int], projected: Sequence[int], request: RestoreRequest
) -> go.Figure:
    """Token by layer: where K and V of each token of the prompt come from in each layer.

    Args:
        computed, projected: first tokens of each layer that are computed, and those next to them
            whose X is loaded; the other cached ones are loaded, and uncached ones computed.
    """
    cached, layers = request.cached_tokens, list(range(len(computed)))
    ends = [a + b for a, b in zip(computed, projected, strict=True)]
    parts = (
        ("computed", [0] * len(layers), list(computed), True),
        ("projected from X", list(computed), list(projected), any(projected)),
        ("loaded", ends, [cached - end for end in ends], True),
        ("computed", [cached] * len(layers), [request.prompt_tokens - cached] * len(layers), False),
    )
    figure = go.Figure()
    for name, base, counts, legend in parts:
        figure.add_trace(
            go.Bar(
                name=name,
                x=layers,
                base=base,
                y=counts,
                legendgroup=name,
                showlegend=legend,
                customdata=[
                    (count, low, low + count) for low, count in zip(base, counts, strict=True)
                ],
                hovertemplate=f"layer %{{x}}: %{{customdata[0]:,}} tokens {name}"
                "<br>%{customdata[1]:,} to %{customdata[2]:,}<extra></extra>",
                marker={"color": LAYER_WAYS[name], "line": {"width": 0}},
            )
        )
    style_curves(figure, "layer", "token of the prompt", 340)
    figure.update_layout(barmode="overlay", bargap=0.08)
    figure.update_xaxes(showgrid=False, tickformat="d")
    figure.update_yaxes(range=[0, request.prompt_tokens], tickformat=",d")
    return figure
