"""Work that fails or never ends: `finish` says so, hangs nothing, and the backend goes on."""

from __future__ import annotations

import threading

import pytest
from run_restores import RestoreCase, policy_graphs, request
from tiny import OPT, decode_case

from hw import DecodeExecutor, RestoreExecutor
from hw.backends import base, cpu, cuda
from sim.errors import DeviceUnavailable
from sim.lanes import COMPUTE, H2D, LANES, TIER_LANES

each_lane = pytest.mark.parametrize("lane", [*LANES, *TIER_LANES])
each_order = pytest.mark.parametrize("in_turn", [False, True], ids=["in-order", "in-turn"])


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """Sets how long `finish` waits: ten seconds unless a test says otherwise."""

    def wait(seconds):
        for module in (base, cpu, cuda):
            monkeypatch.setattr(module, "FINISH_TIMEOUT_S", seconds)

    wait(10.0)
    return wait


def fail(*_):
    raise LookupError("lost")


@each_order
@each_lane
def test_a_lane_whose_work_never_ends_is_named(backend, patience, lane, in_turn):
    if backend.kind == "cuda" and not in_turn:
        pytest.skip("the caller launches the work of a GPU in order")
    patience(0.2)
    released = threading.Event()
    try:
        backend.begin(in_turn=in_turn)
        hanging = backend.launch(lane, released.wait)
        for other in LANES:
            backend.launch(other, lambda: None, [hanging])
        with pytest.raises(DeviceUnavailable, match=rf"^lane '{lane}' has not .* within 0\.2 s"):
            backend.finish()
    finally:
        released.set()


@each_order
@each_lane
def test_work_that_fails_is_raised_and_nothing_waits_for_it(backend, lane, in_turn):
    ran: list[str] = []

    def run(first):
        backend.begin(in_turn=in_turn)
        handle = backend.launch(lane, first)
        for other in LANES:
            handle = backend.launch(other, lambda other=other: ran.append(other), [handle])
        backend.finish()

    with pytest.raises(LookupError, match="lost"):
        run(fail)
    assert ran == []
    run(lambda: None)
    assert ran == list(LANES)


@pytest.mark.parametrize("what", ["work", "resolve", "done"])
def test_whatever_fails_ends_what_has_not_settled(backend, what):
    """A lane that is not decided yet is asked again, until another one has failed."""
    calls = {"work": lambda: None, "resolve": lambda: True, "done": lambda _seconds: None}
    backend.begin(in_turn=True)
    backend.launch(COMPUTE, lambda: None, resolve=lambda: None)
    backend.launch(H2D, **{**calls, what: fail})
    with pytest.raises(LookupError, match="lost"):
        backend.finish()


@pytest.mark.parametrize("op", ["load_kv", "recompute", "store_kv"])
def test_a_decode_after_a_failed_one_passes_its_check(backend, monkeypatch, op):
    case = decode_case(backend)
    executor = case.executor(backend)
    with monkeypatch.context() as patch:
        patch.setitem(DecodeExecutor.operations, op, fail)
        with pytest.raises(LookupError, match="lost"):
            executor.run()
    executor.run()
    assert executor.check()["tokens_equal"] is True


@pytest.mark.parametrize("op", ["load_kv", "prefill"])
def test_a_restore_after_a_failed_one_passes_its_check(backend, monkeypatch, op):
    case = RestoreCase.of(backend, OPT, request())
    executor = case.executor(policy_graphs(OPT, case.job)["lp"])  # does both in any case
    with monkeypatch.context() as patch:
        patch.setitem(RestoreExecutor.operations, op, fail)
        with pytest.raises(LookupError, match="lost"):
            executor.run()
    executor.run()
    assert executor.check()["tokens_equal"] is True
