"""The dashboard in a real Chromium: what only a browser shows. Skipped where there is none."""

import base64
import gzip
import json
import os
import time
from pathlib import Path

import pytest
from browser import (
    POLLING_MS,
    STILL,
    TIMEOUT_MS,
    chromium,
    resolve,
    watched,
    worker_processes,
)

from sim import Recording, read_trace

pytest.importorskip("playwright", reason="playwright is not installed: pip install -e '.[dev]'")
pytestmark = pytest.mark.skipif(
    chromium() is None, reason="no system Chromium on PATH (apt install chromium)"
)

CASE = "b4-s256-load-all"
RESTORE = "s2048-dram-8000MBps-two-ended"
PAGES = (
    "Advise",
    "Plan",
    "What-if",
    "Restore",
    "Traffic",
    "Timeline",
    "Accuracy",
    "Machines",
    "Your machine",
    "Glossary",
)
CANVAS = ".st-key-lanes canvas.main[data-drawn]"
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "user_agent": "Mozilla/5.0 (Linux; Android 14) AppleWebKit/537.36 Chrome/130.0 Mobile Safari",
    "is_mobile": True,
    "has_touch": True,
}
SMALL = "model=opt-125m&hardware=kvpr-a100"
SCROLL = "document.querySelector('[data-testid=stMain]').scrollTo(0, 900)"
FAKE_PERFETTO = """
<script>
window.onmessage = (event) => {
  if (event.data === "PING") event.source.postMessage("PONG", event.origin);
  else if (event.data.perfetto) {
    const { buffer, title } = event.data.perfetto;
    const letters = Array.from(new Uint8Array(buffer), (byte) => String.fromCharCode(byte));
    document.title = title;
    document.body.innerText = btoa(letters.join(""));
  }
};
</script><body></body>
"""


@pytest.fixture(scope="module")
def phone(visitor):
    """A tab on a phone."""
    made = visitor.browser.new_context(**PHONE)
    made.add_init_script(STILL)
    page = made.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    return page


@pytest.fixture(scope="module")
def timeline(tab, address):
    """The timeline of one case, opened once for all tests that look at it."""
    made, _ = tab
    made.context.route(
        "https://ui.perfetto.dev/**",
        lambda route: route.fulfill(content_type="text/html", body=FAKE_PERFETTO),
    )
    visit(made, f"{address}/timeline?run=demo&case={CASE}")
    made.locator(CANVAS).wait_for()
    return made


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Where pictures go: $KVOVERLAP_PICTURES, or a folder of pytest's."""
    named = os.environ.get("KVOVERLAP_PICTURES")
    made = Path(named) if named else tmp_path_factory.mktemp("pictures")
    made.mkdir(parents=True, exist_ok=True)
    return made


def visit(page, url):
    page.goto(url)
    resolve(page)
    assert page.get_by_test_id("stException").all_inner_texts() == []


def open_page(page, address, name):
    """Choose a page in the menu, which loads less than its address."""
    if page.url == "about:blank":
        visit(page, f"{address}/glossary")
    page.get_by_role("link", name=name, exact=True).click()
    arrive(page, name)


def arrive(page, name):
    page.wait_for_function("name => document.title.startsWith(name)", arg=name, polling=POLLING_MS)
    resolve(page)


def test_every_page_opens_from_the_menu(page, address, pictures):
    for name in PAGES:
        open_page(page, address, name)
        assert page.get_by_test_id("stException").all_inner_texts() == []
        assert page.locator("h2").first.inner_text()
        page.screenshot(path=pictures / f"{name}.png")
        assert (pictures / f"{name}.png").stat().st_size > 10_000


def test_a_moved_slider_changes_the_number_and_the_address(page, address):
    open_page(page, address, "What-if")
    before = page.locator("h2").first.inner_text()
    page.get_by_role("slider", name="Link to the device").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "old => document.querySelector('h2').innerText !== old", arg=before, polling=POLLING_MS
    )
    page.wait_for_url("**link=48*")
    resolve(page)
    after = page.locator("h2").first.inner_text()
    assert "--set link.bandwidth=48GB/s" in page.get_by_test_id("stCode").inner_text()
    visit(page, page.url)
    assert page.locator("h2").first.inner_text() == after, "the address is a link to the view"


