"""`kvoverlap accuracy --published`: figures that others measured, and today's predictions."""

from kvoverlap.cli.output import markdown_table, say, table
from planner.published import GROUPS, Errors, Predicted, PublishedAccuracy
from sim.units import ms, percent

COLUMNS = ("figure", "quantity", "predicted", "published", "error", "limit", "")
ERROR_COLUMNS = (
    "",
    "calibrated",
    "figures",
    "mean |error|",
    "worst",
    "order",
    "explained",
    "mean of the others",
)


def print_published(found: PublishedAccuracy) -> None:
    """Every figure with its error, then the errors by group and by source, then the reasons."""
    table("published figures", COLUMNS, figure_rows(found))
    say("")
    table("by group", (*ERROR_COLUMNS, "target"), group_rows(found))
    say("")
    table("by source", ERROR_COLUMNS, source_rows(found))
    say("")
    say("error: predicted / published - 1; means are of its absolute value. Figures that gave a")
    say("constant are left out. explained: beyond the limit, with the reason below; the target is")
    say("for the mean of the others.")
    say("order: pairs of figures of one quantity that are predicted in their order.")
    for line in explanations(found):
        say(line)
    for fault in found.faults:
        say(fault)


def figure_rows(found: PublishedAccuracy) -> list[tuple[str, ...]]:
    return [
        (
            one.cell.id,
            one.cell.quantity,
            amount(one.cell.quantity, one.predicted),
            amount(one.cell.quantity, one.cell.value),
            percent(one.error_frac, signed=True),
            percent(one.limit_frac),
            one.verdict,
        )
        for one in found.figures
        if one.error_frac is not None
    ]


def group_rows(found: PublishedAccuracy) -> list[tuple[str, ...]]:
    rows = [
        (group.title, found.of_group(name), percent(group.mean_frac))
        for name, group in GROUPS.items()
    ]
    return [(*_errors(title, errors), target) for title, errors, target in rows if errors.cells]


def source_rows(found: PublishedAccuracy) -> list[tuple[str, ...]]:
    rows = [(name, found.of_source(name)) for name in found.sources]
    return [_errors(name, errors) for name, errors in rows if errors.cells or errors.calibrated]


def _errors(title: str, errors: Errors) -> tuple[str, ...]:
    def shown(value: float | None, signed: bool = False) -> str:
        return "" if value is None else percent(value, signed=signed)

    return (
        title,
        str(errors.calibrated),
        str(errors.cells),
        shown(errors.mean_abs_frac),
        shown(errors.worst_frac, signed=True),
        shown(errors.order_frac),
        str(errors.explained),
        shown(errors.unexplained_mean_frac),
    )


def explanations(found: PublishedAccuracy) -> list[str]:
    """One sentence for each reason, with the figures that it holds for."""
    reasons: dict[str, list[Predicted]] = {}
    for one in found.figures:
        if one.verdict in ("missed", "not predicted", "calibrated"):
            what = one.cell.explanation
            if one.verdict == "calibrated":
                what = f"gave {one.cell.calibrates}"
            reasons.setdefault(f"{one.verdict}: {what}", []).append(one)
    return [
        f"{reason}: {', '.join(one.cell.id for one in figures)}"
        for reason, figures in reasons.items()
    ]


def amount(quantity: str, value: float | None) -> str:
    """A value in a unit that people read."""
    if value is None:
        return ""
    if quantity.endswith("bytes_per_s"):
        return f"{value / 1e9:.2f} GB/s"
    if quantity.endswith("_s"):
        return ms(value)
    return f"{value:.2f}"


def published_markdown(found: PublishedAccuracy) -> str:
    """The same report as a Markdown document."""
    lines = ["## Published figures", ""]
    lines += markdown_table((*ERROR_COLUMNS, "target"), group_rows(found))
    lines += ["", *markdown_table(ERROR_COLUMNS, source_rows(found))]
    lines += ["", *markdown_table(COLUMNS, figure_rows(found))]
    lines += ["", *(f"- {line}" for line in (*explanations(found), *found.faults))]
    return "\n".join(lines) + "\n"
