"""A sweep that is killed while it runs, locally or on a cluster, still gives the same table."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest
from studies import SMALL, TRAFFIC, toml

from planner.sweep import Checkpoints, Study, dask, local, run_sweep
from sim.errors import BadInput

MANY = {
    **SMALL,
    "grid": {
        "link.bandwidth": [f"{rate}GB/s" for rate in range(10, 110, 20)],
        "policy": ["lp", "kvpr"],
    },
    "zip": {"batch": [2, 8, 16], "gen": [1, 1, 2]},
}


MANY_SERVICES = {
    **TRAFFIC,
    "grid": {
        "policy": ["load-only", "two-ended"],
        "host_cache": [0, "8GB", "12GB", "16GB"],
        "link.h2d.bandwidth": ["2GB/s", "55GB/s"],
    },
}


def table_of(study, tmp_path_factory):
    """The table of a sweep that nothing interrupts."""
    output = tmp_path_factory.mktemp("whole") / "t.parquet"
    return run_sweep(Study.of(study), output, local(1), 1).table


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return table_of(MANY, tmp_path_factory)


def test_a_killed_and_resumed_sweep_gives_the_same_table(whole, tmp_path, call):
    resumed_after_kill(MANY, whole, tmp_path, call, ["--jobs", "2"])


@pytest.fixture(scope="module")
def whole_services(tmp_path_factory):
    return table_of(MANY_SERVICES, tmp_path_factory)


def test_a_killed_sweep_of_services_gives_the_same_table(whole_services, tmp_path, call):
    resumed_after_kill(MANY_SERVICES, whole_services, tmp_path, call, ["--jobs", "1"])


def resumed_after_kill(asked, whole, tmp_path, call, where):
    """Kill a sweep after a few points, and continue it on its cluster or in one process.

    Args:
        where: options of the sweep that is killed.
    """
    study, output = tmp_path / "study.toml", tmp_path / "out.parquet"
    study.write_text(toml(asked))
    root = Path(__file__).resolve().parents[2]
    arguments = ["sweep", str(study), "-o", str(output)]
    command = [sys.executable, "-m", "kvoverlap", *arguments, *where]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    running = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    checkpoints = Checkpoints(Study.of(asked), output)
    wait_until(lambda: len(list(checkpoints.folder.glob("part-*.parquet"))) >= 3)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    finished = len(checkpoints.done())
    assert 0 < finished < whole.num_rows
    assert not output.exists()
    resume = where if "dask" in where else ["--jobs", "1"]
    status, stdout, stderr = call(*arguments, "--resume", *resume)
    assert status == 0, stderr
    assert pq.read_table(output).equals(whole)
    assert f"{whole.num_rows - finished:,} of them answered now" in stdout


def wait_until(holds) -> None:
    deadline_s = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_an_unreachable_scheduler_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("planner.sweep.workers.CONNECT_S", 0.2)
    with pytest.raises(BadInput, match=r"--address\(=tcp://127.0.0.1:9\): no Dask scheduler"):
        run_sweep(Study.of(SMALL), tmp_path / "x.parquet", dask("tcp://127.0.0.1:9"), 1)


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two worker processes, which starts for seconds."""
    from distributed import LocalCluster

    with pytest.MonkeyPatch.context() as patch:
        # Workers import the main module, which a test of dashboard pages replaces by a page.
        patch.setitem(sys.modules, "__main__", ModuleType("__main__"))
        with LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, worker_dashboard_address=None
        ) as made:
            yield made


@pytest.mark.filterwarnings("default")  # workers' sockets warn
def test_a_killed_sweep_of_services_on_a_cluster_gives_the_same_table(
    whole_services, tmp_path, call, cluster
):
    where = ["--executor", "dask", "--address", cluster.scheduler_address]
    resumed_after_kill(MANY_SERVICES, whole_services, tmp_path, call, where)


@pytest.mark.filterwarnings("default")  # a dying worker's sockets warn
def test_a_cluster_that_loses_a_worker_computes_each_point_once(whole, tmp_path, cluster):
    pids = [worker.process.pid for worker in cluster.workers.values()]

    def kill_one(batches: Iterator) -> Iterator:
        for number, answered in enumerate(dask(cluster.scheduler_address)(batches)):
            if number == 4:
                os.kill(pids[0], signal.SIGKILL)
            yield answered

    swept = run_sweep(Study.of(MANY), tmp_path / "out.parquet", kill_one, 2)
    assert swept.answered == whole.num_rows
    assert swept.table.equals(whole)
