"""Fixtures of the tests of pages."""

from __future__ import annotations

import pytest
from browser import STILL, browser, make_restore_run, make_run, serve, watched
from streamlit import config
from streamlit.components.v2.component_manager import BidiComponentManager
from streamlit.testing.v1 import local_script_runner
from streamlit.testing.v1.local_script_runner import LocalScriptRunner

from sim import Workload


@pytest.fixture(scope="session", autouse=True)
def quick_app_tests():
    """AppTest without work of its own: the look for components of other packages, of which no page
    has any, a look every millisecond whether the script has ended, and the compilation of a page
    with Streamlit's magic, which the dashboard turns off."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BidiComponentManager, "discover_and_register_components", _nothing)
        patch.setattr(local_script_runner, "require_widgets_deltas", _ended)
        config.set_option("runner.magicEnabled", False)
        yield


def _nothing(_manager: object, *, start_file_watching: bool = True) -> None:
    del start_file_watching


def _ended(runner: LocalScriptRunner, timeout: float) -> None:
    """Wait until a script has ended, as AppTest does, without looking again and again."""
    thread = runner._script_thread
    thread.join(timeout)
    if thread.is_alive():
        runner.request_stop()
        runner.join()
        raise RuntimeError(f"the script took longer than {timeout} s")


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


@pytest.fixture(scope="session")
def tab(visitor):
    """One tab and its faults: pages open sooner there than in a new tab, which compiles Streamlit's
    and Plotly's programs again."""
    with watched(visitor) as made:
        yield made


@pytest.fixture
def page(tab):
    """The tab, without script errors and without requests to another machine."""
    made, faults = tab
    yield made
    assert not faults
