"""Fixtures of the tests of pages."""

from __future__ import annotations

import pytest
from browser import STILL, browser, make_restore_run, make_run, serve
from streamlit.components.v2.component_manager import BidiComponentManager

from sim import Workload


@pytest.fixture(scope="session", autouse=True)
def no_search_for_components():
    """No page has a component of another package; every AppTest reads all metadata to find some."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BidiComponentManager, "discover_and_register_components", _nothing)
        yield


def _nothing(_manager: object, *, start_file_watching: bool = True) -> None:
    del start_file_watching


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """A folder with the runs that a browser looks at."""
    made = tmp_path_factory.mktemp("site")
    make_run(made / "runs" / "demo", [Workload(4, 256, 2), Workload(2, 128, 1)])
    make_restore_run(made / "runs" / "restores", ["two-ended"])
    return made


@pytest.fixture(scope="session")
def address(site):
    with serve(site) as found:
        yield found


@pytest.fixture(scope="session")
def visitor():
    """One visitor, whose cache the tests share."""
    with browser() as chrome:
        made = chrome.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True)
        made.add_init_script(STILL)
        yield made
