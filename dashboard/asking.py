"""`answer`: what a page calls for anything that may take longer than a blink.

    plan = answer(question.plan, "lp", key=question.key, about=Asked(question.n_tasks, command))

The call runs in a process of its own (`dashboard.workers`). Its answer is cached for all visitors.
After `SHOWN_AFTER_S` the page shows a progress bar and a button to cancel. The process is killed
when its visitor cancels, changes a control, leaves the page or closes the tab, and when it has used
its budget. A question of too many tasks is refused before it starts, with its command.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from dashboard.questions.offered import MAX_TASKS
from dashboard.questions.remedies import (
    SAFE_MACHINE,
    SAFE_MODEL,
    Asking,
    Remedy,
    remedies_for,
    safe,
)
from dashboard.text.comparison import escaped
from dashboard.text.refusal import describe_refusal
from dashboard.workers import WORKERS, Call, OverBudget, Task
from sim.errors import KvOverlapError

SHOWN_AFTER_S = 0.8
"""Seconds until a running call shows its progress."""

LOOK_S = 0.1
"""Interval at which a waiting page looks for the answer and for its visitor."""

USUAL_S = 10.0
"""Time scale of the progress bar of a call that reports no fraction."""

SAFE = Remedy(
    f"Model {SAFE_MODEL} on {SAFE_MACHINE}", {"model": SAFE_MODEL, "hardware": SAFE_MACHINE}
)

CANCELLED, PLACE = "cancelled", "progress_place"

T = TypeVar("T")


class TooLarge(KvOverlapError):
    """A question is too large for the dashboard; `command` answers it."""

    def __init__(self, text: str, command: str) -> None:
        super().__init__(text)
        self.command = command


class Cancelled(KvOverlapError):
    """The visitor cancelled this call."""

    def __init__(self, key: str) -> None:
        super().__init__("Cancelled.")
        self.key = key


@dataclass(frozen=True, slots=True)
class Asked:
    """The size of a question and the command that answers it.

    Args:
        n_tasks: about how many tasks its graphs have.
        max_tasks: more are refused.
        unit: what is counted, if not tasks.
    """

    n_tasks: int
    command: str
    max_tasks: int = MAX_TASKS
    unit: str = "tasks"

    def check(self) -> None:
        """Raises TooLarge if there are more tasks than `max_tasks`."""
        if self.n_tasks > self.max_tasks:
            raise TooLarge(
                f"This question has about {self.n_tasks:,} {self.unit}, and the dashboard plans at "
                f"most {self.max_tasks:,}. The command line has no limit of time.",
                self.command,
            )


def answer(
    function: Callable[..., T],
    *arguments: Any,
    key: str,
    text: str = "Planning",
    about: Asked | None = None,
    reports: bool = False,
    place: DeltaGenerator | None = None,
) -> T:
    """What `function(*arguments)` returns, computed in another process or cached.

    Args:
        function: a function of a module below `dashboard.questions`, `planner` or `sim`, or a
            method of a value that can be pickled.
        key: text that is equal for equal arguments, such as `Question.key`; the name of the
            function is added to it.
        text: what the progress bar says until the function reports something else.
        about: its size, which is checked first, and its command.
        reports: pass a `sim.progress.Progress` as `progress`.
        place: of the progress bar; by default the top of the page, and in a fragment needed.

    Raises:
        TooLarge: `about` has too many tasks, or the budget is used up.
        Cancelled: this visitor cancelled the call before.
        KvOverlapError: the function raised it.
    """
    whole_key = key_of(function, key)
    if about is not None:
        about.check()
    if st.session_state.get(CANCELLED) == whole_key and not WORKERS.knows(whole_key):
        raise Cancelled(whole_key)
    task = WORKERS.join(Call(function, arguments, whole_key, reports))
    try:
        if not task.ended.is_set():
            _wait(task, text, place or st.session_state.get(PLACE) or st.empty())
    finally:
        WORKERS.leave(task)
    try:
        found: T = task.result()
    except OverBudget as error:
        raise TooLarge(*_over_budget(error, about)) from None
    return found


def key_of(function: Callable[..., Any], key: str) -> str:
    """The key of a call of a function."""
    return hashlib.sha256(f"{function.__qualname__} {key}".encode()).hexdigest()


def _over_budget(error: OverBudget, about: Asked | None) -> tuple[str, str]:
    text = f"This question was {error}"
    if about is None:
        return text, ""
    size = f"It has about {about.n_tasks:,} {about.unit}."
    return f"{text} {size} The command line has no limit of time.", about.command


def reserve_place() -> None:
    """Make room for progress bars at the top of a page, so that the last answer stays below it."""
    st.session_state[PLACE] = st.container(key="progress").empty()


def _wait(task: Task, text: str, place: DeltaGenerator) -> None:
    """Wait for a task. Every update of the page ends the wait if its visitor asked for another run
    or left."""
    waited_s, bar = 0.0, None
    while not task.ended.wait(LOOK_S):
        waited_s += LOOK_S
        if waited_s < SHOWN_AFTER_S:
            place.empty()
            continue
        if bar is None:
            row = place.container(horizontal=True, vertical_alignment="center")
            bar = row.empty()
            row.button(
                "Cancel",
                key=f"cancel {task.call.key}",
                on_click=_cancel,
                args=(task.call.key,),
            )
        bar.progress(*progress_of(task, text))
    place.empty()


def progress_of(task: Task, text: str) -> tuple[float, str]:
    """Fraction and text of a progress bar; without a reported fraction it slows down."""
    elapsed_s = task.elapsed_s
    if task.started_s is None:
        return 0.0, f"{text}: waiting for other questions of this server"
    done = elapsed_s / (elapsed_s + USUAL_S) if task.done is None else task.done
    return min(1.0, max(0.0, done)), f"{task.text or text}, {elapsed_s:.0f} s"


def _cancel(key: str) -> None:
    st.session_state[CANCELLED] = key


def show_cancelled() -> None:
    """That the last call was cancelled, with a button to ask again."""
    st.info("Cancelled. Change a control, or ask again.")
    st.button("Ask again", on_click=_forget_cancelled, key="ask_again")


def _forget_cancelled() -> None:
    st.session_state.pop(CANCELLED, None)


def show_refusal(error: KvOverlapError, asking: Asking | None = None) -> None:
    """Why there is no answer, and buttons with changes that lead to one.

    Args:
        asking: the refused question; without one the button sets a model and a machine.
    """
    show_reason(error)
    if asking is not None:
        show_remedies(error, asking)
    elif SAFE.settings.keys() <= st.session_state.keys() and not isinstance(error, Cancelled):
        show_buttons([SAFE])


def show_reason(error: KvOverlapError) -> None:
    """Why there is no answer; the command, if the question is too large."""
    if isinstance(error, Cancelled):
        show_cancelled()
        return
    st.error(escaped(describe_refusal(error)))
    if isinstance(error, TooLarge) and error.command:
        st.code(error.command, language="bash", wrap_lines=True)


def show_remedies(error: KvOverlapError, asking: Asking) -> None:
    """Buttons with changes of a refused question that lead to an answer."""
    if isinstance(error, Cancelled):
        return
    if isinstance(error, TooLarge):
        smaller = min(asking.max_tasks, asking.question.n_tasks // 4)
        asking = replace(asking, max_tasks=smaller, quick=True)
    text = "Looking for settings that have an answer"
    try:
        found = answer(remedies_for, asking, key=asking.key, text=text, reports=True)
    except (TooLarge, Cancelled):
        found = [safe(asking).remedy]
    show_buttons(found)


def show_refused_view(error: KvOverlapError, other: str) -> None:
    """Why a view of an answer cannot be shown, and a button for the view that can."""
    show_reason(error)
    show_buttons([Remedy(f"View {other}", {"view": other})], "views")


def show_buttons(remedies: Sequence[Remedy], key: str = "remedy") -> None:
    """A button for each change that leads to an answer."""
    row = st.container(horizontal=True, vertical_alignment="center")
    row.caption("These have an answer:", width="content")
    for number, remedy in enumerate(remedies):
        row.button(
            escaped(remedy.label), key=f"{key} {number}", on_click=_set, args=(remedy.settings,)
        )


def _set(settings: dict[str, Any]) -> None:
    """Set the controls of this page, also those that it does not show yet: their values are in the
    address."""
    for key, value in settings.items():
        if key in st.session_state or key in st.query_params:
            st.session_state[key] = value
