"""Fixtures of several test files."""

from __future__ import annotations

import pytest

from kvoverlap.cli.main import main


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Kind of the device to test on; `cuda` is skipped where torch sees no GPU."""
    from hw.backends.cuda import cuda_available  # imports torch, which most tests do without

    if request.param == "cuda" and not cuda_available():
        pytest.skip("torch sees no CUDA device")
    return request.param


@pytest.fixture
def backend(device):
    """The device, open."""
    from hw import open_backend

    with open_backend(device) as opened:
        yield opened


@pytest.fixture
def call(capsys):
    """Run the command; returns (exit status, stdout, stderr)."""

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
