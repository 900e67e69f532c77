"""Fixtures of several test files."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import pytest
from hypothesis.internal.conjecture import providers
from xdist.scheduler import LoadFileScheduling

from kvoverlap.cli.main import main

# The operations of tiny models are too short for a second thread, which would spin between them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Hypothesis draws some values from constants in the modules that are imported, so that the examples
# of a test would depend on which tests ran before it in the same process.
providers._get_local_constants = lambda: providers._local_constants

if hasattr(os, "sched_setaffinity"):
    set_affinity = os.sched_setaffinity

    def set_affinity_of_main_thread(pid, cores):
        """Lanes are threads; those of several workers, all pinned to one core, would wait."""
        if threading.current_thread() is threading.main_thread():
            set_affinity(pid, cores)

    os.sched_setaffinity = set_affinity_of_main_thread

LONGEST = (
    "test_browser",
    "test_browser_lanes",
    "test_dashboard_pages",
    "test_documents",
    "test_cli_record",
    "test_sweep_kill",
    "test_golden",
    "test_restore_matrix",
    "test_fast",
    "test_cli_validate",
    "test_sweep",
    "test_cli_restore_runs",
    "test_races",
    "test_wheel",
    "test_planning",
    "test_residency",
)
"""Files whose tests take longest, in CPU time. They start first: a worker that begins one of them
when the others are done would keep `make test` waiting."""

TRANSFORMERS = (
    "test_cli_record",
    "test_cli_generate",
    "test_cli_generate_bad_input",
    "test_cli_peers",
    "test_oracle",
    "test_oracle_families",
    "test_checkpoint",
    "test_stored_weights",
    "test_transformers_system",
    "test_families",
    "test_models",
)
ONE_WORKER = {
    "test_browser_lanes": "test_browser",
    **dict.fromkeys(TRANSFORMERS, "transformers"),
    **{path.stem: "pages" for path in (Path(__file__).parent / "dashboard").glob("test_dash*.py")},
}
"""Files that run in one worker: they share a server and a browser, a slow import, or the processes
that compute the answers of pages."""

gc.disable()  # a third of the time of imports, whose objects stay


def pytest_collection_modifyitems(items):
    """Start the longest files first; the others keep their order."""
    place = {name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


class WholeFiles(LoadFileScheduling):
    """Gives a worker whole files, and those that share something slow together."""

    def _split_scope(self, nodeid):
        name = Path(nodeid.partition("::")[0]).stem
        return ONE_WORKER.get(name, name)


def pytest_xdist_make_scheduler(config, log):
    return WholeFiles(config, log)


def pytest_collection_finish():
    """Collect only what the tests make."""
    gc.freeze()
    gc.enable()


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
