"""The script that Streamlit runs for every view of a page: navigation, link, tour and banner."""

import streamlit as st

from dashboard.asking import reserve_place, show_refusal
from dashboard.banner import show_banner
from dashboard.controls.widgets import set_style
from dashboard.history import keep_history
from dashboard.links import read_link, write_link
from dashboard.session import restore_uploads, write_uploads
from dashboard.text.glossary import PAGE_TERMS, explained
from dashboard.tour import show_tour
from sim.errors import KvOverlapError
from sim.files import VERSION

ABOUT = f"""**kvoverlap {VERSION}**: what to keep, load and compute again when a KV cache does not
fit the GPU. The page *Glossary* spells out every short term."""

page = st.navigation(
    [
        st.Page("app_pages/advise.py", title="Advise", default=True),
        st.Page("app_pages/plan.py", title="Plan"),
        st.Page("app_pages/what_if.py", title="What-if"),
        st.Page("app_pages/restore.py", title="Restore"),
        st.Page("app_pages/traffic.py", title="Traffic"),
        st.Page("app_pages/timeline.py", title="Timeline"),
        st.Page("app_pages/accuracy.py", title="Accuracy"),
        st.Page("app_pages/machines.py", title="Machines"),
        st.Page("app_pages/your_machine.py", title="Your machine"),
        st.Page("app_pages/glossary.py", title="Glossary"),
    ],
    position="top",
)
st.set_page_config(
    page_title=f"{page.title} - kvoverlap", layout="wide", menu_items={"About": ABOUT}
)
set_style()
keep_history()
reserve_place()
show_tour()
read_link(page.title)
show_banner()
restore_uploads()
try:
    page.run()
except KvOverlapError as error:  # such as a cancelled part of an answer
    show_refusal(error)
if page.title in PAGE_TERMS:
    st.caption(explained(PAGE_TERMS[page.title]))
write_link()
write_uploads()
