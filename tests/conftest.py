"""Fixtures of several test files."""

from __future__ import annotations

import pytest

from cli.main import main


@pytest.fixture
def call(capsys):
    """Run the command; returns (exit status, stdout, stderr)."""

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
