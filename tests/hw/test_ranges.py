"""The sizes that a profile samples for given decodes."""

from __future__ import annotations

import pytest

from hw import SAMPLED
from measure.validation import DEFAULT_BATCHES, DEFAULT_MODEL, DEFAULT_PROMPTS
from sim import Workload, find_model


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_default_cases_lie_between_sampled_sizes(kind):
    model, whole = find_model(DEFAULT_MODEL[kind]), SAMPLED[kind]
    prompts, batches = DEFAULT_PROMPTS["decode"][kind], DEFAULT_BATCHES[kind]
    jobs = [Workload(batch, prompt, 2) for batch in batches for prompt in prompts]
    part = whole.for_decodes(model, jobs)
    assert part.batches[0] <= min(batches) < max(batches) <= part.batches[-1]
    assert part.contexts[0] <= min(prompts) < max(prompts) + 2 <= part.contexts[-1]
    assert part.max_rows >= max(batches) * (max(prompts) + 1)
    largest = max(batches) * max(prompts) * model.kv_token_bytes
    assert part.copy_bytes[0] == whole.copy_bytes[0] < largest <= part.copy_bytes[-1]
    assert set(part.contexts) < set(whole.contexts)
    assert set(part.batches) < set(whole.batches)
    assert not set(batches) & set(part.batches)
    assert not set(prompts) & set(part.contexts)


@pytest.mark.parametrize(
    ("batch", "sampled"), [(1, [1]), (2, [2]), (3, [2, 4]), (8, [8]), (9, [8]), (40, [8])]
)
def test_batches_are_powers_of_two_around_the_asked_ones(batch, sampled):
    part = SAMPLED["cpu"].for_decodes(find_model("opt-125m"), [Workload(batch, 100, 1)])
    assert part.batches == sampled


def test_weights_are_copied_by_several_batches_only():
    model = find_model("opt-125m")
    one, several = (
        SAMPLED["cpu"].for_decodes(model, [Workload(1, 16, 1, n_batches)]) for n_batches in (1, 2)
    )
    assert one.copy_bytes[-1] < model.layer_weight_bytes <= several.copy_bytes[-1]
