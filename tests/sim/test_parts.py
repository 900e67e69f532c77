"""Machines put together of a device and a host."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import replace

import pytest
from builders import examples, machine, tiny_model
from hypothesis import given
from hypothesis import strategies as st

from sim.catalog import (
    DATA,
    compute_names,
    find_compute,
    find_hardware,
    find_link,
    is_shipped,
    link_names,
)
from sim.cost.model import CostModel
from sim.cost.restore import RestoreCosts
from sim.errors import BadFile, BadInput, KvOverlapError, UnknownName
from sim.graph.jobs import RestoreRequest, Workload
from sim.machine.components import ComputePart, LinkPart, compose, split_name
from sim.machine.curves import Curve, RaggedGrid
from sim.machine.links import Interference
from sim.machine.prefill import Prefill, QueryHeads, Tier
from sim.machine.profile import HardwareProfile, KvHeads
from sim.machine.provenance import SourcedValue, TableErrors
from sim.machine.utilisation import UtilisationTable
from sim.model.kernels import MatMul

BASE = machine()
FAN = RaggedGrid((1.0, 8.0), (Curve((16.0, 64.0), (1e-5, 2e-5)), Curve((16.0,), (3e-5,))))
TABLE = UtilisationTable(16, 1e12, 1e9, 0.0, (1, 10), (100,), (100,), ("5000 9000",))
DEVICE = ComputePart(
    name="chip",
    description="a chip",
    dtype="float16",
    usual_link="wire",
    memory_bytes=SourcedValue("datasheet", 8e9),
    gemm=replace(BASE.gemm, source="measured", utilisation=(TABLE,)),
    attention=replace(BASE.attention, heads=(KvHeads(128, FAN),)),
    elementwise=BASE.elementwise,
    prefill=Prefill(
        SourcedValue("measured", 1e12),
        SourcedValue("datasheet", 0.0),
        heads=(QueryHeads(128, 1, FAN),),
    ),
    environment={"device": "a chip"},
    checks=(TableErrors("gemm", 3, 0.01, 0.02, 0.03, "here", -0.03),),
)
HOST = LinkPart(
    name="wire",
    description="a wire",
    host_memory_bytes=SourcedValue("fitted", 64e9),
    links=BASE.links,
    dispatch=BASE.dispatch,
    interference=(Interference("h2d", "d2h", 0.5, "fitted"),),
    tiers=(Tier("disk", SourcedValue("datasheet", 7e9)),),
)


def test_a_composed_machine_has_every_figure_of_its_parts():
    made = compose(DEVICE, HOST)
    assert (made.name, made.description) == ("chip+wire", "a chip; a wire")
    assert (made.memory.device_bytes, made.memory.host_bytes) == (8e9, 64e9)
    assert made.memory.source == "datasheet"
    assert (made.gemm, made.attention) == (DEVICE.gemm, DEVICE.attention)
    assert (made.links, made.interference) == (HOST.links, HOST.interference)
    assert made.restore is not None
    assert made.restore.prefill == DEVICE.prefill
    assert made.restore.tier("disk").bytes_per_s.value == 7e9
    assert made.checks == DEVICE.checks


def test_a_device_comes_back_from_disk_unchanged(tmp_path):
    DEVICE.save(tmp_path / "chip.json")
    found = ComputePart.load(tmp_path / "chip.json")
    assert found == DEVICE
    assert found.checks == DEVICE.checks


def test_a_composed_machine_comes_back_from_disk_and_keeps_its_checks(tmp_path):
    made = compose(DEVICE, HOST)
    made.save(tmp_path / "both.json")
    found = HardwareProfile.load(tmp_path / "both.json")
    assert found == made
    assert found.checks == DEVICE.checks
    assert "checks" not in made.to_dict()


def test_parts_are_found_by_path(tmp_path):
    DEVICE.save(tmp_path / "chip.json")
    found = find_hardware(f"{tmp_path}/chip.json+pcie5-x16")
    assert found.name == "chip+pcie5-x16"
    assert found.gemm == DEVICE.gemm


@pytest.mark.parametrize("device", sorted({*compute_names()} - {"dgx-spark"}))
@pytest.mark.parametrize("link", link_names())
def test_every_shipped_device_goes_with_every_shipped_link(device, link):
    made = find_hardware(f"{device.upper()}+{link}")
    assert made.name == f"{device}+{link}"
    assert is_shipped(made.name)
    assert made.links == find_link(link).links
    assert find_compute(device).usual_link in link_names()


def test_the_devices_that_were_asked_for_are_shipped():
    wanted = {"a100-sxm-40g", "a100-sxm-80g", "h100-sxm", "h200", "l40s", "b200", "gb200"}
    assert {*wanted, "rtx-pro-6000"} <= set(compute_names())
    assert {"pcie4-x16", "pcie5-x16", "pcie6-x16", "nvlink-c2c"} <= set(link_names())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h100-sxm+", r"must be COMPUTE\+LINK"),
        ("+pcie5-x16", r"must be COMPUTE\+LINK"),
        ("h10-sxm+pcie5-x16", "device 'h10-sxm' is unknown; did you mean 'h100-sxm'"),
        ("h100-sxm+pcie5-x17", "link 'pcie5-x17' is unknown; did you mean 'pcie5-x16'"),
        ("h100-sx", r"hardware 'h100-sx' is unknown"),
    ],
)
def test_a_name_that_is_no_machine_is_told_what_it_lacks(name, message):
    with pytest.raises(BadInput, match=message):
        find_hardware(name)


def test_a_name_is_split_at_its_last_join():
    assert split_name("./a+b.json+wire") == ("./a+b.json", "wire")
    assert not is_shipped("h100-sxm+nothing")


def test_a_whole_machine_is_no_part(tmp_path):
    BASE.save(tmp_path / "whole.json")
    with pytest.raises(BadFile, match="holds 'hardware-profile', not a kvoverlap 'compute-part'"):
        find_compute(str(tmp_path / "whole.json"))
    with pytest.raises(BadFile, match="not a kvoverlap 'link-part'"):
        find_link(str(tmp_path / "whole.json"))
    with pytest.raises(UnknownName, match="A path to such a file works too"):
        find_link("nowhere")


@pytest.mark.parametrize("key", ["gemm", "memory_bytes", "usual_link"])
def test_a_key_that_is_missing_or_unknown_is_named(tmp_path, key):
    DEVICE.save(tmp_path / "chip.json")
    content = json.loads((tmp_path / "chip.json").read_text())
    content[f"{key}x"] = content.pop(key)
    (tmp_path / "chip.json").write_text(json.dumps(content))
    with pytest.raises(BadFile, match=key):
        ComputePart.load(tmp_path / "chip.json")


WRONG = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**400),
    st.floats(),
    st.text(max_size=6),
    st.lists(st.integers(-3, 3), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def places(content, path=()):
    """The path of every value of a document, whole blocks too."""
    yield path
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """A file of either kind of part, and where a changed one is written."""
    folder = tmp_path_factory.mktemp("parts")
    DEVICE.save(folder / "chip.json")
    shutil.copy(DATA / "hardware/links/pcie5-x16-shared.json", folder / "wire.json")
    return folder


@pytest.mark.parametrize("name", ["chip", "wire"])
@examples(100)
@given(st.data())
def test_a_part_with_anything_wrong_in_it_is_told_without_a_traceback(name, documents, data):
    content = json.loads((documents / f"{name}.json").read_text())
    *parents, last = data.draw(st.sampled_from([one for one in places(content) if one]))
    block = content
    for key in parents:
        block = block[key]
    block[last] = data.draw(WRONG)
    changed = documents / "changed.json"
    changed.write_text(json.dumps(content))
    other = {"chip": "pcie5-x16", "wire": "h100-sxm"}[name]
    with suppress(KvOverlapError):
        made = find_hardware(f"{changed}+{other}" if name == "chip" else f"{other}+{changed}")
        costs = CostModel(made, tiny_model(), Workload(2, 64, 1))
        costs.operations.compute("attention", 1, 64)
        costs.operations.matmul(MatMul(3, 200, 50))
        costs.operations.copy("h2d", 4096)
        request = RestoreRequest(prompt_tokens=64, cached_tokens=60)
        RestoreCosts(made, tiny_model(), request).prefill(0, 16, 1)
