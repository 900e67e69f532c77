"""The bars of a chart of lanes, for tests that look at them."""

import json
from array import array


def bars_of(chart):
    """Every bar as a mapping, with its texts and row, and milliseconds to a billionth."""
    numbers = {name: [round(one, 9) for one in column] for name, column in chart.numbers.items()}
    columns = {**numbers, **chart.positions}
    found = chart.document()
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
    return [decoded(one.bytes) for one in found if one.component_name == "kvoverlap_lanes"]


def decoded(encoded):
    """The document of a chart with the columns of its bars, as the browser reads them."""
    stop = 8 + int.from_bytes(encoded[:8], "little")
    found = json.loads(encoded[8:stop])
    found["bars"] = {}
    for names, code in ((found["numbers"], "d"), (found["positions"], "i")):
        for name in names:
            column = array(code)
            start, stop = stop, stop + column.itemsize * found["count"]
            column.frombytes(encoded[start:stop])
            found["bars"][name] = column.tolist()
    return found
