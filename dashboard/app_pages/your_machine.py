"""Measure this machine from the browser, or bring files that were measured elsewhere."""

import streamlit as st

from dashboard.banner import time_left
from dashboard.controls.widgets import UPLOADED, pair, upload_box
from dashboard.data import runs as run_folders
from dashboard.data.jobs import Job, MeasurementRequest
from dashboard.data.uploads import Upload
from dashboard.session import FILES, UPLOAD_IDS, jobs, remove_upload, typed, uploads, visitor
from dashboard.text.comparison import escaped
from sim.catalog import model_names
from sim.errors import KvOverlapError

DEFAULT_MODEL = "the device's default"
REFRESH_S = 2.0
CONFIRMS = "confirms_stop"
WHERE_SHOWN = {
    "profile": ("Machines", "app_pages/machines.py", "machine", "{} (uploaded)"),
    "model config": ("Advise", "app_pages/advise.py", "model", "{} (uploaded)"),
    "plan": ("Plan", "app_pages/plan.py", "upload", "{}"),
    "restore plan": ("Restore", "app_pages/restore.py", "upload", "{}"),
    "recording": ("Timeline", "app_pages/timeline.py", "run", "{} (uploaded)"),
    "prediction": ("Timeline", "app_pages/timeline.py", "prediction", "{}"),
    "trace": ("Timeline", "app_pages/timeline.py", "trace", "{}"),
    "request trace": ("Traffic", "app_pages/traffic.py", "trace", "{} (uploaded)"),
}
"""Page that opens a kind of file, and the control that chooses it there, with its text."""

MORE_CHOICES = {
    "plan": {"of": UPLOADED},
    "restore plan": {"of": UPLOADED},
    "prediction": {"view": "an uploaded prediction"},
    "trace": {"view": "a profiler's trace"},
}
ALSO_SHOWN = {
    "profile": " Plan, What-if and Restore offer it as a machine.",
    "model config": " Plan, What-if and Restore offer it as a model.",
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
    latest, running = jobs().latest, jobs().running
    if running is not None:
        follow(running)
    elif latest is not None:
        show_end(latest)
    request = ask_request(running is not None)
    if request is not None:
        try:
            jobs().start(request, run_folders.OWN_RUNS, visitor())
        except KvOverlapError as error:
            st.error(escaped(str(error)))
            return
        st.rerun()


def ask_request(waits: bool) -> MeasurementRequest | None:
    """The form; its request once it is sent.

    Args:
        waits: another measurement runs, so that none can be started.
    """
    with st.form("order"):
        name = st.text_input(
            "Name of the run", "my-machine", help="The folder in runs/ to fill.", key="run_name"
        )
        replaces = st.checkbox("Replace an earlier run of this name")
        first, second = st.columns(2)
        device = first.selectbox("Device", ["auto", "cpu", "cuda"])
        model = second.selectbox("Model", [DEFAULT_MODEL, *model_names()])
        prompts = first.text_input("Prompts (tokens)", "300,500", help="Comma-separated.")
        batches = second.text_input("Batches (sequences)", "4,7", help="Comma-separated.")
        repeats = st.slider("Repeats of each case", 1, 9, 5)
        st.caption(
            "Leave the machine idle during the measurement: other work increases spread and error."
        )
        if waits:
            st.caption("One measurement runs at a time. Your entries are kept until it has ended.")
        sent = st.form_submit_button("Start measuring", type="primary", disabled=waits)
    if not sent:
        return None
    chosen = None if model == DEFAULT_MODEL else model
    return MeasurementRequest(name.strip(), device, prompts, batches, repeats, chosen, replaces)


@typed(st.fragment, run_every=REFRESH_S)
def follow(job: Job) -> None:
    """Progress of a running measurement, refreshed every `REFRESH_S`, and the button to stop it."""
    if not job.running:
        st.rerun()
    status = job.status
    st.progress(status.fraction, f"{job.request.name}: {('starting', *status.texts)[-1]}")
    st.caption(f"{job.elapsed_s:,.0f} s so far{time_left(job)}")
    if job.visitor == visitor():
        st.button("Stop", on_click=stop, args=(job,))
    elif not st.session_state.get(CONFIRMS):
        st.button("Stop", on_click=st.session_state.update, kwargs={CONFIRMS: True})
    else:
        st.warning(f"Another visitor started {job.request.name}.")
        row = st.container(horizontal=True)
        row.button("Stop it anyway", on_click=stop, args=(job,))
        row.button("Let it run", on_click=st.session_state.update, kwargs={CONFIRMS: False})
    with st.expander("Steps so far"):
        st.code("\n".join(status.texts[-20:]) or "none", language=None)


def stop(job: Job) -> None:
    """End a measurement."""
    job.stop()
    st.session_state[CONFIRMS] = False


def show_end(job: Job) -> None:
    """How the last measurement ended."""
    if job.stopped:
        earlier = (run_folders.OWN_RUNS / job.request.name).exists()
        rest = "the earlier run of this name is unchanged" if earlier else "nothing was saved"
        st.info(f"{job.request.name} was stopped after {job.elapsed_s:,.0f} s; {rest}.")
        return
    failure = job.failure
    if failure is not None:
        st.error(escaped(f"{job.request.name} failed: {failure}"))
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
        "`restore -o`), a recording (`kvoverlap run -o`), a prediction (`simulate -o`), a "
        "profiler's trace or a request trace, plain or gzipped. It is validated, and this server "
        "holds it until it ends, under an id in the address: a reload and your links find it again."
    )
    upload_box("Model config, profile, plan, recording or trace")
    for upload in reversed(uploads().values()):
        with st.container(border=True):
            show_upload(upload)


def show_upload(upload: Upload) -> None:
    """An accepted file: what it holds, the page that opens it, and a button to remove it."""
    place, page, key, text = WHERE_SHOWN[upload.kind]
    st.markdown(f"**{upload.name}**, {upload.kind}")
    st.caption(escaped(f"{upload.summary}.{ALSO_SHOWN.get(upload.kind, '')}"))
    row = st.container(horizontal=True, vertical_alignment="center")
    query = {
        key: text.format(upload.name),
        **MORE_CHOICES.get(upload.kind, {}),
        FILES: st.session_state[UPLOAD_IDS][upload.name],
    }
    row.page_link(page, label=f"Open in {place}", query_params=query)
    row.button("Remove", key=f"remove {upload.name}", on_click=remove_upload, args=(upload.name,))


show_page()
