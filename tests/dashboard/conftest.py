"""Fixtures of the tests of pages."""

from __future__ import annotations

import pytest
from streamlit.components.v2.component_manager import BidiComponentManager


@pytest.fixture(scope="session", autouse=True)
def no_search_for_components():
    """No page has a component of another package; every AppTest reads all metadata to find some."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BidiComponentManager, "discover_and_register_components", _nothing)
        yield


def _nothing(_manager: object, *, start_file_watching: bool = True) -> None:
    del start_file_watching
