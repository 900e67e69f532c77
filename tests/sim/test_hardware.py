"""Profiles on disk, the rules their numbers obey, and what-if machines."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from builders import dispatch, machine, make_plan, slowed, task, tiny_model

from planner import DecodePlan
from sim import Recording, simulate
from sim.cost.model import CostModel
from sim.errors import BadFile, BadInput
from sim.graph.jobs import Workload
from sim.lanes import D2H, H2D, HOST
from sim.machine.curves import Curve, Grid, RaggedGrid
from sim.machine.links import Interference, Link, Uplink
from sim.machine.profile import (
    Attention,
    AttentionTable,
    Elementwise,
    Gemm,
    GemmTable,
    HardwareProfile,
    KvHeads,
    Memory,
)
from sim.machine.provenance import Samples, weakest
from sim.machine.utilisation import UtilisationTable


def measured_machine():
    """Every kind of table and curve, on which each what-if has to act."""
    curve = Curve((1.0, 1e6), (1.0, 100.0))
    grid = Grid((1.0, 8.0), (1.0, 1e4), ((1.0, 2.0), (3.0, 4.0)))
    on_host = Link("measured", 1e9, curve=curve)
    base = machine(
        h2d=Link("measured", 1e8, curve=curve), d2h=Link("fitted", 1e8, 0.5), host=on_host
    )
    return replace(
        base,
        gemm=Gemm("measured", 1e9, 1e9, (GemmTable(24, 8, curve),)),
        attention=Attention("measured", 1e9, (AttentionTable(2, 2, 4, grid),)),
        elementwise=Elementwise("measured", 1e9, curve),
        interference=(slowed(H2D, D2H, 0.8),),
        uplinks=(Uplink("switch", (0, 1), 1e9, 1e9),),
        dispatch=dispatch(task_s=1e-6, kernel_s=2e-6, copy_s=3e-6, gap_s=1e-6, handover_s=1e-6),
        environment={"gpu": "none", "runs": 3},
    )


@pytest.mark.parametrize("profile", [machine(host=None), measured_machine()])
@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_a_profile_comes_back_from_disk_unchanged(tmp_path, profile, name):
    profile.save(tmp_path / name)
    assert HardwareProfile.load(tmp_path / name) == profile


SAMPLES = (
    Samples(("gemm", 24, 8, 1), (1.0, 1.25, 0.75)),
    Samples(("pace", H2D, D2H), (0.8,)),
    Samples(("gap",), (0.0, 1e-6)),
)


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_a_profile_file_holds_samples_where_they_were_kept(tmp_path, name):
    replace(machine(), samples=SAMPLES).save(tmp_path / name)
    found = HardwareProfile.load(tmp_path / name)
    assert found.samples == SAMPLES
    assert found == machine(), "what they are the medians of tells profiles apart"


def test_plans_and_recordings_hold_the_profile_without_its_samples(tmp_path):
    plain = machine()
    kept = replace(plain, samples=SAMPLES)
    files = {}
    for name, hardware in (("plain", plain), ("kept", kept)):
        plan = make_plan(tiny_model(), hardware, Workload(1, 8, 1), "load-all")
        plan.save(tmp_path / f"{name}-plan.json")
        runs = (simulate(plan.lower(), hardware),)
        Recording("measured", hardware, runs).save(tmp_path / f"{name}-run.json")
        hardware.save(tmp_path / f"{name}-profile.json")
        files[name] = [(tmp_path / f"{name}-{kind}.json").read_bytes() for kind in ("plan", "run")]
        assert DecodePlan.load(tmp_path / f"{name}-plan.json") == plan
    assert files["kept"] == files["plain"]
    assert "samples" in json.loads((tmp_path / "kept-profile.json").read_text())
    assert "samples" not in json.loads((tmp_path / "plain-profile.json").read_text())


def test_samples_are_kept_with_four_digits():
    assert Samples.rounded(("gap",), [1.23456e-5, 0.0, 98766]).values == (1.235e-5, 0.0, 98770.0)


@pytest.mark.parametrize("values", [(), (1.0, float("nan")), (float("inf"),)])
def test_samples_are_finite_and_at_least_one(values):
    with pytest.raises(BadInput, match=r"samples of \('gap',\)"):
        Samples(("gap",), values)


@pytest.mark.parametrize("point", [(), ("link", H2D, 0), ("link", H2D, -5), ("gemm", 10**400)])
def test_samples_are_of_a_named_point_of_positive_size(point):
    with pytest.raises(BadInput, match="names and positive sizes"):
        Samples(point, (1.0,))


@pytest.mark.parametrize(
    ("part", "kept"), [("flops", ()), ("hbm", ()), ("link", ()), ("uplink", SAMPLES)]
)
def test_a_machine_with_other_times_than_the_sampled_ones_has_no_samples(part, kept):
    assert replace(measured_machine(), samples=SAMPLES).with_faster(part, 2.0).samples == kept


def edited(tmp_path, change):
    path = tmp_path / "edited.json"
    measured_machine().save(path)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    ("where", "key"),
    [((), "colour"), (("links", "h2d"), "speed"), (("gemm", "tables", 0), "m"), (("memory",), "x")],
)
def test_an_unknown_key_is_named(tmp_path, where, key):
    def change(document):
        for part in where:
            document = document[part]
        document[key] = 1

    with pytest.raises(BadFile, match=rf"edited\.json: key '.*{key}' is unknown"):
        HardwareProfile.load(edited(tmp_path, change))


def test_uplinks_of_one_name_are_refused():
    same = (Uplink("switch", (0,), 1.0, 1.0), Uplink("switch", (1,), 1.0, 1.0))
    with pytest.raises(BadInput, match=r"uplinks\(=switch, switch\)"):
        machine(uplinks=same)


@pytest.mark.parametrize("key", ["gemm", "attention", "elementwise", "links", "memory", "dispatch"])
def test_an_absent_block_is_named(tmp_path, key):
    with pytest.raises(BadFile, match=rf"edited\.json: key '{key}' is missing"):
        HardwareProfile.load(edited(tmp_path, lambda document: document.pop(key)))


@pytest.mark.parametrize(
    ("block", "values", "reason"),
    [
        ("gemm", {"flops_per_s": -1}, "gemm.flops_per_s"),
        ("gemm", {"source": "guessed"}, "source"),
        ("attention", {"bytes_per_s": 0}, "attention.bytes_per_s"),
        ("memory", {"device_bytes": "much"}, "device_bytes"),
        ("dispatch", {"gap_s": -1e-6}, "dispatch.gap_s"),
        ("elementwise", {"curve": {"work": [1], "seconds": []}}, "seconds must hold 1"),
    ],
)
def test_a_bad_value_in_a_file_is_a_bad_file(tmp_path, block, values, reason):
    path = edited(tmp_path, lambda document: document[block].update(values))
    with pytest.raises(BadFile, match=r"edited\.json") as failure:
        HardwareProfile.load(path)
    assert reason in str(failure.value)


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize(
    "make",
    [
        lambda value: Gemm("datasheet", value),
        lambda value: Gemm("datasheet", 1.0, value),
        lambda value: Attention("datasheet", value),
        lambda value: Elementwise("datasheet", value),
        lambda value: Link("datasheet", value),
        lambda value: Link("datasheet", 1.0, paced_bytes_per_s=value),
        lambda value: Memory("datasheet", value, 1.0),
        lambda value: Memory("datasheet", 1.0, value),
        lambda value: Uplink("switch", (0,), value, 1.0),
        lambda value: Uplink("switch", (0,), 1.0, value),
    ],
)
def test_every_rate_and_size_is_positive_and_finite(make, value):
    with pytest.raises(BadInput, match="must be > 0 and finite"):
        make(value)


@pytest.mark.parametrize("rate", [0.0, -0.5, 1.01, float("nan")])
def test_interference_slows_and_never_stops_or_speeds_up(rate):
    with pytest.raises(BadInput, match=r"interference.rate\(=.*\) must be in \(0, 1\]"):
        slowed(H2D, D2H, rate)
    assert slowed(H2D, D2H, 1.0).rate == 1.0


@pytest.mark.parametrize(("lane", "while_busy"), [("h2dd", D2H), (H2D, "disk"), ("", "")])
def test_interference_names_lanes_that_exist(lane, while_busy):
    with pytest.raises(BadInput, match="lane"):
        Interference(lane, while_busy, 0.5, "datasheet")


@pytest.mark.parametrize("name", ["task_s", "kernel_s", "copy_s", "gap_s", "handover_s"])
@pytest.mark.parametrize("value", [-1e-9, 1.0, float("nan")])
def test_dispatch_costs_are_below_a_second_and_not_negative(name, value):
    with pytest.raises(BadInput, match=rf"dispatch.{name}"):
        dispatch(**{name: value})


def test_a_latency_is_not_negative():
    with pytest.raises(BadInput, match="latency_s"):
        Link("datasheet", 1.0, latency_s=-1.0)


def test_an_unknown_element_type_is_refused():
    with pytest.raises(BadInput, match=r"dtype\(='int3'\)"):
        machine(dtype="int3")


def test_a_sum_is_as_strong_as_its_weakest_source():
    assert weakest("measured", "fitted", "measured") == "fitted"
    assert weakest("fitted", "datasheet") == "datasheet"
    assert weakest("measured") == "measured"
    assert measured_machine().source == "fitted"
    assert machine().source == "datasheet"


COMPUTE_OPS = ("embed", "qkv", "recompute", "attention", "mlp", "head")


def prices(hardware, model):
    costs = CostModel(hardware, model, Workload(4, 64, 1))
    found = {op: costs.operations.compute(op, 3, 64).seconds for op in COMPUTE_OPS}
    for lane in (H2D, D2H, HOST):
        for n_bytes in (10, 5000, 10**7):
            found[lane, n_bytes] = costs.estimate(task("a", lane, n_bytes)).seconds
    return found


@pytest.mark.parametrize("profile", [machine(), measured_machine()], ids=["rates", "tables"])
@pytest.mark.parametrize(
    ("part", "faster"),
    [
        ("compute", COMPUTE_OPS),
        ("h2d", (H2D,)),
        ("d2h", (D2H,)),
        ("link", (H2D, D2H)),
        ("host", (HOST,)),
    ],
)
def test_a_faster_part_divides_its_own_times_and_no_others(profile, part, faster):
    before, after = (prices(one, tiny_model()) for one in (profile, profile.with_faster(part, 4.0)))
    for key, seconds in before.items():
        lane = key[0] if isinstance(key, tuple) else None
        if (lane or key) not in faster:
            assert after[key] == seconds, key
            continue
        # More bandwidth does not shorten a link's latency, which its smallest copy shows.
        start, scale = 0.0, 1.0
        if lane:
            link = getattr(profile.links, lane)
            start = min(link.curve.seconds) if link.curve else link.latency_s
            scale = max(1.0, key[1] / link.curve.work[-1]) if link.curve else 1.0
        expected = (start + (seconds / scale - start) / 4.0) * scale
        assert after[key] == pytest.approx(expected, rel=1e-12), key


def test_a_what_if_can_be_taken_back():
    profile = machine()
    for part in ("compute", "link"):
        assert profile.with_faster(part, 2.0).with_faster(part, 0.5) == profile


def test_a_paced_link_is_paced_faster_too():
    link = Link("measured", 1.0, paced_bytes_per_s=8.0)
    assert machine(h2d=link).with_faster("h2d", 2.0).links.h2d.paced_bytes_per_s == 16.0


@pytest.mark.parametrize(("part", "factor"), [("disk", 2.0), ("h2d", 0.0), ("h2d", -1.0)])
def test_an_impossible_what_if_is_refused(part, factor):
    with pytest.raises(BadInput, match=part):
        machine().with_faster(part, factor)


def test_a_faster_device_keeps_its_utilisation_and_reads_kv_faster():
    table = UtilisationTable(16, 1e9, 1e9, 0.0, (1, 1024), (64,), (64,), ("5000 5000",))
    fan = RaggedGrid((1.0, 64.0), (Curve((64.0, 128.0), (1.0, 2.0)),) * 2)
    base = measured_machine()
    profile = replace(
        base,
        gemm=replace(base.gemm, tables=(), utilisation=(table,)),
        attention=replace(base.attention, tables=(), heads=(KvHeads(4, fan),)),
    )
    flops, hbm = (profile.with_faster(part, 4.0) for part in ("flops", "hbm"))
    assert flops.gemm.utilisation[0] == replace(table, flops_per_s=4e9)
    assert hbm.gemm.utilisation[0] == replace(table, bytes_per_s=4e9)
    assert flops.attention.heads == profile.attention.heads
    assert hbm.attention.heads[0].fan.at(1, 64)[0] == 0.25
    both = profile.with_faster("compute", 4.0)
    assert both.with_faster("compute", 0.25) == profile
