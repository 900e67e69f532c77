"""Response times of the dashboard in a real browser.

Run with `python benchmarks/browser_times.py`; needs a system Chromium. It prints medians: from
the click on a case of 20,000 tasks to its bars, the frames a second while it is zoomed, and from
the key press on a what-if slider to the new number and to the new curve.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from threading import Thread

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from browser import browser, chromium, make_run, resolve, serve

from dashboard.data.runs import load_case
from dashboard.figures import paired_lanes
from sim import Workload

LARGE = Workload(16, 512, 90)
SMALL = Workload(16, 128, 1)
CANVAS = ".st-key-lanes canvas.main"
FRAMES = """async (canvas) => {
  const { left, width, top } = canvas.getBoundingClientRect(), start = performance.now();
  const before = canvas.state.frames;
  for (let at = 0; at < 90; at++) {
    const ctrlKey = true, deltaY = at < 45 ? -40 : 40;
    const place = { clientX: left + width / 2, clientY: top + 40 };
    canvas.dispatchEvent(new WheelEvent("wheel", { ctrlKey, deltaY, cancelable: true, ...place }));
    await new Promise(requestAnimationFrame);
  }
  return (1000 * (canvas.state.frames - before)) / (performance.now() - start);
}"""
"""Zooms in and out with the wheel, an event a frame; drawn frames a second."""
CURVE = "document.querySelector('.st-key-split .scatterlayer .js-line')?.getAttribute('d')"


LIMITS_S = {
    "first answer": 4.0,
    "control": 1.0,
    "sweep": 2.0,
    "map": 3.0,
}
TICKS = os.sysconf("SC_CLK_TCK")


class CpuWatch:
    """CPU seconds of the children of this process and their children, looked at all the time.

    The largest value of each process counts, so that a process that has ended counts too.
    """

    LOOK_S = 0.05

    def __init__(self) -> None:
        self._ticks: dict[int, int] = {}
        Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.look()
            time.sleep(self.LOOK_S)

    def look(self) -> float:
        """CPU seconds so far of the server: of processes that run a module of the dashboard."""
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                command = (entry / "cmdline").read_bytes()
                if b"streamlit" not in command and b"dashboard.workers" not in command:
                    continue
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            key = int(entry.name)
            self._ticks[key] = max(self._ticks.get(key, 0), int(fields[11]) + int(fields[12]))
        return sum(self._ticks.values()) / TICKS


def report(name: str, limit: str, seconds: float, cpu_s: float) -> None:
    """One line: the time, its limit, and the CPU seconds."""
    most_s = LIMITS_S[limit]
    verdict = f"limit {most_s:g} s {'holds' if seconds <= most_s else 'MISSED'}"
    print(f"  {name:<38} {seconds:6.2f} s  ({verdict}; CPU {cpu_s:.2f} s)", flush=True)


def time_first_answer(opened, folder: Path, watch: CpuWatch) -> None:
    """The first page of a fresh server, as its first visitor sees it."""
    cpu_s = watch.look()
    with serve(folder) as address:
        page = opened.new_page(viewport={"width": 1440, "height": 900})
        start = time.perf_counter()
        page.goto(address)
        page.wait_for_selector("h2", timeout=180_000)
        report(
            "first answer of a fresh server",
            "first answer",
            seconds_since(start),
            watch.look() - cpu_s,
        )
        page.close()


def time_sweeps(page, address: str, watch: CpuWatch) -> None:
    """From the choice of a view or of an input to the end of the page's script."""
    page.goto(f"{address}/what_if?model=opt-6.7b")
    resolve(page)
    for name, limit, key in (("Crossover", "sweep", "x"), ("Map of two inputs", "map", "map")):
        cpu_s, start = watch.look(), time.perf_counter()
        page.get_by_role("radio", name=name, exact=True).click()
        page.locator(f".st-key-{key} .main-svg").first.wait_for(state="attached", timeout=120_000)
        report(f"choice of {name} to its chart", limit, seconds_since(start), watch.look() - cpu_s)


