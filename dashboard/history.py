"""Back and Forward of the browser: one entry of the history for each change by the visitor.

Streamlit replaces the current entry when a control changes, so that Back leaves the page, and
pushes one for every parameter when the page changes. It restores the controls from the address
when the visitor goes back.
"""

import streamlit as st

SCRIPT = """
if (!window.kvoverlapHistory) {
  window.kvoverlapHistory = true;
  let acted = false;
  let path = location.pathname;
  const push = history.pushState.bind(history);
  const replace = history.replaceState.bind(history);
  const change = (state, unused, url) => {
    const target = new URL(url ?? location.href, location.href).href;
    if (acted && target !== location.href) {
      acted = false;
      push(state, unused, url);
    } else {
      replace(state, unused, url);
    }
    path = location.pathname;
  };
  history.pushState = change;
  history.replaceState = change;
  const act = () => { acted = true; };
  for (const name of ["pointerdown", "keydown"]) document.addEventListener(name, act, true);
  const idle = "[data-testid=stApp][data-test-script-state=notRunning]";
  const restore = (wanted) => {
    if (acted || path !== new URL(wanted).pathname) return;
    if (!document.querySelector(idle)) {
      setTimeout(restore, 50, wanted);
    } else if (location.href !== wanted) {
      replace({}, "", wanted);
      window.dispatchEvent(new PopStateEvent("popstate"));
    }
  };
  window.addEventListener("popstate", () => {
    acted = false;
    if (location.pathname !== path) setTimeout(restore, 200, location.href);
    path = location.pathname;
  }, true);
}
"""
"""Streamlit drops the parameters of an address on the way back to another page that has controls of
the same names; `restore` sets them again once the page has run."""


def keep_history() -> None:
    """Make Back return to the earlier settings."""
    st.html(f"<script>{SCRIPT}</script>", unsafe_allow_javascript=True)
