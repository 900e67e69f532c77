"""Figures as phones show them."""

import plotly.graph_objects as go
import pytest

from dashboard.figures import fit_phone, memory_bars
from dashboard.figures.memory import MemoryUse
from dashboard.figures.style import LEGEND_ROW_PX, line, style_curves
from sim.machine.profile import Memory


def curves(*names):
    figure = go.Figure([line(name, [0, 1], [0, 1]) for name in names])
    style_curves(figure, "time since the start of the whole run (ms)", "rate", height=300)
    return figure


@pytest.mark.parametrize(
    ("names", "more_rows"),
    [
        (("only",), 0),
        (("one", "two", "three"), 0),
        (("weights", "KV", "X", "workspace", "reserve"), 2),
        (("a name as long as a sentence", "another", "third"), 2),
    ],
)
def test_a_legend_has_room_above_the_chart_and_no_scrollbar(names, more_rows):
    figure = curves(*names)
    fit_phone(figure)
    assert figure.layout.height == 300 + more_rows * LEGEND_ROW_PX
    assert figure.layout.legend.maxheight >= figure.layout.height, "Plotly's default is half"
    assert figure.layout.dragmode is False


def test_texts_of_axes_break_between_words_but_not_before_a_unit():
    memory = Memory("datasheet", 2**35, 2**40)
    figure = memory_bars({"": (MemoryUse({"KV": 2**33}, {}), memory)})
    fit_phone(figure)
    gib = "\N{NO-BREAK SPACE}GiB"
    assert list(figure.layout.yaxis.ticktext) == [
        f"GPU: 8.0 of<br>32.0{gib}",
        f"host: 0.0 of<br>1,024.0{gib}",
    ]
    wide = curves("one")
    fit_phone(wide)
    assert wide.layout.xaxis.title.text == "time since the start of the whole<br>run (ms)"
