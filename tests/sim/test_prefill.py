"""What a profile says of prefill and tiers: tables read by hand, rates for what has none."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import machine, tiny_model

from sim import HardwareProfile, find_hardware
from sim.cost.restore import RestoreCosts
from sim.graph.jobs import RestoreRequest
from sim.lanes import DISK, NET
from sim.machine.curves import Grid
from sim.machine.prefill import Prefill, PrefillTable, Restore, Tier
from sim.machine.provenance import SourcedValue

GRID = Grid((4.0, 8.0), (1.0, 9.0), ((1.0, 2.0), (3.0, 6.0)))
"""Seconds of 4 and 8 tokens behind none and behind 8."""

MODEL = tiny_model()
REQUEST = RestoreRequest(prompt_tokens=64, cached_tokens=63)


def measured(**changes) -> HardwareProfile:
    """A machine whose attention is sampled for the heads of `tiny_model`, all else at no cost."""
    table = PrefillTable(MODEL.n_heads, MODEL.n_kv_heads, MODEL.head_dim, GRID)
    block = Restore(
        Prefill(SourcedValue("measured", 1.0), SourcedValue("measured", 0.0), tables=(table,))
    )
    return machine(flops_per_s=1e30, memory_bytes_per_s=1e30, restore=replace(block, **changes))


def costs(hardware: HardwareProfile, model=MODEL, request=REQUEST) -> RestoreCosts:
    return RestoreCosts(hardware, model, request)


@pytest.mark.parametrize(
    ("start", "n_tokens", "seconds", "inside"),
    [
        (0, 4, 1.0, True),
        (8, 8, 6.0, True),
        (4, 8, 4.5, True),
        (4, 6, 3.0, True),
        (0, 16, 6.0, False),  # above the table the rate of its last row is held
        (17, 4, 4.0, False),
    ],
)
def test_attention_is_read_from_the_table_of_its_head_shape(start, n_tokens, seconds, inside):
    found = costs(measured()).prefill(start, n_tokens, 1)
    assert found.seconds == pytest.approx(seconds)
    assert found.in_range is inside


def test_every_layer_takes_as_long_and_other_requests_tokens_their_part():
    assert costs(measured()).prefill(8, 4, 2).seconds == pytest.approx(4.0)
    shared = replace(REQUEST, chunk_tokens=8, gpu_share=0.5)
    # as long as a chunk of 8 tokens
    alone = costs(measured()).prefill(8, 8, 1).seconds
    assert costs(measured(), request=shared).prefill(8, 4, 1).seconds == pytest.approx(alone)


def test_other_head_shapes_take_the_rate():
    other = tiny_model(head_dim=2, hidden_size=4)
    flops = 4 * other.q_size * (8 * 4 + 10)
    assert costs(measured(), other).prefill(8, 4, 1).seconds == pytest.approx(flops)


def test_faster_compute_makes_tables_faster_too():
    faster = measured().with_faster("flops", 2.0)
    assert costs(faster).prefill(8, 8, 1).seconds == pytest.approx(3.0)
    assert measured().with_faster("hbm", 2.0).restore == measured().restore


@pytest.mark.parametrize(
    ("lane", "source", "pace"),
    [
        (DISK, "measured", None),
        (DISK, "datasheet", 5.0),
        (NET, "datasheet", 5.0),
        (NET, "measured", 5.0),
    ],
)
def test_only_a_measured_disk_goes_as_fast_as_it_can(lane, source, pace):
    assert Tier(lane, SourcedValue(source, 5.0)).paced_bytes_per_s == pace


def test_a_profile_keeps_its_tables_in_its_file(tmp_path):
    made = measured(tiers=(Tier(DISK, SourcedValue("measured", 1e9), 1e-4),))
    made.save(tmp_path / "machine.json")
    assert HardwareProfile.load(tmp_path / "machine.json") == made


def test_profiles_without_tables_still_price_by_their_rate():
    shipped = find_hardware("a100-80g")
    assert shipped.restore.prefill.tables == ()
