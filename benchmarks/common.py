"""Options, clock and progress that the benchmark scripts share."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any


def options(doc: str | None, **defaults: int | str) -> argparse.Namespace:
    """Parsed `--json` and an option for each default."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def counted(cases: int) -> Iterator[int]:
    """Numbers of the cases; a terminal shows the current one."""
    for number in range(cases):
        if sys.stderr.isatty():
            print(f"\r{number + 1} of {cases}", end="", file=sys.stderr)
        yield number


def report(found: dict[str, Any], as_json: bool, *lines: str) -> None:
    """Print the result as JSON or as lines."""
    print(json.dumps(found, indent=1) if as_json else "\n".join(lines))
