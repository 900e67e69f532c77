"""The bars of a chart of lanes, for tests that look at them."""

import json


def bars_of(chart):
    """Every bar as a mapping, with its texts and row."""
    found = chart.document()
    columns = found["bars"]
    bars = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    for bar in bars:
        bar |= {name: found["words"][bar[name]] for name in ("name", "place", "cause", "estimate")}
        bar["row"] = " ".join(found["rows"][bar["row"]][part] for part in ("lane", "source"))
        bar["kind"] = found["kinds"][bar["kind"]]["name"]
    return bars


def times(chart, kind):
    return [
        [bar[part] for bar in bars_of(chart) if bar["kind"] == kind] for part in ("start", "length")
    ]


def drawn(app):
    """The documents of the charts of lanes on a page of an `AppTest`."""
    found = [one.proto for one in app.get("bidi_component")]
    return [json.loads(one.bytes) for one in found if one.component_name == "kvoverlap_lanes"]
