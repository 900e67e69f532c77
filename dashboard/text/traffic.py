"""Text, cards and the table of services under traffic."""

from __future__ import annotations

import pandas as pd

from dashboard.questions.traffic import TrafficAnswers, TrafficQuestion, size_text
from dashboard.text.comparison import Metric, count_of, escaped
from sim.service import Spread, TrafficAnswer
from sim.units import ms, percent

LONG_S = 10.0
"""Times from which on are shown in seconds."""

LESS_FRAC = 0.05
"""A cache pays if it lowers the p90 of TTFT by this part at least."""


def seconds_text(seconds: float) -> str:
    return ms(seconds) if seconds < LONG_S else f"{seconds:,.1f} s"


def summary(answers: TrafficAnswers) -> str:
    """Overload, or the size of the cache that is enough, in one line."""
    policy, size = answers.best
    best, without = answers.runs[policy, size], answers.runs[policy, min(answers.sizes)]
    if best.overloaded:
        return (
            f"Overload: {best.arrivals_over_served:.2f} requests arrive for each that is served, "
            f"even with {_cache(max(answers.sizes))}"
        )
    before_s, after_s = _p90(without), _p90(best)
    if size == min(answers.sizes) or after_s > (1 - LESS_FRAC) * before_s:
        first = (
            "A host cache does not pay here"
            if not size
            else f"{size_text(size)} of host cache is enough"
        )
        return f"{first}: p90 of TTFT {seconds_text(after_s)}"
    base = "without one" if not min(answers.sizes) else f"with {size_text(min(answers.sizes))}"
    return (
        f"{size_text(size)} of host cache is enough: p90 of TTFT {seconds_text(after_s)} with "
        f"{policy}, {seconds_text(before_s)} {base}"
    )


def _cache(size: float) -> str:
    return f"{size_text(size)} of host cache" if size else "no host cache"


def _p90(run: TrafficAnswer) -> float:
    return run.ttft_s.p90 if run.ttft_s is not None else 0.0


def overload(answers: TrafficAnswers) -> str | None:
    """Which runs are overloaded, and what would help; None if none is."""
    over = {key: run for key, run in answers.runs.items() if run.overloaded}
    if not over:
        return None
    worst = max(run.arrivals_over_served for run in over.values())
    if len(over) == len(answers.runs):
        what = "Requests arrive faster than they are served in every run"
    else:
        names = [f"{policy} with {size_text(size)}" for policy, size in over if size]
        names += ["no cache"] if any(not size for _, size in over) else []
        what = f"Requests arrive faster than they are served with {', '.join(names)}"
    return (
        f"{what}: up to {worst:.2f} for each that is served. Their waiting times grow with the "
        "length of the trace. Raise the number of instances or of GPUs, or lower the rate."
    )


def rejections(answers: TrafficAnswers) -> str | None:
    """Requests that fit no GPU memory; None if all do."""
    most = max(run.rejected for run in answers.runs.values())
    if not most:
        return None
    total = max(run.requests for run in answers.runs.values())
    return (
        f"{most:,} of {total:,} requests are too long for the GPU memory or the model and are "
        "left out."
    )


def describe_service(question: TrafficQuestion, answers: TrafficAnswers) -> str:
    """Model, machine, requests and blocks in one line."""
    instances, requests = question.settings.instances, question.requests
    places = f"{instances} x {question.tp} GPU" if instances * question.tp > 1 else "one GPU"
    skipped = f" ({count_of(requests.skipped, 'bad line')} left out)" if requests.skipped else ""
    return escaped(
        f"{question.whole.name} on {places} of {question.hardware.name}: "
        f"{requests.n_requests:,} requests{skipped} in {answers.span_s:,.0f} s; blocks of "
        f"{answers.block_tokens} tokens, {answers.block_bytes / 1e6:,.1f} MB; "
        f"{answers.gpu_blocks:,} of them in the GPU memory of an instance."
    )


