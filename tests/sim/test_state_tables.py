"""Updates of the states of linear attention take the times that were measured of them."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import pytest
from builders import machine

from sim.catalog import find_hardware, find_model
from sim.cost.model import CostModel
from sim.cost.restore import RestoreCosts
from sim.graph.jobs import RestoreRequest, Workload
from sim.machine.curves import Curve
from sim.machine.states import StateTable
from sim.model.compressed import LinearState
from sim.model.kernels import StateUpdate
from sim.model.operations import kernels

pq = pytest.importorskip("pyarrow.parquet")

GATED = LinearState("gated delta", 16, 128, 48, 128, 4)
SYSTEMS = {
    "h100-sxm": "h100_sxm",
    "h200": "h200_sxm",
    "b200": "b200_sxm",
    "gb200": "gb200",
}


def update(state, rows, chunked=False):
    sequences = 1 if chunked else rows
    return StateUpdate(state, rows, 2 * rows * state.state_bytes(2), rows, sequences)


def costs(hardware):
    return CostModel(hardware, find_model("qwen3.5-27b"), Workload(1, 8, 1)).operations


def with_states(*tables, rate=1e9):
    hardware = machine(memory_bytes_per_s=rate)
    return replace(
        hardware, attention=replace(hardware.attention, source="measured", states=tables)
    )


def raw_rows(system, phase):
    """(key heads, value heads, sequences, tokens) and seconds, without the convolution."""
    spec = find_spec("aiconfigurator_core")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("aiconfigurator-core is not installed")
    data = Path(spec.submodule_search_locations[0]) / "systems" / "data" / system
    table = pq.read_table(data / "linear_attention/vllm/0.24.0/gdn_perf.parquet")
    found = {}
    for row in table.to_pylist():
        if row["phase"] == phase and "conv1d" not in row["kernel_source"]:
            sizes = ("num_k_heads", "num_v_heads", "batch_size", "seq_len")
            key = tuple(row[name] for name in sizes)
            found.setdefault(key, []).append(row["latency"] / 1e3)
    return {key: median(times) for key, times in found.items()}


@pytest.mark.parametrize("name", SYSTEMS)
def test_decoding_and_prompts_take_the_measured_times(name):
    hardware = find_hardware(name)
    operations = costs(hardware)
    peak = hardware.gemm.utilisation[0].bytes_per_s
    for phase, at in (("generation", 2), ("context", 3)):
        compared = 0
        for key, seconds in raw_rows(SYSTEMS[name], phase).items():
            if key[5 - at] != 1:
                continue
            state = replace(GATED, n_key_heads=key[0], n_value_heads=key[1])
            chunked = phase == "context"
            if chunked and key[at] == 1:
                continue
            found = operations.kernel(update(state, key[at], chunked))
            read_s = 0.0 if chunked else 8 * key[at] * state.state_size / peak
            assert found.seconds == pytest.approx(max(seconds, read_s), rel=1e-3)
            assert found.source == "measured"
            assert found.in_range
            compared += 1
        assert compared > 150


@pytest.mark.parametrize("name", SYSTEMS)
def test_sizes_between_measured_ones_are_read_within_a_seventh(name):
    """Each other point left out, above 8 sequences and 64 tokens, where times go with the work."""
    errors = []
    for table in find_hardware(name).attention.states:
        for curve, least in ((table.decode, 8), (table.chunked, 64)):
            points = [
                pair for pair in zip(curve.work, curve.seconds, strict=True) if pair[0] >= least
            ]
            half = Curve(*map(tuple, zip(*points[::2], strict=True)))
            inside = [pair for pair in points[1::2] if pair[0] < half.work[-1]]
            errors += [abs(half.at(work)[0] / seconds - 1) for work, seconds in inside]
    assert median(errors) < 0.01
    assert sorted(errors)[int(0.9 * len(errors))] < 1 / 7


def test_shards_have_a_table_of_their_own_heads():
    model = find_model("qwen3.5-27b").shard(2)
    (kernel,) = (
        one for one in kernels("attention", 1, 1, model, 1, kind=0) if isinstance(one, StateUpdate)
    )
    assert (kernel.state.n_key_heads, kernel.state.n_value_heads) == (8, 24)
    assert costs(find_hardware("h200")).kernel(kernel).source == "measured"


def test_another_shape_takes_the_nearest_table_by_the_size_of_its_states():
    small = StateTable("gated delta", 16, 128, 16, 128, 32, Curve((1.0, 2.0), (1e-6, 2e-6)))
    large = replace(small, n_value_heads=64, decode=Curve((1.0, 2.0), (8e-6, 9e-6)))
    operations = costs(with_states(small, large))
    found = operations.kernel(update(GATED, 1))
    assert found.seconds == pytest.approx(8e-6 * 48 / 64)
    assert (found.source, found.in_range) == ("fitted", False)
    halved = operations.kernel(update(replace(GATED, n_value_heads=64, state_bits=16), 2))
    assert halved.seconds == pytest.approx(9e-6 / 2)


def test_a_rule_or_a_phase_that_was_not_timed_goes_by_its_bytes():
    table = StateTable("gated delta", 16, 128, 48, 128, 32, Curve((1.0, 2.0), (1.0, 2.0)))
    operations = costs(with_states(table, rate=1e9))
    for kernel in (update(replace(GATED, rule="KDA"), 1), update(GATED, 8, chunked=True)):
        found = operations.kernel(kernel)
        assert found.seconds == pytest.approx(kernel.bytes / 1e9)
        assert found.in_range is False


def test_faster_memory_shortens_every_measured_time():
    attention = find_hardware("h200").attention
    before, after = attention.states[0], attention.faster(2.0).states[0]
    assert after.decode.at(4)[0] == pytest.approx(before.decode.at(4)[0] / 2)
    assert after.chunked.at(512)[0] == pytest.approx(before.chunked.at(512)[0] / 2)


def test_a_step_of_a_service_updates_the_states_of_each_request():
    """Two prompts of 64 tokens and 32 requests that decode, in each layer with a state.

    The two take 1.5 times as long as one, as two of 1,024 tokens do.
    """
    model = find_model("qwen3.5-27b")
    prompt = Curve((1.0, 64.0, 128.0), (1e-3, 4e-3, 9e-3))
    decode = Curve((1.0, 32.0, 160.0), (1e-3, 5e-3, 6e-3))
    two = Curve((1.0, 2.0), (20e-3, 30e-3))
    table = StateTable("gated delta", 16, 128, 48, 128, 32, decode, prompt, two)
    steps_s = []
    for factor in (1, 2):
        hardware = with_states(table.scaled(factor), rate=1e30)
        found = RestoreCosts(hardware, model, RestoreRequest(prompt_tokens=64, cached_tokens=1))
        steps_s.append(found.shared_step_s([(0, 64), (0, 64)], 32, 100.0, found.matmuls_s(160)))
    layers = sum(isinstance(one.attention, LinearState) for one in model.layers)
    assert layers == 48
    assert steps_s[1] - steps_s[0] == pytest.approx(layers * (1.5 * 4e-3 + 5e-3))


def test_prompts_of_different_lengths_take_as_long_as_their_mean_or_the_longest():
    prompt, two = Curve((2.0, 100.0), (2e-3, 100e-3)), Curve((1.0, 2.0), (20e-3, 30e-3))
    decode = Curve((1.0, 2.0), (1e-9, 1e-9))
    hardware = with_states(
        StateTable("gated delta", 16, 128, 48, 128, 32, decode, prompt, two), rate=1e30
    )
    found = RestoreCosts(
        hardware, find_model("qwen3.5-27b"), RestoreRequest(prompt_tokens=64, cached_tokens=1)
    )
    (part,) = found._parts_of(0, 1, 100)
    for lengths, seconds in (((60, 40), 1.5 * 50e-3), ((90, 10), 90e-3), ((50,), 50e-3)):
        parts = found._prompts_attention([(0, n) for n in lengths], part)
        assert sum(one.seconds for one in parts) == pytest.approx(seconds)


@pytest.mark.parametrize("name", SYSTEMS)
def test_prompts_of_one_step_take_the_measured_time_of_their_one_kernel(name):
    """Every timed number and length of prompts with 512 tokens together or more."""
    operations, errors = costs(find_hardware(name)), []
    for (n_keys, n_values, prompts, tokens), seconds in raw_rows(SYSTEMS[name], "context").items():
        if prompts > 1 and tokens > 1 and prompts * tokens >= 512:
            state = replace(GATED, n_key_heads=n_keys, n_value_heads=n_values)
            kernel = StateUpdate(state, prompts * tokens, 0, 0, prompts)
            errors.append(abs(operations.kernel(kernel).seconds / seconds - 1))
    assert len(errors) > 700
    assert median(errors) < 0.05
    assert sorted(errors)[int(0.95 * len(errors))] < 0.16
