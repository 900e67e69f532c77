"""Pages on a phone in a real Chromium: the answer stays in sight, controls are in a drawer."""

import pytest
from browser import browser, chromium, resolve, serve

pytest.importorskip("playwright", reason="playwright is not installed: pip install -e '.[dev]'")
pytestmark = pytest.mark.skipif(
    chromium() is None, reason="no system Chromium on PATH (apt install chromium)"
)

PHONE = {
    "viewport": {"width": 390, "height": 844},
    "user_agent": "Mozilla/5.0 (Linux; Android 14) AppleWebKit/537.36 Chrome/130.0 Mobile Safari",
    "is_mobile": True,
    "has_touch": True,
}
SMALL = "model=opt-125m&hardware=kvpr-a100"
SCROLL = "document.querySelector('[data-testid=stMain]').scrollTo(0, 900)"


@pytest.fixture(scope="module")
def phone(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("phone")) as address, browser() as opened:
        page = opened.new_context(**PHONE).new_page()
        page.set_default_timeout(90_000)
        yield page, address


@pytest.mark.parametrize("path", ["plan", "what_if", "restore"])
def test_the_answer_comes_first_and_stays_in_sight(phone, path):
    page, address = phone
    page.goto(f"{address}/{path}?{SMALL}&prompt=512")
    resolve(page)
    headline = page.locator(".st-key-headline h2")
    assert headline.bounding_box()["y"] < 844 / 2
    assert not page.get_by_role("combobox", name="Model", exact=True).is_visible(), (
        "it is in the drawer"
    )
    page.get_by_text("Change the question").click()
    page.get_by_role("combobox", name="Model", exact=True).wait_for()
    page.get_by_text("Change the question").click()
    page.evaluate(SCROLL)
    page.wait_for_timeout(300)
    place = headline.bounding_box()
    assert 0 <= place["y"] < 100
    assert place["x"] + place["width"] <= 390
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator(".modebar-btn").count() == 0, "no toolbar covers a legend"
    modes = page.evaluate(
        "[...document.querySelectorAll('.js-plotly-plot')].map(one => one._fullLayout.dragmode)"
    )
    assert set(modes) == {False}, "a finger on a chart scrolls the page"
