"""A button that opens a trace at ui.perfetto.dev in another tab.

The trace is part of the page. The button opens a tab, sends PING until the tab answers PONG, and
sends the trace by postMessage. The trace stays in the visitor's browser.

Source: "Deep linking to the Perfetto UI",
perfetto.dev/docs/visualization/deep-linking-to-perfetto-ui.
"""

from __future__ import annotations

import base64
import gzip
import json

import streamlit as st

from sim.graph.timeline import Timeline
from sim.results.trace import trace_document

MEASURED_PID_SHIFT = 10_000
"""Keeps the processes of the two runs apart in one trace."""

HTML = '<button type="button">Open both in Perfetto</button>'

CSS = """
button {
  font: inherit;
  font-size: 0.875rem;
  color: var(--st-text-color);
  background: var(--st-background-color);
  border: 1px solid var(--st-border-color);
  border-radius: var(--st-button-radius);
  padding: 0.25rem 0.75rem;
  min-height: 2.5rem;
  cursor: pointer;
}
button:hover { color: var(--st-primary-color); border-color: var(--st-primary-color); }
"""

JS = """
export default function ({ parentElement, data }) {
  const origin = "https://ui.perfetto.dev";
  const button = parentElement.querySelector("button");
  button.title = "Both timelines in one trace, in a new tab; needs access to ui.perfetto.dev";
  button.onclick = () => {
    const viewer = window.open(origin);
    if (!viewer) return;
    const ask = setInterval(() => viewer.postMessage("PING", origin), 100);
    const giveUp = setTimeout(() => clearInterval(ask), 60000);
    const answer = (event) => {
      if (event.origin !== origin || event.data !== "PONG") return;
      clearInterval(ask);
      clearTimeout(giveUp);
      window.removeEventListener("message", answer);
      const bytes = Uint8Array.from(atob(data.trace), (letter) => letter.charCodeAt(0));
      const perfetto = { buffer: bytes.buffer, title: data.title, fileName: data.file_name };
      viewer.postMessage({ perfetto }, origin, [bytes.buffer]);
    };
    window.addEventListener("message", answer);
  };
}
"""

_component = st.components.v2.component("kvoverlap_perfetto", html=HTML, css=CSS, js=JS)


def perfetto_button(trace: bytes, title: str) -> None:
    """A button that opens a gzipped trace in Perfetto."""
    data = {
        "trace": base64.b64encode(trace).decode(),
        "title": title,
        "file_name": f"{title}.json.gz",
    }
    _component(key="perfetto", data=data, width="content", height="content")


def joint_trace(predicted: Timeline, measured: Timeline) -> bytes:
    """Both runs in one gzipped trace, each with processes of its own."""
    document = trace_document(predicted, "predicted")
    other = trace_document(measured, "measured")
    shifted = [
        {**event, "pid": event["pid"] + MEASURED_PID_SHIFT} for event in other["traceEvents"]
    ]
    document["traceEvents"] = document["traceEvents"] + shifted
    document["otherData"]["title"] = "predicted and measured"
    return gzip.compress(json.dumps(document).encode(), 6, mtime=0)
