"""The dashboard's front door: `streamlit run dashboard`."""

import streamlit as st

st.set_page_config(page_title="kvoverlap", layout="wide")
pages = [
    st.Page("app_pages/timeline.py", title="Timeline"),
]
st.navigation(pages, position="top").run()
