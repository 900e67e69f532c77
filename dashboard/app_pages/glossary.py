"""Every short term of the pages, spelled out."""

import streamlit as st

from dashboard.text.glossary import TERMS

st.header("Words of these pages", anchor=False)
st.markdown("\n".join(f"- **{name}**: {meaning}" for name, meaning in TERMS.items()))
