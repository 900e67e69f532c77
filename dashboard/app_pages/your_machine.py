"""Measure this machine from the browser, or bring files that were measured elsewhere."""

import streamlit as st

from dashboard.controls.widgets import pair, upload_box
from dashboard.data import runs as run_folders
from dashboard.data.jobs import Job, MeasurementRequest
from dashboard.session import jobs, typed, uploads
from dashboard.text.comparison import escaped
from sim.catalog import model_names
from sim.errors import KvOverlapError

DEFAULT_MODEL = "the device's default"
REFRESH_S = 2.0
WHERE_SHOWN = {
    "profile": ("Advise, Plan, What-if and Machines, as a machine", "app_pages/machines.py"),
    "model config": ("Advise, Plan, What-if and Restore, as a model", "app_pages/advise.py"),
    "plan": ("Plan, as an uploaded plan", "app_pages/plan.py"),
    "restore plan": ("Restore, as an uploaded plan", "app_pages/restore.py"),
    "recording": ("Timeline, as a run", "app_pages/timeline.py"),
    "trace": ("Timeline, as a profiler's trace", "app_pages/timeline.py"),
    "request trace": ("Traffic, as requests", "app_pages/traffic.py"),
}


def show_page() -> None:
    """Measuring on the left, uploading on the right."""
    left, right = pair("ways")
    with left:
        st.header("Run it here", anchor=False)
        show_run()
    with right:
        st.header("Bring your own files", anchor=False)
        show_uploads()


def show_run() -> None:
    """The form that starts a measurement, or the progress of the running one."""
    st.write(
        "Profiles this machine, plans a grid of cases, predicts each, runs it with real tensors "
        "and compares. The settings below take about four minutes and need no GPU."
    )
    latest = jobs().latest
    if latest is not None and latest.running:
        follow(latest)
        return
    if latest is not None:
        show_end(latest)
    request = ask_request()
    if request is not None:
        try:
            jobs().start(request, run_folders.OWN_RUNS)
        except KvOverlapError as error:
            st.error(str(error))
            return
        st.rerun()


def ask_request() -> MeasurementRequest | None:
    """The form; its request once it is sent."""
    with st.form("order"):
        name = st.text_input("Name of the run", "my-machine", help="The folder in runs/ to fill.")
        first, second = st.columns(2)
        device = first.selectbox("Device", ["auto", "cpu", "cuda"])
        model = second.selectbox("Model", [DEFAULT_MODEL, *model_names()])
        prompts = first.text_input("Prompts (tokens)", "300,500", help="Comma-separated.")
        batches = second.text_input("Batches (sequences)", "4,7", help="Comma-separated.")
        repeats = st.slider("Repeats of each case", 1, 9, 5)
        st.caption(
            "Leave the machine idle during the measurement: other work increases spread and error."
        )
        sent = st.form_submit_button("Start measuring", type="primary")
    if not sent:
        return None
    chosen = None if model == DEFAULT_MODEL else model
    return MeasurementRequest(name.strip(), device, prompts, batches, repeats, chosen)


@typed(st.fragment, run_every=REFRESH_S)
def follow(job: Job) -> None:
    """Progress of a running measurement, refreshed every `REFRESH_S`, and the button to stop it."""
    if not job.running:
        st.rerun()
    status = job.status
    st.progress(status.fraction, f"{job.request.name}: {('starting', *status.texts)[-1]}")
    st.caption(f"{job.elapsed_s:,.0f} s so far")
    if st.button("Stop"):
        job.stop()
        st.rerun()
    with st.expander("Steps so far"):
        st.code("\n".join(status.texts[-20:]) or "none", language=None)


def show_end(job: Job) -> None:
    """How the last measurement ended."""
    if job.stopped:
        st.info(f"{job.request.name} was stopped after {job.elapsed_s:,.0f} s; nothing was saved.")
        return
    failure = job.failure
    if failure is not None:
        st.error(f"{job.request.name} failed: {failure}")
        return
    st.success(f"{job.request.name} was measured in {job.elapsed_s:,.0f} s.")
    st.page_link(
        "app_pages/timeline.py",
        label=f"Show run {job.request.name} in Timeline",
        query_params={"run": job.request.name},
    )


def show_uploads() -> None:
    """The uploader, the reason of a refusal, and the accepted files."""
    st.write(
        "A model's config.json, a profile (`kvoverlap profile -o`), a plan (`kvoverlap plan -o` or "
        "`restore -o`), a recording (`kvoverlap run -o`), a profiler's trace or a request trace, "
        "plain or gzipped. It is validated and stored for this browser session only."
    )
    upload_box("Model config, profile, plan, recording or trace")
    for upload in reversed(uploads().values()):
        where, page = WHERE_SHOWN[upload.kind]
        with st.container(border=True):
            st.markdown(f"**{upload.name}**, {upload.kind}")
            st.caption(escaped(upload.summary))
            st.page_link(page, label=f"Shown in {where}")


show_page()