def test_back_returns_to_the_earlier_settings_also_of_another_page(page, address):
    visit(page, f"{address}/plan?model=opt-125m&batch=4&prompt=256")
    slider = page.get_by_role("slider", name="Batch (sequences)")
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**batch=6*")
    resolve(page)
    page.get_by_role("link", name="What-if", exact=True).click()
    arrive(page, "What-if")
    page.wait_for_url("**what_if*batch=6*")
    for batch in (6, 4):
        page.go_back()
        page.wait_for_url(f"**/plan?*batch={batch}*")
        page.get_by_text(f"batch {batch},").first.wait_for()
        resolve(page)


def test_a_long_question_can_be_cancelled_and_ends_with_its_tab(visitor, address):
    link = f"{address}/what_if?model=opt-13b&schedule=column&n_batches=8&gen=32&batch=4&keep=true"
    with watched(visitor) as (made, _):
        made.goto(link)
        made.get_by_role("button", name="Cancel").click()
        made.get_by_text("Cancelled. Change a control, or ask again.").wait_for()
        made.get_by_role("button", name="Ask again").click()
        made.get_by_role("button", name="Cancel").wait_for()
        assert worker_processes(address)
    until = time.monotonic() + TIMEOUT_MS / 1e3
    while worker_processes(address):
        assert time.monotonic() < until
        time.sleep(0.1)


def test_an_edited_trace_changes_the_answer_and_the_address(page, address):
    visit(page, f"{address}/restore?view=Availability&prompt=4,096&policy=two-ended")
    adaptation = page.get_by_text("with the trace known in advance").first
    before = adaptation.inner_text()
    assert "trace=" not in page.url
    table = page.get_by_test_id("stDataFrame").first
    table.scroll_into_view_if_needed()
    page.wait_for_timeout(500)  # the grid is a canvas, which takes clicks once it is drawn
    box = table.bounding_box()
    page.mouse.click(box["x"] + box["width"] - 60, box["y"] + 52)  # lane net in the first row
    page.wait_for_timeout(300)
    page.keyboard.press("Enter")
    page.locator("input.gdg-input").fill("0.5")
    page.keyboard.press("Enter")
    page.wait_for_url("**trace=*net*0.5*")
    page.wait_for_function(
        "old => !document.body.innerText.includes(old)", arg=before, polling=POLLING_MS
    )
    resolve(page)
    assert "--availability availability.csv" in page.get_by_test_id("stCode").inner_text()


def test_a_measured_restore_leads_from_its_two_ends_to_its_tasks(page, address):
    visit(page, f"{address}/restore?of=a+measured+case&case={RESTORE}")
    page.locator(".st-key-ends .barlayer .point path").first.wait_for(state="attached")
    before = page.locator("h2").first.inner_text()
    page.get_by_role("link", name="Task by task").click()
    arrive(page, "Timeline")
    assert page.get_by_role("combobox", name="Case").input_value() == RESTORE
    assert page.locator("h2").first.inner_text() == before


def test_a_downloaded_trace_reads_back_as_the_measured_run(timeline, site, tmp_path):
    with timeline.expect_download() as waiting:
        timeline.get_by_role("button", name="Trace, measured").click()
    path = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(path)
    recording = Recording.load(site / "runs" / "demo" / "cases" / CASE / "measured.json.gz")
    assert path.name == f"demo-{CASE}-measured.trace.json.gz"
    assert read_trace(path, recording.graph, "measured") == recording.typical


def test_both_runs_are_handed_to_perfetto_when_it_answers(timeline):
    with timeline.expect_popup() as waiting:
        timeline.get_by_role("button", name="Open both in Perfetto").click()
    viewer = waiting.value
    viewer.wait_for_function("() => document.body.innerText.length > 100")
    document = json.loads(gzip.decompress(base64.b64decode(viewer.inner_text("body"))))
    assert viewer.title() == f"kvoverlap demo-{CASE}"
    names = {
        event["args"]["name"]
        for event in document["traceEvents"]
        if event["name"] == "process_name"
    }
    assert {"predicted, device 0", "measured, device 0"} <= names
    viewer.close()


def test_choosing_a_case_changes_the_answer(timeline):
    page = timeline
    page.bring_to_front()
    before = page.locator("h2").first.inner_text()
    menu = page.get_by_role("combobox", name="Case")
    menu.scroll_into_view_if_needed()
    page.wait_for_timeout(500)  # a menu closes when the page scrolls
    menu.click()
    page.get_by_role("option", name="b2-s128-load-all").click()
    page.wait_for_function(
        "old => document.querySelector('h2').innerText !== old", arg=before, polling=POLLING_MS
    )
    page.wait_for_url("**case=b2-s128-load-all*")
    resolve(page)