def metrics(question: TrafficQuestion, answers: TrafficAnswers) -> list[Metric]:
    """The best policy at its knee."""
    policy, size = answers.best
    run, base = answers.runs[policy, size], answers.runs[policy, min(answers.sizes)]
    limits = [
        f"{name} {1e3 * limit:g} ms"
        for name, limit in (("TTFT", question.ttft_slo_s), ("TPOT", question.tpot_slo_s))
        if limit is not None
    ]
    where = f"{policy}, {size_text(size)}"
    return [
        Metric(
            "Hit rate",
            percent(sum(run.hit_rate.values())),
            f"{percent(sum(base.hit_rate.values()))} with {size_text(min(answers.sizes))}",
            f"Prompt tokens found in GPU memory or the cache ({where}).",
        ),
        _latency("TTFT p90", run.ttft_s, f"From arrival to the first token ({where})."),
        _latency("TPOT p90", run.tpot_s, f"Time of each later token ({where})."),
        Metric(
            "Goodput",
            percent(run.goodput.fraction) if limits else "no limits",
            f"of requests within {' and '.join(limits)}" if limits else "of TTFT and TPOT are set",
            "Requests that keep the limits of TTFT and time per token. Rejected ones do not.",
        ),
    ]


def _latency(label: str, spread: Spread | None, meaning: str) -> Metric:
    if spread is None:
        return Metric(label, "none", "nothing was served", meaning)
    return Metric(label, seconds_text(spread.p90), f"p50 {seconds_text(spread.p50)}", meaning)


def run_table(answers: TrafficAnswers) -> pd.DataFrame:
    """A row for each policy and size."""
    rows = []
    for (policy, size), run in answers.runs.items():
        times = {
            f"{name} {at} (ms)": None if spread is None else 1e3 * getattr(spread, at)
            for name, spread, points in (
                ("TTFT", run.ttft_s, ("p50", "p90", "p99")),
                ("TPOT", run.tpot_s, ("p50", "p90")),
                ("queue", run.queue_s, ("p90",)),
            )
            for at in points
        }
        rows.append(
            {
                "policy": policy,
                "host cache (GB)": size / 1e9,
                "hits (%)": 100 * sum(run.hit_rate.values()),
                "hits in the cache (%)": 100 * run.hit_rate.get("dram", 0.0),
                **times,
                "goodput (%)": 100 * run.goodput.fraction,
                "tokens/s": run.output_tokens_per_s,
                "GPU busy (%)": 100 * run.busy.get("compute", 0.0),
                "link busy (%)": 100 * run.busy.get("h2d", 0.0),
                "stored (GB)": sum(run.stored_blocks.values()) * answers.block_bytes / 1e9,
                "never read (GB)": sum(run.unread_blocks.values()) * answers.block_bytes / 1e9,
                "arrivals over served": run.arrivals_over_served,
            }
        )
    return pd.DataFrame(rows)


FORMATS = {
    "host cache (GB)": "localized",
    **dict.fromkeys(("hits (%)", "hits in the cache (%)", "goodput (%)"), "%.1f"),
    **{f"TTFT {at} (ms)": "%.1f" for at in ("p50", "p90", "p99")},
    **{f"TPOT {at} (ms)": "%.1f" for at in ("p50", "p90")},
    **dict.fromkeys(("queue p90 (ms)", "tokens/s", "GPU busy (%)", "link busy (%)"), "%.1f"),
    **dict.fromkeys(("stored (GB)", "never read (GB)"), "%.0f"),
    "arrivals over served": "%.2f",
}
MEANINGS = {
    "hits (%)": "Prompt tokens found in GPU memory or the host cache.",
    "queue p90 (ms)": "From arrival to admission.",
    "goodput (%)": "Requests within the limits of TTFT and time per token.",
    "never read (GB)": "Copied to the host cache and evicted, or left, without a hit.",
    "arrivals over served": "Above 1.05 is overload.",
}
