"""Parts of pages: menus, cards, charts, tables for download."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pandas as pd
import streamlit as st
from plotly.graph_objects import Figure
from streamlit.delta_generator import DeltaGenerator

from dashboard import links
from dashboard.data.exports import csv_bytes, parquet_bytes, saved_bytes
from dashboard.data.runs import OWN_RUNS, Case, Run, case_stamp
from dashboard.data.uploads import MAX_UPLOAD_MB, Upload, read_upload
from dashboard.figures import fit_phone, split_curve
from dashboard.questions.decode import CHANGED_PROFILE, Question
from dashboard.questions.points import kvpr_count
from dashboard.session import (
    all_runs,
    cases_of,
    keep_upload,
    runs_with,
    stored_case,
    uploaded_case,
    uploaded_recordings,
    uploads,
)
from dashboard.text.comparison import Metric, escaped
from planner import DecodePlan
from sim.errors import KvOverlapError

CHART = {"displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"]}
BARE_CHART = {"displayModeBar": False}

MAX_ASKED = 60
"""Characters of a link's value that are shown."""

REFUSED = "Refused: "

T = TypeVar("T")

ASKED, MEASURED, UPLOADED = "a question", "a measured case", "an uploaded plan"

DECODE_RUN = ("make run", "kvoverlap validate --out runs/latest")
RESTORE_RUN = ("kvoverlap validate --scenario restore --out runs/restores",)
"""Commands that measure a run to show."""

STYLE = """
[data-testid="stMainBlockContainer"] { padding-bottom: 4rem; }
[data-testid="stCaptionContainer"] { opacity: 0.8; }
[data-testid^="stBaseButton-primary"] { color: light-dark(#ffffff, #0b1512); }
.js-plotly-plot :is(.xtick, .ytick, .colorbar, .annotation) text,
.js-plotly-plot :is(.xtitle, .ytitle, .bartext-outside) {
  fill: currentColor !important; fill-opacity: 0.8 !important;
}
[data-testid="stButtonGroup"] :has(> button) { flex-wrap: wrap; }
[data-testid="stButtonGroup"] button:not([data-selected]) {
  border-left-color: color-mix(in srgb, currentColor 20%, transparent) !important;
}
.st-key-progress {
  position: sticky; top: 0; z-index: 99; background: light-dark(#ffffff, #12181d);
}
.st-key-presets [data-testid="stPageLink"] a {
  background: color-mix(in srgb, #7f8f99 16%, transparent);
}
.st-key-presets [data-testid="stPageLink"] a * { font-weight: 600; }
@media (max-width: 1000px) {
  [data-testid="stHorizontalBlock"] { gap: 1rem; }
  [data-testid="stHeading"] h2 { font-size: 1.15rem; line-height: 1.35; }
  [data-testid="stMetric"] .stMarkdownEllipsis :is(&, p) { white-space: normal; overflow: visible; }
  .st-key-cards [data-testid="stHorizontalBlock"] { flex-wrap: wrap; }
  .st-key-cards [data-testid="stColumn"] { flex: 1 1 45%; min-width: 45%; }
  [class*="st-key-pair_"] > [data-testid="stLayoutWrapper"] > [data-testid="stHorizontalBlock"] {
    flex-direction: column; flex-wrap: nowrap;
  }
  [class*="st-key-pair_"] > [data-testid="stLayoutWrapper"] > [data-testid="stHorizontalBlock"]
    > [data-testid="stColumn"] { width: 100%; flex: 0 0 auto; }
  [data-testid="stLayoutWrapper"]:has(> .st-key-headline) {
    position: sticky; top: 3rem; z-index: 9; padding: 0.5rem 0; backdrop-filter: blur(12px);
    background: light-dark(#ffffffeb, #12181deb);
  }
}
"""


@dataclass(frozen=True)
class Picked:
    """A case chosen from a menu.

    Args:
        run: None for an uploaded recording.
    """

    run: Run | None
    name: str
    case: Case


def menu(
    label: str,
    options: Sequence[T],
    *,
    key: str,
    column: DeltaGenerator | None = None,
    index: int = 0,
    **more: Any,
) -> T:
    """The entry chosen from a menu, which is part of the page's link; `more` as for Streamlit."""
    place = st if column is None else column
    asked, text = links.asked(key), more.get("format_func", str)
    texts = [text(one) for one in options]
    first = links.default_of(key, texts, index)
    chosen: T = place.selectbox(label, options, index=first, key=key, bind="query-params", **more)
    links.record(key, text(chosen))
    typed = [text(chosen)] if more.get("accept_new_options") else []
    name_unusable(label, key, asked, [*texts, *typed], text(chosen))
    return chosen


