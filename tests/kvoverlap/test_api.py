"""`import kvoverlap`: the names are documented, typed, and do what the tutorial shows."""

from __future__ import annotations

import doctest
import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import kvoverlap
from kvoverlap import KvOverlapError, Workload
from sim.machine.availability import Availability, Step

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = ROOT / "docs" / "python.md"
FUNCTIONS = [name for name in kvoverlap.__all__ if inspect.isfunction(getattr(kvoverlap, name))]


def test_the_tutorial_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    found = doctest.testfile(str(TUTORIAL), module_relative=False, optionflags=flags)
    assert found.attempted > 20
    assert found.failed == 0


def test_the_example_of_the_package_runs():
    found = doctest.testmod(kvoverlap)
    assert (found.attempted, found.failed) == (5, 0)


def test_a_process_that_imports_only_the_package_reaches_its_names():
    """Other tests cannot show it: the command line, which they import, loads `kvoverlap.api`."""
    program = "import kvoverlap as kv; print(kv.plan.__name__, len(dir(kv)) - 1)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.split() == ["plan", str(len(kvoverlap.__all__))]


def test_the_tutorial_names_exactly_what_the_package_offers():
    table = TUTORIAL.read_text().partition("## The names")[2]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(kvoverlap.__all__)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_is_documented_and_typed(name):
    function = getattr(kvoverlap, name)
    signature = inspect.signature(function)
    assert function.__doc__
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter


@pytest.mark.parametrize("name", sorted(set(kvoverlap.__all__) - set(FUNCTIONS)))
def test_every_type_is_documented(name):
    kind = getattr(kvoverlap, name)
    assert kind.__doc__
    assert inspect.isclass(kind) or typing.get_origin(kind)


def test_a_graph_alone_has_no_machine_and_other_files_are_refused(tmp_path):
    graph = kvoverlap.plan("opt-125m", "h100", Workload(1, 16, 1)).simulated_graph()
    with pytest.raises(KvOverlapError, match="hardware"):
        kvoverlap.simulate(graph)
    assert kvoverlap.simulate(graph, "h100").makespan_s > 0
    other = tmp_path / "other.json"
    other.write_text('{"kind": "thesis"}')
    with pytest.raises(KvOverlapError, match="thesis"):
        kvoverlap.load(other)


def test_a_restore_plan_is_simulated_under_its_own_availability():
    trace = Availability((Step(0.0, (("h2d", 0.5),)),))
    request = kvoverlap.RestoreRequest(prompt_tokens=2048, cached_tokens=2047)
    made = kvoverlap.restore("opt-125m", "h100", request, policy="load-only", availability=trace)
    assert kvoverlap.simulate(made).makespan_s == pytest.approx(made.ttft_s, rel=1e-9)
    idle = kvoverlap.restore("opt-125m", "h100", request, policy="load-only")
    assert made.ttft_s > idle.ttft_s