def test_a_bad_file_is_refused_in_a_sentence_and_a_good_one_is_shown(page, address, site):
    visit(page, f"{address}/your_machine")
    upload = page.locator("input[type=file]")
    bad = {"name": "bad.json", "mimeType": "application/json", "buffer": b"{'kind': 1}"}
    upload.set_input_files(bad)
    page.get_by_text("Refused: bad.json is not valid JSON").wait_for()
    good = site / "runs" / "demo" / "cases" / "b2-s128-lp" / "measured.json.gz"
    upload.set_input_files(good)
    page.get_by_text("measured.json.gz is a recording.").wait_for()
    page.get_by_role("link", name="Open in Timeline").click()
    arrive(page, "Timeline")
    chosen = page.get_by_role("combobox", name="Run").input_value()
    assert chosen == "measured.json.gz (uploaded)"
    assert page.locator("h2").first.inner_text().startswith("Predicted ")


def test_an_uploaded_trace_of_requests_is_simulated_and_fits_a_phone(page, address):
    visit(page, f"{address}/traffic?model=llama-3.1-8b&sizes=0,4GB&policies=load-only")
    page.get_by_text("Upload a request trace").click()
    lines = (f"{at},{2000 + 300 * at},30,chat{at % 2}" for at in range(12))
    text = "\n".join(["arrival_s,prompt_tokens,gen_tokens,prefix_group", *lines])
    page.locator("input[type=file]").set_input_files(
        {"name": "mine.csv", "mimeType": "text/csv", "buffer": text.encode()}
    )
    page.get_by_text("12 requests in 11 s").wait_for()
    resolve(page)
    assert page.get_by_role("combobox", name="Requests").input_value() == "mine.csv (uploaded)"
    page.locator(".st-key-service .barlayer .point path").first.wait_for(state="attached")
    command = page.get_by_test_id("stCode").inner_text()
    assert command.startswith("kvoverlap traffic mine.csv --model llama-3.1-8b")
    sizes = page.get_by_role("textbox", name="Sizes of the host cache")
    sizes.fill("0,8GB")
    sizes.press("Enter")
    page.wait_for_url("**sizes=0*8GB*")
    page.wait_for_function(
        "() => document.querySelector('[data-testid=stCode]').innerText.includes('0,8GB')",
        polling=POLLING_MS,
    )
    page.set_viewport_size({"width": 390, "height": 844})
    resolve(page)
    page.wait_for_function(
        "() => document.querySelector('[data-testid=stMain]').scrollWidth <= 390",
        polling=POLLING_MS,
    )
    page.set_viewport_size({"width": 1440, "height": 900})


@pytest.mark.parametrize("path", ["plan", "what_if", "restore"])
def test_on_a_phone_the_answer_comes_first_and_stays_in_sight(phone, address, path):
    phone.goto(f"{address}/{path}?{SMALL}&prompt=512")
    resolve(phone)
    headline = phone.locator(".st-key-headline h2")
    assert headline.bounding_box()["y"] < 844 / 2
    model = phone.get_by_role("combobox", name="Model", exact=True)
    assert not model.is_visible(), "it is in the drawer"
    phone.get_by_text("Change the question").click()
    model.wait_for()
    phone.get_by_text("Change the question").click()
    phone.evaluate(SCROLL)
    phone.wait_for_timeout(300)
    place = headline.bounding_box()
    assert 0 <= place["y"] < 100
    assert place["x"] + place["width"] <= 390
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    assert phone.locator(".modebar-btn").count() == 0, "no toolbar covers a legend"
    modes = phone.evaluate(
        "[...document.querySelectorAll('.js-plotly-plot')].map(one => one._fullLayout.dragmode)"
    )
    assert set(modes) == {False}, "a finger on a chart scrolls the page"


def test_the_tour_leads_through_its_pages_and_back(page, address):
    page.goto(f"{address}/plan?model=opt-125m&batch=2&prompt=64&tour=2")
    for number, title in ((2, "Plan"), (3, "What-if"), (4, "Timeline")):
        page.wait_for_selector(f".st-key-tour_box:has-text('{number} of 5')")
        resolve(page)
        assert page.title().startswith(title)
        page.locator(".st-key-tour_box").get_by_role("link", name="Next").click()
    page.wait_for_selector(".st-key-tour_box:has-text('5 of 5')")
    page.go_back()
    page.wait_for_selector(".st-key-tour_box:has-text('4 of 5')")
    page.get_by_role("button", name="End the tour").click()
    page.wait_for_selector(".st-key-tour_box", state="detached")