def switch(label: str, *, key: str, value: bool = False, **more: Any) -> bool:
    """An on-off control, which is part of the page's link; `more` as for Streamlit."""
    first = bool(links.default_of(key, ["false", "true"], value))
    on: bool = st.toggle(label, first, key=key, bind="query-params", **more)
    links.record(key, str(on).lower())
    return on


def name_unusable(
    label: str, key: str, asked: str | None, offered: Collection[str], shown: str
) -> None:
    """Say which value of the page's link is not on offer, until another one is chosen.

    Args:
        asked: the value in the link, read before the control was made.
        shown: the text of the value that is used instead.
    """
    notes: dict[str, tuple[str, str]] = st.session_state.setdefault("unusable", {})
    if asked is not None and asked not in offered:
        wanted = escaped(f"{label} {asked[:MAX_ASKED]}, which is not on offer; showing {shown}.")
        notes[key] = (shown, f"This link asks for {wanted}")
    elif key in notes and notes[key][0] != shown:
        del notes[key]
    if key in notes:
        st.warning(notes[key][1])


def choose_subject(label: str, uploads: Collection[str]) -> str:
    """A question, a measured case or, if there are `uploads`, an uploaded plan."""
    kinds = [ASKED, MEASURED, *([UPLOADED] if uploads else [])]
    kind: str = st.segmented_control(
        label,
        kinds,
        default=kinds[links.default_of("of", kinds, 0)],
        required=True,
        key="of",
        bind="query-params",
        label_visibility="collapsed",
    )
    links.record("of", kind)
    return kind


def show_table(
    table: pd.DataFrame,
    formats: Mapping[str, str] | None = None,
    meanings: Mapping[str, str] | None = None,
    **more: Any,
) -> Any:
    """A table without its index; `more` as for Streamlit.

    Args:
        formats: printf format or name of a format by column.
        meanings: help by column, for columns with a format.
    """
    number, texts = st.column_config.NumberColumn, meanings or {}
    columns = {
        name: number(format=text, help=texts.get(name)) for name, text in (formats or {}).items()
    }
    return st.dataframe(table, hide_index=True, column_config=columns, **more)


def show_split_curve(
    plan: DecodePlan, points: pd.DataFrame, marks: dict[str, tuple[float, float]]
) -> None:
    """Makespan of even splits with some of them marked, KVPR's split, and the LP's makespan."""
    kvpr = kvpr_count(plan)
    at_kvpr = points.loc[points["tokens"] == kvpr, "makespan_s"]
    if len(at_kvpr):
        marks = {"kvpr": (float(kvpr), float(at_kvpr.iloc[0])), **marks}
    levels = {"lp": plan.baselines["lp"]}
    if plan.gpus == 1:
        levels["no split is faster"] = plan.lower_bound_s
    chart(split_curve(points, marks, levels), "Makespan over recomputed tokens", "split")


def chart(figure: Figure, alt: str, key: str, bare: bool = False) -> None:
    """A figure in the theme of the page; on phones a finger on it scrolls the page."""
    if on_phone():
        bare = True
        fit_phone(figure)
    st.plotly_chart(figure, config=BARE_CHART if bare else CHART, alt=alt, key=key)


def choose_view(views: Sequence[str]) -> str:
    """The chosen view of a page, by default the first; part of the page's link."""
    view: str = st.segmented_control(
        "View",
        list(views),
        default=views[links.default_of("view", views, 0)],
        required=True,
        key="view",
        bind="query-params",
        label_visibility="collapsed",
    )
    links.record("view", view)
    return view


def set_style() -> None:
    """Text with enough contrast; in narrow windows, cards two by two and pairs in one column."""
    st.html(f"<style>{STYLE}</style>")


def on_phone() -> bool:
    """Whether the visitor's browser says that it is a phone's."""
    return "Mobi" in st.context.headers.get("User-Agent", "")


def question_columns() -> tuple[DeltaGenerator, DeltaGenerator]:
    """Room for the controls of a question, and for its answer; on phones the first is a drawer."""
    left, answer = st.columns([1, 2.8], gap="large")
    return (left.expander("Change the question") if on_phone() else left), answer


def headline_place() -> DeltaGenerator:
    """Room for the first sentence of an answer; on phones it stays in sight."""
    return st.container(key="headline")


def pair(key: str, widths: Sequence[float] = (1, 1)) -> tuple[DeltaGenerator, DeltaGenerator]:
    """Two columns, or one below the other in a narrow window."""
    left, right = st.container(key=f"pair_{key}").columns(widths, gap="large")
    return left, right


