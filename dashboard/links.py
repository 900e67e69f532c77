"""The address of a page holds every input: those at their defaults, the version, and the graph.

Streamlit writes the controls that differ from their defaults. The parameter `defaults` holds the
others as `key:value;key:value`, so that a link shows the same when a default changes: a newer run,
an uploaded model, another version. `version` and `graph` tell what a link was made with, and
`files` names uploaded files that the server still holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote, unquote

import streamlit as st

from dashboard.text.comparison import escaped
from sim.files import VERSION

DEFAULTS, VERSION_KEY, GRAPH = "defaults", "version", "graph"
READ, SHOWN, LINKED = "link_read", "controls_shown", "link_graph"
PAGE, USUAL = "page_title", "link_defaults"
GRAPH_LETTERS = 12


def read_link(page: str) -> None:
    """Take the address that a visitor opened; says which version made it.

    Args:
        page: its title; the defaults of a link are those of the page that it opens.
    """
    st.session_state[SHOWN], st.session_state[PAGE] = {}, page
    if READ not in st.session_state:
        st.session_state[READ] = st.query_params.get(VERSION_KEY)
        st.session_state[LINKED] = st.query_params.get(GRAPH)
        pairs = st.query_params.get(DEFAULTS, "").split(";")
        usual = dict(pair.partition(":")[::2] for pair in pairs if ":" in pair)
        st.session_state[USUAL] = page, {key: unquote(text) for key, text in usual.items()}
    made = st.session_state[READ]
    if made not in (None, VERSION):
        st.info(
            f"This link was made with kvoverlap {escaped(made[:20])}; this is {VERSION}, whose "
            "numbers may differ."
        )


def default_of(key: str, texts: Sequence[str], usual: int) -> int:
    """Where the default of a control is among its values: as in the link, else `usual`.

    Args:
        texts: the values as the address spells them.
    """
    text = linked(key)
    return texts.index(text) if text in texts else usual


def linked(key: str) -> str | None:
    """The default of a control in the link that opened this page."""
    page, usual = st.session_state.get(USUAL, (None, {}))
    found: str | None = usual.get(key) if page == st.session_state.get(PAGE) else None
    return found


def asked(key: str) -> str | None:
    """The value of a control in the address, or its default in the link that opened this page."""
    value: str | None = st.query_params.get(key)
    return linked(key) if value is None else value


def record(key: str, text: str) -> None:
    """Remember the value of a control of this run, as its address spells it."""
    st.session_state.setdefault(SHOWN, {})[key] = text


def write_link() -> None:
    """Write the version and the controls at their defaults into the address."""
    shown: dict[str, str] = st.session_state.get(SHOWN, {})
    usual = [
        f"{key}:{quote(text, safe=' +,.%/')}"
        for key, text in shown.items()
        if key not in st.query_params
    ]
    _set(DEFAULTS, ";".join(usual))
    _set(VERSION_KEY, VERSION)


def check_graph(sha256: str, what: str) -> None:
    """Write the hash of a shown recording into the address; says if a link meant another one.

    Args:
        what: names the recording, such as its run and case.
    """
    linked = st.session_state.get(LINKED)
    graph = sha256[:GRAPH_LETTERS]
    _set(GRAPH, graph)
    if linked is None:
        return
    meant: tuple[str, str] = st.session_state.setdefault("link_meant", (linked, what))
    if meant == (linked, what) and linked != graph:
        st.warning(
            f"This link was made for another recording: graph {escaped(linked[:GRAPH_LETTERS])}, "
            f"and {escaped(what)} now holds graph {graph}."
        )


def _set(key: str, text: str) -> None:
    if not text:
        st.query_params.pop(key, None)
    elif st.query_params.get(key) != text:
        st.query_params[key] = text