def seconds_since(start: float) -> float:
    return time.perf_counter() - start


def time_timeline(page, address: str, small: str, large: list[str], n_bars: int) -> list[float]:
    """Seconds from the choice of each large case in the menu to all of its bars, drawn."""
    found = []
    for name in large:
        page.goto(f"{address}/timeline?run=large&case={small}")
        resolve(page)
        page.locator(f"{CANVAS}[data-drawn]").wait_for()
        page.get_by_role("combobox", name="Case").click()
        option = page.get_by_role("option", name=name, exact=True)
        start = time.perf_counter()
        option.click()
        page.locator(f"{CANVAS}[data-drawn='{n_bars}']").wait_for(timeout=60_000)
        found.append(seconds_since(start))
    return found


def time_slider(page, address: str, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds from a key press on the link slider to the new number, and to the new curve.

    Every press selects a new rate.
    """
    page.goto(f"{address}/what_if")
    resolve(page)
    slider = page.get_by_role("slider", name="Link to the device")
    numbers, curves = [], []
    for _ in range(repeats):
        slider.focus()
        header = page.locator("h2").first.inner_text()
        curve = page.evaluate(CURVE)
        start = time.perf_counter()
        page.keyboard.press("ArrowRight")
        page.wait_for_function(
            "old => document.querySelector('h2').innerText !== old", arg=header, polling=10
        )
        numbers.append(seconds_since(start))
        page.wait_for_function(f"old => {CURVE} !== old", arg=curve, polling=10)
        curves.append(seconds_since(start))
        resolve(page)
    return numbers, curves


def time_server(folder: Path, repeats: int) -> tuple[int, int, list[float]]:
    """Tasks, bars and seconds from the files to the data, without a browser."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        case = load_case(folder)
        chart = paired_lanes(case.predicted.typical, case.measured.typical)
        assert chart.encoded
        found.append(seconds_since(start))
    return len(case.graph.tasks), len(chart), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, choices=range(2, 6))
    repeats = parser.parse_args().repeats
    if chromium() is None:
        sys.exit("no Chromium found; install one to time the pages in it.")
    cases = {
        name: f"b{job.batch_size}-s{job.prompt_tokens}-lp"
        for name, job in (("large", LARGE), ("small", SMALL))
    }
    with tempfile.TemporaryDirectory() as name:
        folder = make_run(Path(name) / "runs" / "large", [LARGE, SMALL], "opt-6.7b")
        case = folder / "cases" / cases["large"]
        copies = [f"{case.name}-{number}" for number in range(repeats)]
        for copy in copies:
            shutil.copytree(case, case.with_name(copy))
        n_tasks, n_bars, server = time_server(case, repeats)
        watch = CpuWatch()
        with browser() as opened:
            time_first_answer(opened, Path(name), watch)
        with serve(Path(name)) as address, browser() as opened:
            page = opened.new_page(viewport={"width": 1440, "height": 900})
            first = time_timeline(page, address, cases["small"], copies, n_bars)
            again = time_timeline(page, address, cases["small"], copies, n_bars)
            frames = [page.locator(CANVAS).evaluate(FRAMES) for _ in range(repeats)]
            cpu_s = watch.look()
            numbers, curves = time_slider(page, address, repeats)
            slider_cpu_s = (watch.look() - cpu_s) / repeats
            time_sweeps(page, address, watch)
    print(f"timeline of {n_tasks:,} tasks, {n_bars:,} bars")
    print(f"  files to data, without a browser       {median(server):6.2f} s")
    print(f"  click to bars, first time              {median(first):6.2f} s")
    print(f"  click to bars, case read before        {median(again):6.2f} s")
    print(f"  zoom with the wheel                    {median(frames):6.0f} frames/s")
    print("what-if slider (opt-13b, batch 32, prompt 1024)")
    report("key press to new number", "control", median(numbers), slider_cpu_s)
    print(f"  key press to new curve                 {median(curves):6.2f} s")


if __name__ == "__main__":
    main()