def cards(metrics: Sequence[Metric]) -> None:
    """Values side by side, each with its meaning as help."""
    columns = st.container(key="cards").columns(len(metrics))
    for column, metric in zip(columns, metrics, strict=True):
        column.metric(
            metric.label,
            metric.value,
            delta=metric.below,
            delta_color="off",
            delta_arrow="off",
            help=metric.meaning,
            border=True,
        )


def pick_case(about: str = "", restores: bool | None = None) -> Picked | None:
    """The case chosen from menus of runs and cases; without runs None, with an invitation.

    Args:
        about: the subject of the page, shown next to the menus.
        restores: offer only restores, or only decodes; by default all.

    Raises:
        KvOverlapError: the chosen case cannot be read.
    """
    found = all_runs() if restores is None else runs_with(restores)
    runs = {run.label: run for run in found}
    recordings = {f"{name} (uploaded)": name for name in uploaded_recordings(restores)}
    if not runs and not recordings:
        show_invitation(RESTORE_RUN if restores else DECODE_RUN)
        return None
    left, right, rest = st.columns([2, 2, 2], vertical_alignment="bottom")
    rest.caption(about)
    chosen = menu("Run", [*recordings, *runs], key="run", column=left)
    if chosen in recordings:
        name = recordings[chosen]
        return Picked(None, name, uploaded_case(name))
    run = runs[chosen]
    name = menu("Case", cases_of(run, restores), key="case", column=right)
    folder = run.case_folder(name)
    case = stored_case(folder, case_stamp(folder))
    links.check_graph(case.graph.sha256, f"{name} of run {run.label}")
    return Picked(run, name, case)


def show_invitation(commands: Sequence[str] = DECODE_RUN) -> None:
    """The commands to measure a first run."""
    st.header("No run to show yet", anchor=False)
    st.write(
        "One command profiles this machine, plans a grid of cases, predicts each, runs it and "
        "stores the measurements. It takes a few minutes and needs no GPU."
    )
    for number, command in enumerate(commands):
        if number:
            st.write("Outside a checkout:")
        st.code(command, language="bash")
    st.caption(
        f"Then reload this page. Runs are read from {OWN_RUNS.resolve()}. The page Your machine "
        "starts the same command."
    )


def show_command(question: Question, policy: str = "lp") -> None:
    """The command that gives the answer shown, with the profile that it needs."""
    st.code(question.command(policy), language="bash", wrap_lines=True)
    if question.needs_profile:
        st.caption(f"No option of the command makes these changes: they are in {CHANGED_PROFILE}.")
        st.download_button(
            f"Download {CHANGED_PROFILE}",
            lambda: saved_bytes(question.machine),
            file_name=CHANGED_PROFILE,
            mime="application/json",
            on_click="ignore",
            key="changed_profile",
        )


def table_downloads(table: Callable[[], pd.DataFrame], stem: str) -> None:
    """Buttons that give a table as CSV and as Parquet."""
    row = st.container(horizontal=True)
    kinds: tuple[tuple[str, str, Callable[[pd.DataFrame], bytes]], ...] = (
        ("CSV", "text/csv", csv_bytes),
        ("Parquet", "application/vnd.apache.parquet", parquet_bytes),
    )
    for name, mime, write in kinds:
        row.download_button(
            f"Table as {name}",
            lambda write=write: write(table()),
            file_name=f"{stem}.{name.lower()}",
            mime=mime,
            on_click="ignore",
            key=f"{stem}_{name}",
        )


def upload_box(label: str) -> str | None:
    """A file uploader; says what an accepted file is, and why another is refused.

    Returns:
        Name of a file that was accepted in this run of the page.
    """
    file = st.file_uploader(
        label,
        type=["json", "jsonl", "gz", "sqlite", "csv"],
        max_upload_size=MAX_UPLOAD_MB,
        key="upload_file",
        label_visibility="collapsed",
    )
    if file is None:
        return None
    read: tuple[str, Upload | str] = st.session_state.get("read_file", ("", ""))
    new = None
    if read[0] != file.file_id:
        try:
            upload = read_upload(file.name, file.getvalue())
            keep_upload(upload, file.size)
            new, read = upload.name, (file.file_id, upload)
        except KvOverlapError as error:
            read = file.file_id, str(error)
        st.session_state["read_file"] = read
    found = read[1]
    if isinstance(found, str):
        st.error(f"{REFUSED}{escaped(found)}")
    elif found.name in uploads():
        st.success(f"{found.name} is a {found.kind}.")
    return new
