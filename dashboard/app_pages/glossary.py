"""Every short term of the pages, spelled out."""

import streamlit as st

from dashboard.controls.widgets import pair
from dashboard.text.glossary import TERMS

st.header("Words of these pages", anchor=False)
lines = [f"- **{name}**: {meaning}" for name, meaning in TERMS.items()]
half = -(-len(lines) // 2)
for column, part in zip(pair("terms"), (lines[:half], lines[half:]), strict=True):
    column.markdown("\n".join(part))
