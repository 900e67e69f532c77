"""When bytes have passed a link whose pace changes, by hand and by adding up."""

from __future__ import annotations

import pytest
from builders import examples
from hypothesis import given
from hypothesis import strategies as st

from hw.backends.pacing import Pace
from sim.lanes import H2D
from sim.machine.availability import Availability, Step


def pace(*steps: tuple[float, float]) -> Pace:
    """Ten bytes a second, from each time on a fraction of it."""
    trace = Availability(tuple(Step(at, ((H2D, part),)) for at, part in steps))
    return Pace(H2D, 10.0, lambda: 0.0, trace)


@pytest.mark.parametrize(
    ("steps", "begun_s", "n_bytes", "due_s"),
    [
        ((), 3.0, 20, 5.0),
        (((1.0, 0.5),), 0.0, 20, 3.0),  # 10 bytes by second 1, then 5 a second
        (((1.0, 0.5),), 2.0, 20, 6.0),
        (((1.0, 0.0), (4.0, 1.0)), 0.0, 20, 5.0),  # nothing from second 1 to 4
        (((1.0, 0.0), (4.0, 2.0)), 2.0, 20, 5.0),
        (((1.0, 0.5),), 0.0, 0, 0.0),
    ],
)
def test_bytes_are_due_when_the_drawing_says(steps, begun_s, n_bytes, due_s):
    assert pace(*steps).due_s(begun_s, n_bytes) == pytest.approx(due_s)


@examples(60)
@given(
    parts=st.lists(st.floats(0.1, 2.0), min_size=1, max_size=5),
    begun_s=st.floats(0, 5),
    one=st.integers(1, 50),
    other=st.integers(1, 50),
)
def test_two_transfers_in_a_row_take_as_long_as_one(parts, begun_s, one, other):
    link = pace(*((float(at), part) for at, part in enumerate(parts)))
    in_a_row = link.due_s(link.due_s(begun_s, one), other)
    assert in_a_row == pytest.approx(link.due_s(begun_s, one + other))
