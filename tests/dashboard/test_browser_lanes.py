"""The canvas of lanes in a real Chromium: zoom, address, partner, gaps, explanation, table."""

import pytest
from browser import chromium, resolve
from lane_bars import bars_of

from dashboard.data.runs import load_case
from dashboard.figures import paired_lanes

pytest.importorskip("playwright", reason="playwright is not installed: pip install -e '.[dev]'")
pytestmark = pytest.mark.skipif(
    chromium() is None, reason="no system Chromium on PATH (apt install chromium)"
)

CASE = "b2-s128-load-all"
CANVAS = ".st-key-lanes canvas.main[data-drawn]"
PLACE = """(canvas, [row, time]) => {
  const { layout, view } = canvas.state;
  const width = layout.right - layout.left;
  const x = layout.left + ((time - view.from) / (view.to - view.from)) * width;
  return { x, y: layout.rows[row] + 12 };
}"""
"""Where the canvas draws a time of a row."""


@pytest.fixture(scope="module")
def case(site):
    return load_case(site / "runs" / "demo" / "cases" / CASE)


@pytest.fixture(scope="module")
def bars(case):
    runs = case.predicted.typical, case.measured.typical
    return bars_of(paired_lanes(*runs, estimates=case.estimates))


@pytest.fixture(scope="module", autouse=True)
def timeline(tab, address):
    made, _ = tab
    usual = made.viewport_size
    made.set_viewport_size({"width": 1280, "height": 1000})
    show(made, f"{address}/timeline?run=demo&case={CASE}")
    yield
    made.set_viewport_size(usual)


def show(page, address):
    page.goto(address)
    resolve(page)
    page.locator(CANVAS).wait_for()


@pytest.fixture
def page(page):
    """The whole timeline; the zoom of the test before is undone."""
    page.locator(CANVAS).focus()
    page.keyboard.press("0")
    page.keyboard.press("Escape")
    page.locator(CANVAS).scroll_into_view_if_needed()
    page.wait_for_timeout(400)  # the address follows the zoom once it rests
    return page


def window(page):
    canvas = page.locator(CANVAS)
    return float(canvas.get_attribute("data-from")), float(canvas.get_attribute("data-to"))


def point_at(page, row, time_ms):
    canvas = page.locator(CANVAS)
    place, box = canvas.evaluate(PLACE, [row, time_ms]), canvas.bounding_box()
    page.mouse.move(box["x"] + place["x"], box["y"] + place["y"])
    page.wait_for_timeout(100)


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)
    page.wait_for_timeout(100)


def test_keys_zoom_and_move_and_the_zoom_is_part_of_the_link(page, case):
    total = max(run.makespan_s for run in (case.predicted, case.measured)) * 1e3
    assert window(page) == pytest.approx((0, total))
    press(page, "w", "w")
    start, stop = window(page)
    assert stop - start == pytest.approx(total / 1.35**2)
    press(page, "d")
    moved = window(page)
    assert moved[0] > start
    press(page, "a", "s")
    assert window(page)[1] - window(page)[0] == pytest.approx(total / 1.35)
    page.wait_for_url("**zoom=*")
    kept, link = window(page), page.url
    show(page, link)
    assert window(page) == pytest.approx(kept, abs=1e-3), "the link opens the same time"


def test_the_zoom_is_kept_when_a_control_changes(page):
    press(page, "w", "w", "w")
    page.wait_for_url("**zoom=*")
    before = window(page)
    page.get_by_text("Critical path", exact=True).click()
    page.wait_for_url("**path=true*")
    resolve(page)
    assert window(page) == pytest.approx(before, abs=1e-3)
    assert "zoom=" in page.url
    page.get_by_text("Critical path", exact=True).click()
    resolve(page)


def test_the_wheel_zooms_around_the_pointer_with_ctrl(page):
    start, stop = window(page)
    middle = (start + stop) / 2
    point_at(page, 0, middle)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -240)
    page.keyboard.up("Control")
    page.wait_for_timeout(200)
    near, far = window(page)
    assert far - near < 0.7 * (stop - start)
    assert (near + far) / 2 == pytest.approx(middle, rel=0.05)


def test_a_chosen_bar_is_explained_and_its_partner_is_marked(page, bars):
    row = [bar for bar in bars if bar["row"] == "compute measured"]
    longest = max(row, key=lambda bar: bar["length"])
    point_at(page, 1, longest["start"] + longest["length"] / 2)
    tip = page.locator(".st-key-lanes .tip")
    assert longest["name"] in tip.inner_text()
    page.mouse.down()
    page.mouse.up()
    page.wait_for_timeout(100)
    panel = page.locator(".st-key-lanes .panel").inner_text()
    for text in (longest["name"], "Start", "Waited before it", "Size", "Rate", "Estimated from"):
        assert text in panel
    assert "datasheet figures" in panel
    assert "predicted" in panel
    chosen, partner = page.locator(CANVAS).evaluate(
        "canvas => [canvas.state.chosen, canvas.state.model.bars.partner[canvas.state.chosen]]"
    )
    assert bars[chosen]["name"] == bars[partner]["name"] == longest["name"]


def test_a_gap_says_what_the_lane_waits_for(page, bars):
    row = [bar for bar in bars if bar["row"] == "compute measured"]
    waited = max(row, key=lambda bar: bar["wait"])
    point_at(page, 1, waited["start"] - waited["pause"] - waited["wait"] / 2)
    told = page.locator(".st-key-lanes .tip").inner_text()
    assert f" ms: compute waits for {waited['cause']}" in told
    assert float(told.split(" ms")[0]) == pytest.approx(waited["wait"], rel=0.01)


def test_arrows_step_from_bar_to_bar(page, bars):
    canvas = page.locator(CANVAS)
    press(page, "ArrowRight")
    first = canvas.evaluate("canvas => canvas.state.chosen")
    press(page, "ArrowRight")
    second = canvas.evaluate("canvas => canvas.state.chosen")
    assert bars[second]["start"] > bars[first]["start"]
    press(page, "ArrowDown")
    below = canvas.evaluate("canvas => canvas.state.chosen")
    assert (bars[below]["name"], bars[below]["row"]) == (bars[second]["name"], "compute measured")


def test_screen_readers_get_a_summary_and_a_table(page, bars):
    label = page.locator(CANVAS).get_attribute("aria-label")
    assert f"{len(bars)} bars in 6 rows (compute predicted, compute measured" in label
    assert "measured ends" in label
    page.get_by_text("The bars in sight as a table").click()
    rows = page.locator(".st-key-lanes .table tbody tr")
    rows.first.wait_for()
    assert rows.count() == min(200, len(bars))
    assert bars[0]["name"] in rows.first.inner_text()
    page.get_by_text("The bars in sight as a table").click()


def test_an_operation_can_be_hidden(page):
    button = page.locator(".st-key-lanes .legend button", has_text="attention")
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    button.click()


def test_all_tasks_and_the_picture_can_be_downloaded(page, bars):
    for label, name in (("CSV", "timeline.csv"), ("PNG", "timeline.png")):
        with page.expect_download() as waiting:
            page.locator(".st-key-lanes .tools button", has_text=label).click()
        assert waiting.value.suggested_filename == name
        if name.endswith("csv"):
            lines = waiting.value.path().read_text().splitlines()
            assert len(lines) == len(bars) + 1
