"""A restore among other requests: steps drawn by hand, and the two ends without anybody else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import examples, tiny_model
from hypothesis import given
from restores import request, restores, step_machine

from planner.restore.lower import two_ended_graph
from sim.engine.api import simulate
from sim.engine.serving import Latency, OtherRequest, read_others, serve
from sim.errors import BadInput


@examples(60)
@given(restores())
def test_alone_it_is_the_two_ended_restore(case):
    model, hardware, job = case
    simulated = simulate(two_ended_graph(model, job), hardware).makespan_s
    assert serve(model, hardware, job, ()).restore.ttft_s == pytest.approx(simulated)


def test_decode_comes_first_then_prefill_then_the_restore():
    """Steps of 4 tokens take 4 s, loads of 2 tokens 8 s; 8 tokens are cached.

    step    ends at   A              B              restore
    1       4         0..4
    2       8         4..5, token                   0..3, while 6..8 are loaded
    3       12        token          0..3
    4       16        token          3..6, token    (4..6 are loaded until 16)
    5       20                                      3..4
    6       24                                      8..9, token
    """
    machine = step_machine(4.0, 0.25)
    a, b = OtherRequest(0.0, 5, 3), OtherRequest(5.0, 6, 1)
    served = serve(tiny_model(), machine, request(9), (a, b))
    assert served.others[0] == Latency(pytest.approx(8.0), pytest.approx(4.0))
    assert served.others[1].ttft_s == pytest.approx(16.0 - 5.0)
    assert served.restore.ttft_s == pytest.approx(24.0)


def test_what_the_restore_costs_the_others_is_the_tokens_it_adds_to_their_steps():
    model, job = tiny_model(), request(65, chunk_tokens=16)
    hardware = replace(
        step_machine(1e-3, 1.0), gemm=replace(step_machine(1, 1).gemm, flops_per_s=1e6)
    )
    other = (OtherRequest(0.0, 8, 6),)
    beside = serve(model, hardware, job, other).others[0]
    alone = serve(model, hardware, job, other, restores=False).others[0]
    assert alone.ttft_s < beside.ttft_s
    assert alone.tpot_s < beside.tpot_s


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arrival_s\n1\n", "must have the columns"),
        ("arrival_s,prompt_tokens,gen_tokens\n1,two,3\n", "two whole numbers"),
        ("arrival_s,prompt_tokens,gen_tokens\n-1,2,3\n", "must be at least 0"),
    ],
)
def test_a_wrong_file_of_others_is_refused(tmp_path, text, message):
    (tmp_path / "others.csv").write_text(text)
    with pytest.raises(BadInput, match=message):
        read_others(tmp_path / "others.csv")
