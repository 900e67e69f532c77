"""Addresses: they hold every input, the version and the graph, and the visitor's files."""

import pytest
from apptest import show
from browser import make_run

from dashboard.data.upload_store import STORE, UploadStore
from dashboard.data.uploads import Upload
from sim import Workload, find_hardware
from sim.files import VERSION

PROFILE = Upload("mine.json", find_hardware("kvpr-a100"))
CASE = "b2-s128-lp"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("links")
    make_run(made / "runs" / "here", [Workload(2, 128, 1)])
    return made


@pytest.fixture(autouse=True)
def site(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("dashboard.data.runs.SHIPPED_RUNS", folder / "shipped")


def address(app):
    found = app.query_params.items()
    return {key: text if isinstance(text, str) else text[0] for key, text in found}


def warnings(app):
    return [one.value for one in app.warning]


def test_an_address_holds_the_inputs_at_their_defaults_and_the_version():
    found = address(show("plan", model="opt-125m", batch="4"))
    assert found["model"] == "opt-125m"
    assert found["version"] == VERSION
    usual = dict(pair.split(":") for pair in found["defaults"].split(";"))
    assert usual["prompt"] == "1,024"
    assert usual["hardware"] == "kvpr-a100"
    assert usual["keep"] == "true"
    assert "batch" not in usual


def test_a_link_shows_its_own_defaults_and_tells_another_version():
    link = {"model": "opt-125m", "defaults": "batch:8;prompt:2,000;keep:false", "version": "0.0.9"}
    app = show("plan", **link)
    sliders = {one.key: one.value for one in app.select_slider}
    assert (sliders["batch"], sliders["prompt"]) == (8, 2000)
    assert app.toggle(key="keep").value is False
    assert "made with kvoverlap 0.0.9" in app.info[0].value
    assert "batch:8;prompt:2,000" in address(app)["defaults"]


def test_a_default_of_a_link_that_is_gone_is_named():
    app = show("timeline", defaults="run:quick;case:b1-s64-lp")
    assert "asks for Run quick, which is not on offer; showing here" in warnings(app)[0]


def test_a_link_to_another_graph_of_the_same_name_is_told():
    graph = address(show("timeline", run="here", case=CASE))["graph"]
    assert len(graph) == 12
    assert not warnings(show("timeline", run="here", case=CASE, graph=graph))
    app = show("timeline", case=CASE, graph="0123456789ab")
    (told,) = warnings(app)
    assert "another recording: graph 0123456789ab" in told
    assert f"now holds graph {graph}" in told
    app.selectbox(key="case").select("b2-s128-load-all").run()
    assert not warnings(app), "the link meant another case"


def test_files_of_an_address_survive_a_reload_until_they_are_removed():
    key = STORE.add(PROFILE, 10)
    link = {"machine": "mine.json (uploaded)", "files": key}
    app = show("machines", **link)
    assert app.selectbox(key="machine").value == "mine.json (uploaded)"
    assert address(app)["files"] == key
    app = show("your_machine", files=key)
    app.button(key="remove mine.json").click().run()
    assert not app.exception
    assert "files" not in address(app)
    (told,) = [text for text in warnings(show("machines", **link)) if "on this server" in text]
    assert told.startswith("1 uploaded file of this link")


def test_the_store_forgets_what_was_used_longest_ago():
    store = UploadStore(max_bytes=20)
    first, second = store.add(PROFILE, 8), store.add(PROFILE, 8)
    assert first != second
    assert store.get(first) is PROFILE
    third = store.add(PROFILE, 8)
    assert store.get(second) is None
    assert store.get(first) is store.get(third) is PROFILE
    store.remove(first)
    assert store.get(first) is None
