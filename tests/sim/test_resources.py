"""Max-min fair shares, by hand and by their definition."""

from __future__ import annotations

import pytest
from builders import examples
from hypothesis import given
from hypothesis import strategies as st

from sim.engine.sharing import max_min_share


@pytest.mark.parametrize(
    ("demands", "paths", "capacity", "rates"),
    [
        ([4, 4], [["u"], ["u"]], {"u": 6}, [3, 3]),
        ([1, 9], [["u"], ["u"]], {"u": 6}, [1, 5]),
        ([1, 2], [["u"], ["u"]], {"u": 6}, [1, 2]),
        ([5, 7], [[], []], {"u": 1}, [5, 7]),
        ([9, 9, 9], [["u"], ["u", "v"], ["v"]], {"u": 10, "v": 4}, [8, 2, 2]),
        ([9, 9], [["u"], ["v"]], {"u": 3, "v": 4}, [3, 4]),
        ([], [], {"u": 3}, []),
    ],
)
def test_shares_by_hand(demands, paths, capacity, rates):
    assert max_min_share(demands, paths, capacity) == rates


LINKS = ("u", "v", "w")


@st.composite
def networks(draw):
    amount = st.floats(0.01, 100.0)
    capacity = {link: draw(amount) for link in LINKS}
    count = draw(st.integers(1, 7))
    paths = [draw(st.lists(st.sampled_from(LINKS), unique=True)) for _ in range(count)]
    return [draw(amount) for _ in range(count)], paths, capacity


@given(networks())
@examples(300)
def test_no_link_carries_more_than_its_capacity_and_no_flow_more_than_it_asks(network):
    demands, paths, capacity = network
    rates = max_min_share(demands, paths, capacity)
    assert all(0 < rate <= demand for rate, demand in zip(rates, demands, strict=True))
    for link, most in capacity.items():
        carried = sum(rate for rate, path in zip(rates, paths, strict=True) if link in path)
        assert carried <= most * (1 + 1e-9)


@given(networks())
@examples(300)
def test_a_flow_short_of_its_demand_is_the_largest_on_some_full_link(network):
    demands, paths, capacity = network
    rates = max_min_share(demands, paths, capacity)

    def holds_back(link, flow):
        on_link = [rate for rate, path in zip(rates, paths, strict=True) if link in path]
        full = sum(on_link) >= capacity[link] * (1 - 1e-9)
        return full and rates[flow] >= max(on_link) * (1 - 1e-9)

    for flow, (rate, demand) in enumerate(zip(rates, demands, strict=True)):
        if rate < demand:
            assert any(holds_back(link, flow) for link in paths[flow])


@given(networks(), st.randoms(use_true_random=False))
@examples(100)
def test_shares_do_not_depend_on_the_order_of_the_flows(network, random):
    demands, paths, capacity = network
    order = list(range(len(demands)))
    random.shuffle(order)
    rates = max_min_share(demands, paths, capacity)
    mixed = max_min_share([demands[i] for i in order], [paths[i] for i in order], capacity)
    assert mixed == pytest.approx([rates[i] for i in order], rel=1e-9)
