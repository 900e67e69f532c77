"""All checks of one device in order."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from hw.backends import Backend, open_backend
from hw.doctor.check import Check, Durations, guarded
from hw.doctor.compute import Sustained, check_steadiness, sustained, sustained_check
from hw.doctor.concurrency import check_overlap
from hw.doctor.copies import check_copies, link_of
from hw.doctor.disk import check_disk
from hw.doctor.machine import (
    check_attention,
    check_clocks,
    check_device,
    check_extras,
    check_host,
    check_link,
    check_page_locking,
    check_software,
    device_state,
)
from sim.progress import Progress, Silent

LIMIT_S = 75.0
"""Checks that would start later are skipped, so that the table is complete within 90 s."""

Named = tuple[str, Callable[[], Check]]

SILENT = Silent()


def examine(
    kind: str,
    durations: Durations | None = None,
    more: Callable[[Backend], list[Named]] = lambda _: [],
    progress: Progress = SILENT,
    limit_s: float = LIMIT_S,
) -> list[Check]:
    """Run all checks of a device; a check that raises fails, and the others still run.

    Args:
        kind: `cpu` or `cuda`.
        more: further checks by name, run before the long matmuls; they need the open device.
        progress: receives the next check and the fraction done.
        limit_s: checks that would start later are skipped with a warning.
    """
    durations = durations or Durations()
    found: list[Check] = []
    deadline_s = time.monotonic() + limit_s
    total = 0

    def run(named: list[Named]) -> None:
        for name, check in named:
            progress(name, len(found) / total if total else 0.0)
            if time.monotonic() > deadline_s:
                advice = f"Earlier checks took {limit_s:g} s: repeat on an idle machine."
                found.append(Check(name, "warned", "not checked", advice))
                continue
            found.append(guarded(name, check))

    def on_device() -> Check:
        nonlocal total
        with open_backend(kind) as backend:
            named = [*_device_checks(backend, durations, more(backend))]
            total = len(found) + len(named)
            run(named)
        return Check("backend", "passed", "opened, and closed after all work had ended")

    run([("software", check_software), ("extras", check_extras), ("host", check_host)])
    found.append(guarded("backend", on_device))
    return found


def _device_checks(backend: Backend, durations: Durations, more: list[Named]) -> list[Named]:
    """The checks that need an open device; clocks and link are read under the sustained load."""
    read = partial(device_state, backend)
    state: dict[str, Any] = {}

    def check_sustained() -> Check:
        result: Sustained = sustained(backend, durations.sustained_s, durations.idle_s, read)
        state.update(result.during)
        return sustained_check(result)

    def copies() -> Check:
        return check_copies(backend, durations, link_of(state))

    gpu: list[Named] = []
    if backend.kind == "cuda":
        gpu = [("clocks", lambda: check_clocks(state)), ("link", lambda: check_link(state))]
    return [
        ("device", partial(check_device, backend)),
        ("attention", partial(check_attention, backend)),
        *more,
        ("page-locking", partial(check_page_locking, backend, durations)),
        ("sustained matmul", check_sustained),
        *gpu,
        ("copies", copies),
        ("overlap", partial(check_overlap, backend, durations)),
        ("steadiness", partial(check_steadiness, backend, durations)),
        ("disk", partial(check_disk, backend, durations)),
    ]
