"""Transfers as sums of copies: blocks, kinds of copies, and CPUs that read the same memory."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.catalog import find_hardware, link_names
from sim.errors import BadInput, NotMeasured
from sim.machine.curves import Curve
from sim.machine.links import COPY_KINDS, CopyKind, Link
from sim.machine.profile import HardwareProfile
from sim.machine.what_if import with_copies, with_rate

MIB = 2**20
LINK = Link("datasheet", 50e9, 4e-6, block_bytes=2 * MIB)


def test_a_transfer_is_the_sum_of_its_blocks_and_a_rest():
    # 5 MiB: two blocks of 2 MiB and one of 1 MiB, each with 4 us.
    assert LINK.copy_s(5 * MIB)[0] == pytest.approx(3 * 4e-6 + 5 * MIB / 50e9)
    assert LINK.copy_s(4 * MIB)[0] == pytest.approx(2 * 4e-6 + 4 * MIB / 50e9)
    assert LINK.copy_s(1000)[0] == pytest.approx(4e-6 + 1000 / 50e9)


def test_blocks_of_a_measured_curve_are_read_from_the_curve():
    curve = Curve((float(MIB), 4.0 * MIB), (30e-6, 90e-6))
    link = Link("measured", 50e9, curve=curve, block_bytes=4 * MIB)
    assert link.copy_s(9 * MIB) == (pytest.approx(2 * 90e-6 + 30e-6), True)
    assert link.copy_s(4.5 * MIB)[1] is False  # the rest is smaller than any sample


@given(
    n_bytes=st.integers(1, 10**10),
    small=st.integers(4096, 10**8),
    times=st.integers(1, 64),
    rate=st.floats(1e9, 1e12),
    latency=st.floats(0, 1e-4),
)
def test_larger_blocks_never_slow_a_load(n_bytes, small, times, rate, latency):
    def seconds(block: int) -> float:
        return Link("datasheet", rate, latency, block_bytes=block).copy_s(n_bytes)[0]

    assert seconds(small * times) <= seconds(small) * (1 + 1e-9)
    assert seconds(small) == pytest.approx(ceil(n_bytes / small) * latency + n_bytes / rate)


def test_other_kinds_of_copies_have_constants_of_their_own():
    kernel = CopyKind("kernel", "fitted", 40e9, 1e-6, both_ways_rate=0.7)
    link = Link("measured", 50e9, 4e-6, kinds=(kernel,))
    assert link.of_kind("kernel").copy_s(40_000)[0] == pytest.approx(2e-6)
    assert link.faster(2.0).of_kind("kernel").copy_s(40_000)[0] == pytest.approx(1.5e-6)
    with pytest.raises(NotMeasured, match=r"no figures of pageable copies .* has: kernel"):
        link.of_kind("pageable")
    with pytest.raises(BadInput, match=r"link.kinds.far.latency_s\(=-1.0\)"):
        CopyKind("far", "fitted", 40e9, -1.0)


def test_the_h100_link_has_the_published_rates_at_sizes_that_gave_no_constant():
    machine = find_hardware("h100-sxm+pcie5-x16")
    for lane, size, published in (("h2d", 1, 44.35e9), ("h2d", 4, 49.77e9), ("d2h", 4, 48.6e9)):
        seconds, _ = machine.links.of(lane).copy_s(size * MIB)
        assert size * MIB / seconds == pytest.approx(published, rel=0.02)


def test_kernel_copies_bring_their_own_pace_of_both_directions():
    machine = find_hardware("h100-sxm+pcie5-x16")
    kernel = with_copies(machine, "kernel")
    assert {one.rate for one in machine.interference} == {0.878}
    assert {one.rate for one in kernel.interference} == {0.72}
    pageable = with_copies(machine, "pageable")
    assert {one.rate for one in pageable.interference} == {0.878}
    assert pageable.links.h2d.copy_s(20.66e6)[0] == pytest.approx(1e-3)


def test_copies_get_what_cpu_readers_leave_of_host_memory():
    machine = find_hardware("rtx-5090+pcie5-x16-workstation")
    rates = [with_rate(machine, "host.reads", reads).links.h2d.bytes_per_s for reads in (1e9, 80e9)]
    assert rates == [machine.links.h2d.bytes_per_s, pytest.approx(32e9)]
    with pytest.raises(BadInput, match=r"host.reads\(=112GB/s\) must be below the 112 GB/s"):
        with_rate(machine, "host.reads", 112e9)
    with pytest.raises(NotMeasured, match="rate of host memory of h100-sxm"):
        with_rate(find_hardware("h100-sxm"), "host.reads", 1e9)


def test_memory_of_the_other_numa_node_is_slower_and_shipped_kinds_are_known():
    near = find_hardware("gb200+nvlink-c2c")
    far = with_copies(near, "far")
    assert far.links.d2h.bytes_per_s == 115e9 < near.links.d2h.bytes_per_s
    for name in link_names():
        links = find_hardware(f"h100-sxm+{name}").links
        assert {one.kind for one in links.h2d.kinds} <= set(COPY_KINDS)
        assert [one.kind for one in links.h2d.kinds] == [one.kind for one in links.d2h.kinds]


def test_a_profile_file_names_kinds_and_blocks_only_where_it_has_them():
    plain = find_hardware("kvpr-a100").to_dict()["links"]["h2d"]
    assert "kinds" not in plain
    assert "block_bytes" not in plain
    machine = find_hardware("h100-sxm+pcie5-x16")
    assert HardwareProfile.from_dict(machine.to_dict(), "copy").links == machine.links
