"""K and V are quantised and back on a GPU by operations that CUDA has."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fake_cuda import DEVICE, Refused
from tiny import LLAMA, OPT

from hw.cache.verify import relative_difference
from hw.model.quantise import HALF_BITS, LOW_HALF, dequantise_into, quantise_into
from sim.lanes import COMPUTE
from sim.model.kv_format import QuantisedRow


def random_kv(backend, model, n_tokens):
    shape = (n_tokens, 2, 2, model.n_kv_heads, model.head_dim)
    return backend.device_empty(shape, getattr(torch, model.dtype)).normal_()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("bits", [8, 4])
def test_kv_is_quantised_and_back(cuda, bits, dtype):
    model = replace(LLAMA, dtype=dtype)
    row = QuantisedRow.of(model.layers[0].attention, bits)
    kv = random_kv(cuda, model, 5)
    back, rows = torch.empty_like(kv), cuda.device_empty((5, 2, row.bytes), torch.uint8)
    with cuda.work_on(COMPUTE):
        quantise_into(kv, rows, row)
        dequantise_into(rows, back, row)
    assert relative_difference(back, kv) < (0.01 if bits == 8 else 0.12)


def test_the_former_dequantisation_of_4_bits_is_refused(cuda):
    """Its unpacking into halves passed every test on a CPU, and failed on every GPU."""
    model = replace(OPT, dtype="float16")
    row = QuantisedRow.of(model.layers[0].attention, 4)
    kv = random_kv(cuda, model, 3)
    rows = torch.empty((3, 2, row.bytes), dtype=torch.uint8, device=DEVICE)
    quantise_into(kv, rows, row)
    codes = rows[..., : row.n_values // 2]
    keys, others = kv.view(3, 2, row.n_values).chunk(2, dim=-1)
    with pytest.raises(Refused, match="bitwise_and_cuda"):
        torch.bitwise_and(codes, LOW_HALF, out=keys)
    with pytest.raises(Refused, match="bitwise_right_shift_cuda"):
        torch.bitwise_right_shift(codes, HALF_BITS, out=others)
    with cuda.work_on(COMPUTE):
        dequantise_into(rows, kv, row)
