"""Entry point of `streamlit run dashboard`: a server that is ready before its first visitor."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module

from streamlit.starlette import App

from dashboard.workers import WORKERS
from dashboard.workers.fork_server import collect_rarely, load_engine

PAGES = (
    "dashboard.controls.compare",
    "dashboard.figures",
    "dashboard.runtime_gap",
    "dashboard.session",
    "dashboard.tour",
)
"""Modules whose import takes most of the time of a first page."""


@asynccontextmanager
async def prepared(_app: App) -> AsyncIterator[None]:
    """Import the pages here and the planner in the fork server, side by side."""
    WORKERS.warm_up()
    for name in PAGES:
        import_module(name)
    load_engine()
    WORKERS.wait_until_warm()
    collect_rarely()
    yield


app = App("navigation.py", lifespan=prepared)
