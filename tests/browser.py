"""A dashboard server and a real browser to look at it, for tests, timings and pictures."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from builders import make_plan

import dashboard
from sim import Recording, Timeline, Workload, find_hardware, find_model, simulate
from sim.files import write_json
from sim.graph.jobs import RestoreRequest
from sim.results.accuracy import RecordedCase

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
START_S = 60.0
TIMEOUT_MS = 90_000
POLLING_MS = 100
"""Between looks at a page; a look at every frame takes the browser more CPU time than the page."""
STILL = """
document.addEventListener("DOMContentLoaded", () => {
  const style = document.createElement("style");
  style.textContent = "*, *::before, *::after { animation: none !important; }";
  document.head.append(style);
});
"""
"""No spinner turns: drawing its frames takes more CPU time than the answer it announces."""

IDLE = "[data-testid=stApp][data-test-script-state=notRunning]"


def chromium() -> str | None:
    """The system's Chromium, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The dashboard as `streamlit run dashboard` starts it in `folder`; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = Path(dashboard.__file__).parent
    command = [sys.executable, "-m", "streamlit", "run", app, "--server.headless", "true"]
    command += ["--server.port", str(port), "--server.address", "127.0.0.1"]
    environment = {**os.environ, "PYTHONPATH": str(app.parent)}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(f"{address}/_stcore/health", process)
            yield address
        finally:
            process.terminate()
            process.wait(10)


def worker_processes(address: str) -> list[int]:
    """Processes that compute answers for the server at an address."""
    port = address.rpartition(":")[2].encode()
    commands, parents = {}, {}
    for entry in Path("/proc").iterdir():
        try:
            commands[entry.name] = (entry / "cmdline").read_bytes()
            parents[entry.name] = (entry / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
    forks = {one for one, text in commands.items() if b"dashboard.workers.fork_server" in text}
    return [
        int(one)
        for one in forks
        if (parent := parents.get(one)) in forks
        and port in commands.get(parents.get(parent, ""), b"").split(b"\0")
    ]


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):  # noqa: S310
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"the dashboard did not start (status {process.poll()})")


@contextmanager
def browser():
    """A Chromium with a fresh profile."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def watched(visitor):
    """A new tab, and its script errors and requests to other machines."""
    made = visitor.new_page()
    made.set_default_timeout(TIMEOUT_MS)
    faults = []
    made.on("pageerror", lambda error: faults.append(str(error)))
    made.on("request", lambda request: faults.extend(_elsewhere(request.url)))
    yield made, faults
    made.close()
    assert not faults


def _elsewhere(url: str) -> list[str]:
    local = ("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:", "https://ui.perfetto.dev")
    return [] if url.startswith(local) else [url]


def resolve(page) -> None:
    """Wait until the page's script has run and its charts are drawn."""
    page.wait_for_selector("h2")
    page.wait_for_selector(IDLE)
    page.wait_for_function(
        "() => !document.querySelector('[data-testid=stSkeleton]')"
        " && [...document.querySelectorAll('[data-testid=stPlotlyChart]')]"
        ".every(chart => chart.querySelector('.main-svg'))",
        polling=POLLING_MS,
    )


def make_run(folder: Path, jobs: Sequence[Workload], model: str = "opt-125m") -> Path:
    """A run folder whose measurements are simulations, each task stretched by up to 8 %."""
    hardware, spec = find_hardware("kvpr-a100"), find_model(model)
    hardware.save(folder / "profile.json")
    for job in jobs:
        for policy in ("lp", "load-all"):
            case = folder / "cases" / f"b{job.batch_size}-s{job.prompt_tokens}-{policy}"
            plan = make_plan(spec, hardware, job, policy)
            plan.save(case / "plan.json")
            runs = [stretched(simulate(plan.lower(), hardware), number) for number in range(3)]
            environment = {"device": "made for tests", "measured_at": "2026-01-01T00:00:00Z"}
            Recording("measured", hardware, tuple(runs), environment).save(
                case / "measured.json.gz"
            )
            RecordedCase(policy, 0.05).save(case)
    write_json(folder / "report.json", "validation", {"cases": []})
    return folder


def make_restore_run(folder: Path, policies: Sequence[str] = ("two-ended", "lp", "joint")) -> Path:
    """A run folder of one request restored by several policies, as slow as in `make_run`."""
    hardware, spec = find_hardware("kvpr-a100"), find_model("opt-125m")
    hardware = hardware.with_faster("link", 0.25)
    hardware.save(folder / "profile.json")
    request = RestoreRequest(prompt_tokens=2048, cached_tokens=2000)
    for policy in policies:
        case = folder / "cases" / f"s2048-dram-8000MBps-{policy}"
        plan = make_plan(spec, hardware, request, policy, cached_data="kv+x")
        plan.save(case / "plan.json")
        runs = [stretched(simulate(plan.lower(), hardware), number) for number in range(3)]
        environment = {"device": "made for tests", "tier": "host memory"}
        measured = Recording("measured", hardware, tuple(runs), environment)
        measured.save(case / "measured.json.gz")
        RecordedCase(policy, 0.05).save(case)
    write_json(folder / "report.json", "validation", {"cases": []})
    return folder


def stretched(timeline: Timeline, seed: int) -> Timeline:
    """What a slightly slower machine would have shown: every time grows, no order changes."""
    factor = 1.03 + 0.004 * (seed % 5)
    count = len(timeline.start_s)
    late = [0.01 * ((at * 7 + seed) % 5) / 5 for at in range(count)]
    start = tuple(a * factor for a in timeline.start_s)
    end = tuple(
        a * factor + (b - a) * (factor - part)
        for a, b, part in zip(timeline.start_s, timeline.end_s, late, strict=True)
    )
    return Timeline(timeline.graph, start, end)
