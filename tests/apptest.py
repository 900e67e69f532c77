"""Pages of the dashboard without a browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from streamlit.testing.v1 import AppTest

import dashboard
from dashboard.data.uploads import Upload
from dashboard.session import UPLOADS

APP = Path(dashboard.__file__).parent / "navigation.py"


def unopened(page: str, /, *uploads: Upload, **query: str | list[str]) -> AppTest:
    """A page whose script has not run, with uploaded files and values in its address."""
    app = AppTest.from_file(APP, default_timeout=120)
    app.switch_page(f"app_pages/{page}.py")
    if uploads:
        app.session_state[UPLOADS] = {upload.name: upload for upload in uploads}
    for key, value in query.items():
        app.query_params[key] = value
    return app


def show(page: str, /, *uploads: Upload, **query: str | list[str]) -> AppTest:
    """A page after its script has run, with uploaded files and values in its address."""
    app = unopened(page, *uploads, **query).run()
    assert not app.exception, app.exception
    return app


def charts(app: AppTest) -> list[Any]:
    """The Plotly figures of a page."""
    return [json.loads(chart.proto.spec) for chart in app.get("plotly_chart")]


def shares(memory: Any) -> list[float]:
    """Filled parts of each memory of a chart of memory bars."""
    return [sum(parts) for parts in zip(*(bar["x"] for bar in memory["data"]), strict=True)]
