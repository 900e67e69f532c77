"""Bytes of a job by purpose, counted by hand."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from builders import decode_graph, examples, models, splits, tiny_model, workloads
from hypothesis import given
from hypothesis import strategies as st

from planner.decode.lower import lower
from sim.errors import BadInput, DoesNotFit
from sim.graph.memory import check_fits, footprint
from sim.machine.profile import Memory

# 2 layers, batch 2, 8 + 2 tokens, 3 of them recomputed; 32 bytes of K and V and 16 of X a token.
GRAPH = decode_graph(recomputed=3)


def test_a_footprint_by_hand():
    need = footprint(GRAPH)
    assert need.weight_bytes == GRAPH.model.weight_bytes
    assert need.kv_slot_bytes == 2 * 2 * 10 * 32
    assert need.x_slot_bytes == 2 * 2 * (3 + 1) * 16
    # widest matrix output 32 and four hidden vectors of 8, then 64 logits of 4 bytes, per sequence
    assert need.workspace_bytes == 2 * ((32 + 4 * 8) * 2 + 4 * 64)
    # the 3 are recomputed in both steps: no K and V of theirs is ever loaded, no X of the others
    assert need.host_kv_bytes == 2 * 2 * (10 - 3) * 32
    assert need.host_x_bytes == 2 * 2 * 3 * 16


def test_the_sums_are_those_of_the_parts():
    need = footprint(GRAPH)
    device = (need.weight_bytes, need.kv_slot_bytes, need.x_slot_bytes, need.workspace_bytes)
    assert need.device_bytes == sum(device)
    assert need.host_bytes == need.host_kv_bytes + need.host_x_bytes


def test_a_job_that_loads_everything_needs_x_only_for_the_new_token():
    assert footprint(decode_graph(recomputed=0)).x_slot_bytes == 2 * 2 * 16


def test_one_layer_takes_one_slot():
    assert footprint(decode_graph(model=tiny_model(n_layers=1))).kv_slot_bytes == 2 * 10 * 32


@given(models(4), workloads(), st.data())
@examples(40)
def test_no_load_is_larger_than_the_slot_it_goes_into(model, job, data):
    graph = lower("row", model, job, data.draw(splits(model, job)))
    need = footprint(graph)
    for op, room in (("load_kv", need.kv_slot_bytes), ("load_x", need.x_slot_bytes)):
        largest = max((one.bytes for one in graph.tasks if one.op == op), default=0)
        assert largest <= room / graph.slots


@given(models(4), workloads(), st.data())
@examples(20)
def test_a_larger_batch_never_needs_less(model, job, data):
    split = data.draw(splits(model, job))
    small = footprint(lower("row", model, job, split))
    large = footprint(lower("row", model, replace(job, batch_size=2 * job.batch_size), split))
    assert large.device_bytes > small.device_bytes
    assert large.host_bytes == 2 * small.host_bytes


def test_memory_that_just_suffices_is_enough():
    need = footprint(GRAPH)
    assert check_fits(GRAPH, need.device_bytes, need.host_bytes, "here") == need
    with pytest.raises(DoesNotFit, match=r"tiny needs .* of device memory .* and here has"):
        check_fits(GRAPH, need.device_bytes - 1, need.host_bytes, "here")
    with pytest.raises(DoesNotFit, match=r"host memory .* and here has .*; lower --batch to 1,"):
        check_fits(GRAPH, need.device_bytes, need.host_bytes - 1, "here")


@given(st.integers(2, 64), st.floats(0.1, 0.99), st.booleans())
@examples(30)
def test_the_batch_it_names_is_the_largest_that_fits(batch, part, on_device):
    graph = decode_graph(batch_size=batch, prompt_tokens=500)
    need = footprint(graph)
    device, host = float(need.device_bytes), float(need.host_bytes)
    if on_device:
        device = need.weight_bytes + part * (need.device_bytes - need.weight_bytes)
    else:
        host *= part
    with pytest.raises(DoesNotFit) as refused:
        check_fits(graph, device, host, "here")
    named = re.search(r"lower --batch to (\d+)", str(refused.value))
    most = int(named[1]) if named else 0
    if most:
        check_fits(decode_graph(batch_size=most, prompt_tokens=500), device, host, "here")
    with pytest.raises(DoesNotFit):
        check_fits(decode_graph(batch_size=most + 1, prompt_tokens=500), device, host, "here")


def test_weights_that_do_not_fit_are_blamed():
    with pytest.raises(DoesNotFit, match=r"weights take .*; choose .*--schedule column"):
        check_fits(decode_graph(), 1, 1e9, "here")
    model = tiny_model(rotary=True)
    with pytest.raises(DoesNotFit, match=r"weights take .* \(2 GPUs hold them: --tp 2\)"):
        check_fits(decode_graph(model=model), 0.7 * model.weight_bytes, 1e9, "here")
    with pytest.raises(DoesNotFit, match=r"these GPUs of here: .* on each of 2 GPUs"):
        check_fits(decode_graph(model=model.shard(2)), 1, 1e9, "here")


def test_a_reserve_is_no_jobs():
    need = footprint(GRAPH)
    check_fits(GRAPH, need.device_bytes + 64, need.host_bytes, "here", reserve_bytes=64)
    with pytest.raises(DoesNotFit, match=r"here has .* for it after a reserve of 0\.0 GiB;"):
        check_fits(GRAPH, need.device_bytes + 63, need.host_bytes, "here", reserve_bytes=64)
    with pytest.raises(BadInput, match=r"device_reserve_bytes\(=9\) must be .* below .*\(=9\)"):
        Memory("datasheet", 9.0, 9.0, 9.0)
