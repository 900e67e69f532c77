"""Fixtures of the tests of devices."""

from __future__ import annotations

import pytest
from fake_cuda import FakeCudaBackend


@pytest.fixture
def cuda():
    """The fake device, open."""
    with FakeCudaBackend() as backend:
        yield backend
