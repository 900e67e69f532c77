"""The built wheel, installed alone in a clean environment, plans with the data it ships."""

import json
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (built,) = folder.glob("kvoverlap-*.whl")
    return built


def test_wheel_holds_every_package_and_all_data(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    shipped = {
        str(path.relative_to(ROOT))
        for package in ("kvoverlap", "measure", "sim", "planner", "hw", "dashboard", "data")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped <= names


@pytest.fixture(scope="module")
def kvoverlap(wheel, tmp_path_factory):
    """The command of an environment that holds the wheel and its core dependencies only."""
    env = tmp_path_factory.mktemp("clean") / "env"
    venv.create(env, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", env / "bin" / "python"]
    install = ["install", "--quiet", "--no-deps", "--no-index", "--no-compile", wheel]
    subprocess.run([*pip, *install], check=True, capture_output=True, timeout=300)
    (site,) = env.glob("lib/python*/site-packages")
    (installed,) = metadata.distributions(name="kvoverlap", path=[str(site)])
    for name in required(installed):
        files = metadata.distribution(name).files or []
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            source = Path(str(metadata.distribution(name).locate_file(top)))
            if not (site / top).exists():
                (site / top).symlink_to(source)
    return env / "bin" / "kvoverlap"


def required(distribution, known=frozenset()):
    """Names of the distributions that one needs without extras, with those that they need."""
    for text in distribution.requires or []:
        requirement = Requirement(text)
        name = requirement.name
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if wanted and name not in known:
            known = required(metadata.distribution(name), known | {name})
    return known


def test_clean_environment_runs_the_planner_from_the_wheel(kvoverlap, tmp_path):
    arguments = "plan --model opt-13b --hardware kvpr-a100 --batch 32 --prompt 1024 --policy kvpr"
    done = subprocess.run(
        [kvoverlap, *arguments.split(), "--json"],
        check=True,
        capture_output=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert set(json.loads(done.stdout)["steps"][0]["recomputed_tokens"]) == {671}


def test_clean_environment_imports_the_package(kvoverlap, tmp_path):
    program = (
        "import kvoverlap as kv; "
        "print(kv.plan('opt-13b', 'kvpr-a100', kv.Workload(32, 1024, 1)).policy)"
    )
    command = [kvoverlap.parent / "python", "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, timeout=60)
    assert done.stdout.split() == [b"lp"]
    shown = [kvoverlap.parent / "python", "-m", "kvoverlap", "--version"]
    assert subprocess.run(shown, check=True, capture_output=True, cwd=tmp_path, timeout=60).stdout


def test_a_verb_that_needs_torch_says_what_to_install(kvoverlap, tmp_path):
    done = subprocess.run([kvoverlap, "validate"], capture_output=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 2
    assert b"kvoverlap[hw]" in done.stderr
    assert b"Traceback" not in done.stderr
