"""What a job may ask for."""

from __future__ import annotations

import pytest

from sim.errors import BadInput
from sim.graph.jobs import Workload


@pytest.mark.parametrize("field", ["batch_size", "prompt_tokens", "gen_tokens"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "8", None])
def test_a_workload_counts_in_whole_numbers_from_one(field, value):
    job = {"batch_size": 1, "prompt_tokens": 8, "gen_tokens": 1, field: value}
    with pytest.raises(BadInput, match=rf"{field}\(="):
        Workload(**job)


@pytest.mark.parametrize("bits", [0, 2, 16, True, "8", 8.5])
def test_a_quantised_cache_has_codes_of_8_or_4_bits(bits):
    with pytest.raises(BadInput, match=r"kv_bits\(=.*must be 8 or 4"):
        Workload(1, 8, 1, kv_bits=bits)


def test_each_step_attends_to_one_token_more():
    job = Workload(batch_size=2, prompt_tokens=8, gen_tokens=3)
    assert [job.context_tokens(step) for step in range(3)] == [8, 9, 10]
    assert job.max_tokens == 11
