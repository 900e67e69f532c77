"""Below 32 bit a run follows the reference's tokens, and only clear choices must agree."""

from dataclasses import replace

import pytest
import torch
from tiny import LLAMA, OPT, decode_case
from torch.nn.attention import SDPBackend, sdpa_kernel

from sim.errors import WrongNumbers

HEADS_OF_64 = replace(LLAMA, name="tiny-heads-of-64", head_dim=64)
"""Head size of the common models."""


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("model", [OPT, LLAMA, HEADS_OF_64], ids=lambda model: model.name)
def test_a_run_that_follows_the_reference_passes_its_check(backend, model, dtype):
    case = decode_case(backend, replace(model, dtype=dtype))
    executor = case.executor(backend)
    executor.run()
    assert executor.check()["tokens_equal"] is True


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_attention_of_heads_of_64_can_be_flash_attention(backend, dtype):
    """torch raises where it has no kernel but flash and cannot use that."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        case = decode_case(backend, replace(HEADS_OF_64, dtype=dtype))
        executor = case.executor(backend)
        executor.run()
        assert executor.check()["tokens_equal"] is True


def test_tokens_that_are_followed_are_the_ones_that_are_fed(backend):
    case = decode_case(backend, replace(OPT, dtype="bfloat16"))
    others = (case.reference.tokens + 1) % case.graph.model.vocab_size
    executor = replace(case, reference=replace(case.reference, tokens=others)).executor(backend)
    executor.references = [case.reference]
    executor.run()
    with pytest.raises(WrongNumbers):
        executor.check()


@pytest.mark.parametrize(("margin", "accepted"), [(0.0, True), (1.0, False)])
def test_only_a_clear_choice_must_agree(backend, margin, accepted):
    case = decode_case(backend, replace(OPT, dtype="bfloat16"))
    executor = case.executor(backend)
    executor.run()
    turned = case.reference.tokens.clone()
    turned[0, 0] = (turned[0, 0] + 1) % case.graph.model.vocab_size
    margins = case.reference.margins.clone()
    margins[0, 0] = margin
    executor.references = [replace(case.reference, tokens=turned, margins=margins)]
    if accepted:
        assert executor.check()["tokens_equal"] is True
    else:
        with pytest.raises(WrongNumbers):
            executor.check()


def test_in_32_bit_the_smallest_margin_must_agree(backend):
    case = decode_case(backend)
    executor = case.executor(backend)
    executor.run()
    turned = case.reference.tokens.clone()
    turned[-1, 0] = (turned[-1, 0] + 1) % case.graph.model.vocab_size
    margins = torch.full_like(case.reference.margins, 1e-9)
    executor.references = [replace(case.reference, tokens=turned, margins=margins)]
    with pytest.raises(WrongNumbers):
        executor.check()
