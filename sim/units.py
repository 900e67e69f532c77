"""Numbers as people write them (32K tokens, 0.4GB/s) and as they read them (41.2 ms, 6.1 %)."""

from __future__ import annotations

import math
import re

from sim.errors import BadInput

_BINARY = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def parse_count(name: str, text: str) -> int:
    """A whole number of at least 1; `K` and `M` are 1024 and 1024**2, as with context lengths.

    Raises:
        BadInput: not a whole number, or below 1.
    """
    match = re.fullmatch(r"([+-]?\d+(?:\.\d+)?)([KkMm]?)", text.strip(), re.ASCII)
    value = float(match[1]) * _BINARY[match[2].upper()] if match else float("nan")
    if not 1 <= value < math.inf or value != int(value):
        raise BadInput(f"{name}(={text}) must be a whole number of at least 1, such as 32 or 4K.")
    return int(value)


def parse_counts(name: str, text: str) -> list[int]:
    """Comma-separated counts, in rising order and without repeats."""
    return sorted({parse_count(name, part) for part in text.split(",")})


RATE_EXAMPLES = {"B": "25GB/s", "FLOP": "312TFLOP/s"}


def parse_rate(name: str, text: str, unit: str = "B") -> float:
    """Bytes per second (`25GB/s`, `24GiB/s`), or operations per second (`312TFLOP/s`).

    Args:
        unit: `B` or `FLOP`; a text without unit is in it.

    Raises:
        BadInput: not a number of at least 1, or in another unit.
    """
    match = re.fullmatch(
        r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*([kKMGT]?)(i?)(B|FLOP)?(?:/s)?", text.strip(), re.ASCII
    )
    rate = 0.0
    if match and match[4] in (None, unit):
        scale = _BINARY[match[2].upper()] if match[3] else _DECIMAL[match[2]]
        rate = float(match[1]) * scale
    if not 1 <= rate < math.inf:
        example = RATE_EXAMPLES[unit]
        raise BadInput(f"{name}(={text}) must be a rate of at least 1 {unit}/s, such as {example}.")
    return rate


def parse_bytes(name: str, text: str) -> float:
    """A memory size: `24GiB`, `40GB` or bytes.

    Raises:
        BadInput: not a positive number of bytes.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*([kKMGT]?)(i?)B?", text.strip(), re.ASCII)
    if not match or not 0 < float(match[1]) < math.inf or (match[3] and not match[2]):
        raise BadInput(f"{name}(={text}) must be a size above 0, such as 24GiB or 40GB.")
    return float(match[1]) * (_BINARY[match[2].upper()] if match[3] else _DECIMAL[match[2]])


def parse_sizes(name: str, text: str) -> tuple[float, ...]:
    """Comma-separated sizes in bytes; 0 is one too.

    Raises:
        BadInput: one is no size.
    """
    parts = [part.strip() for part in text.split(",")]
    return tuple(0.0 if part == "0" else parse_bytes(name, part) for part in parts)


def ms(seconds: float) -> str:
    """Milliseconds, or microseconds below a tenth of one."""
    return f"{seconds * 1e3:,.1f} ms" if abs(seconds) >= 1e-4 else f"{seconds * 1e6:,.1f} us"


def error_text(error_frac: float) -> str:
    """A prediction's error in words: `1.1 % too fast` where the measurement took longer."""
    if f"{abs(error_frac):.1%}" == "0.0%":
        return "no error in three digits"
    return f"{percent(abs(error_frac))} too {'fast' if error_frac < 0 else 'slow'}"


def counted(count: int, word: str) -> str:
    """A number with its word: `1 step`, `1,024 tokens`."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def percent(fraction: float, signed: bool = False) -> str:
    return f"{100 * fraction:+.1f} %" if signed else f"{100 * fraction:.1f} %"


def duration_text(seconds: float) -> str:
    """A time in the unit that suits it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
