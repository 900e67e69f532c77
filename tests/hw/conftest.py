"""Fixtures of the tests of devices."""

from __future__ import annotations

import pytest
import torch
from fake_cuda import FakeCudaBackend


@pytest.fixture
def cuda():
    """The fake device, open; threads of its tiny operations would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with FakeCudaBackend() as backend:
        yield backend
    torch.set_num_threads(before)
