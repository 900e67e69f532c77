"""Entry point of `streamlit run dashboard`."""

import streamlit as st

from dashboard.workers import WORKERS

WORKERS.warm_up()  # it imports the planner while this process imports the pages

from dashboard.asking import reserve_place  # noqa: E402
from dashboard.banner import show_banner  # noqa: E402
from dashboard.controls.widgets import narrow_windows  # noqa: E402
from dashboard.history import keep_history  # noqa: E402
from dashboard.links import read_link, write_link  # noqa: E402
from dashboard.session import restore_uploads, write_uploads  # noqa: E402
from dashboard.text.glossary import PAGE_TERMS, explained  # noqa: E402
from dashboard.tour import show_tour  # noqa: E402
from sim.files import VERSION  # noqa: E402

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
narrow_windows()
keep_history()
reserve_place()
show_tour(page.title)
read_link(page.title)
show_banner()
restore_uploads()
page.run()
if page.title in PAGE_TERMS:
    st.caption(explained(PAGE_TERMS[page.title]))
write_link()
write_uploads()
