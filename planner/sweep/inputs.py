"""Inputs of a study: names, how their values are written, and defaults."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from planner.decode.lower import SCHEDULES
from planner.decode.policies import fixed_tokens
from planner.restore.planner import RESTORE_POLICIES
from planner.restore.reproduce import link_rate
from planner.sweep.traces import request_trace
from sim.catalog import find_hardware, find_runtime
from sim.errors import BadInput, UnknownName
from sim.graph.jobs import CACHED_DATA, KV, KV_BITS, UNCOMPRESSED
from sim.lanes import TIERS
from sim.machine.links import COPY_KINDS
from sim.machine.what_if import RATES, rate_unit
from sim.model.config import READERS
from sim.model.spec import DTYPE_BYTES, MODEL_SIZES
from sim.service import LOAD_ORDERS, ROUTINGS, SERVICE_POLICIES, STORES, TIER_EVICTIONS
from sim.traces.measured import open_trace
from sim.units import RATE_EXAMPLES, parse_bytes, parse_count, parse_rate

Value = str | int | float | bool
Reader = Callable[[str, Any], Value]
"""Converts a key's value to SI units; raises BadInput that names the key."""

AUTO = "auto"

AS_ASKED = 0
"""Bits of a cache that the checkpoint of each point's model decides; no study writes it."""


@dataclass(frozen=True)
class Input:
    """One input of a point.

    Args:
        read: checks and converts the value in the study.
        default: value where the study has none. None leaves the model or machine unchanged;
            `REQUIRED` means that every study must set it.
        unit: of the value in tables.
    """

    read: Reader
    default: Value | None = None
    unit: str = ""


REQUIRED = ""


def read_text(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise BadInput(f"{key}(={value!r}) must be a text with at least one character.")
    return value


def read_count(key: str, value: Any) -> int:
    """A whole number of at least 1, or a text such as 4K."""
    if isinstance(value, str):
        return parse_count(key, value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**53:
        raise BadInput(
            f"{key}(={value!r}) must be a whole number of at least 1, such as 32 or '4K'."
        )
    return value


def read_whole(key: str, value: Any) -> int:
    """A whole number of at least 0."""
    return 0 if value == 0 and not isinstance(value, bool) else read_count(key, value)


def read_rate(key: str, value: Any) -> float:
    unit = rate_unit(key)
    if isinstance(value, str):
        return parse_rate(key, value, unit)
    return _positive(key, value, RATE_EXAMPLES[unit])


def read_bytes(key: str, value: Any) -> float:
    return parse_bytes(key, value) if isinstance(value, str) else _positive(key, value, "24GiB")


def _positive(key: str, value: Any, example: str) -> float:
    number = _number(key, value)
    if not 0 < number < math.inf:
        raise BadInput(f"{key}(={value!r}) must be above 0 and finite, such as {example!r}.")
    return number


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadInput(f"{key}(={value!r}) must be a number.")
    try:
        return float(value)
    except OverflowError:
        raise BadInput(f"{key} must be a number that fits 64 bits; this one is larger.") from None


def read_share(key: str, value: Any) -> float:
    share = _number(key, value)
    if not 0 < share <= 1:
        raise BadInput(f"{key}(={value!r}) must be above 0 and at most 1.")
    return share


def read_flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadInput(f"{key}(={value!r}) must be true or false.")
    return value


def read_size(key: str, value: Any) -> float:
    """A size in bytes; 0 is one too."""
    return 0.0 if value in (0, "0") and not isinstance(value, bool) else read_bytes(key, value)


def read_decimal(key: str, value: Any) -> float:
    """A finite number of at least 0."""
    number = _number(key, value)
    if not 0 <= number < math.inf:
        raise BadInput(f"{key}(={value!r}) must be a number of at least 0.")
    return number


def one_of(known: Collection[str | int]) -> Reader:
    def read(key: str, value: Any) -> Value:
        if isinstance(value, bool) or not isinstance(value, str | int) or value not in known:
            choices = ", ".join(str(one) for one in known)
            raise BadInput(f"{key}(={value!r}) must be one of {choices}.")
        return value

    return read


def _named(check: Callable[[str], object]) -> Reader:
    """Reads a name for which `check` raises nothing."""

    def read(key: str, value: Any) -> str:
        name = read_text(key, value)
        try:
            check(name)
        except BadInput as error:
            raise BadInput(f"{key}: {error}") from None
        return name

    return read


def read_tier(key: str, value: Any) -> str:
    """A tier by name, or a link by its rate."""
    if isinstance(value, str) and value in TIERS:
        return value
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadInput(f"{key}(={value!r}) must be {', '.join(TIERS)}, a rate, or Gbps.")
    link_rate(key, value)
    return str(value)


def _restore_policy(name: str) -> None:
    if name not in RESTORE_POLICIES:
        raise UnknownName("policy", name, RESTORE_POLICIES)


MACHINE_AND_MODEL: dict[str, Input] = {
    "model": Input(read_text, REQUIRED),
    "assume_like": Input(one_of(tuple(READERS))),
    "hardware": Input(_named(find_hardware), REQUIRED),
    "prompt": Input(read_count, REQUIRED, "tokens"),
    "dequantise": Input(read_flag),
    "dtype": Input(one_of(tuple(DTYPE_BYTES))),
    "tp": Input(read_count, unit="GPUs"),
    "ep": Input(read_count, unit="GPUs"),
    "gpu_memory": Input(read_bytes, unit="bytes"),
    "link_from": Input(_named(open_trace)),
    "copies": Input(one_of(COPY_KINDS)),
    "runtime": Input(_named(find_runtime)),
    **{f"model.{size}": Input(read_count) for size in MODEL_SIZES},
    **{
        key: Input(read_rate, unit="FLOP/s" if rate_unit(key) == "FLOP" else "bytes/s")
        for key in RATES
    },
}
DECODE: dict[str, Input] = {
    **MACHINE_AND_MODEL,
    "batch": Input(read_count, REQUIRED, "sequences"),
    "gen": Input(read_count, 1, "tokens"),
    "policy": Input(_named(fixed_tokens), "lp"),
    "schedule": Input(one_of((*SCHEDULES, AUTO)), "row"),
    "n_batches": Input(read_count, 1),
    "gpus": Input(read_count, 1),
    "keep": Input(read_flag),
    "kv_bits": Input(one_of((UNCOMPRESSED, 8, 4)), UNCOMPRESSED),
    "host_memory": Input(read_bytes, unit="bytes"),
    "resident_layers": Input(read_whole, unit="layers"),
}
RESTORE: dict[str, Input] = {
    **MACHINE_AND_MODEL,
    "cached": Input(read_count, unit="tokens"),
    "tier": Input(read_tier, "dram"),
    "chunk": Input(read_count, 512, "tokens"),
    "io_chunk": Input(read_count, 128, "tokens"),
    "cached_data": Input(one_of(CACHED_DATA), KV),
    "gpu_share": Input(read_share, 1.0),
    "kv_bits": Input(one_of(KV_BITS), UNCOMPRESSED),
    "policy": Input(_named(_restore_policy), AUTO),
}
GENERATED: dict[str, Input] = {
    "rate": Input(read_decimal, unit="requests/s"),
    "burstiness": Input(read_decimal),
    "turns": Input(read_decimal, unit="requests"),
    "think": Input(read_decimal, unit="s"),
    "agents": Input(read_decimal),
    "system_prompts": Input(read_count),
    "system_tokens": Input(read_count, unit="tokens"),
    "new_tokens": Input(read_count, unit="tokens"),
    "output_tokens": Input(read_count, unit="tokens"),
    "seed": Input(read_whole),
}
"""How requests are generated, as the options of `traffic --generate`."""

TRAFFIC: dict[str, Input] = {
    **{key: one for key, one in MACHINE_AND_MODEL.items() if key not in ("prompt", "runtime")},
    "trace": Input(_named(request_trace)),
    "generate": Input(read_count, unit="requests"),
    **GENERATED,
    "block_tokens": Input(read_count, unit="tokens"),
    "host_cache": Input(read_size, 0.0, "bytes"),
    "ssd_cache": Input(read_size, 0.0, "bytes"),
    "net_cache": Input(read_size, 0.0, "bytes"),
    "policy": Input(one_of(SERVICE_POLICIES), "load-only"),
    "load_order": Input(one_of(LOAD_ORDERS), "fcfs"),
    "cache_eviction": Input(one_of(TIER_EVICTIONS), "lru"),
    "store": Input(one_of(STORES), "through"),
    "exclusive": Input(read_flag, False),
    "instances": Input(read_count, 1),
    "routing": Input(one_of(ROUTINGS), "round-robin"),
    "chunk": Input(read_count, 8192, "tokens"),
    "io_chunk": Input(read_count, 128, "tokens"),
    "max_batch": Input(read_count, 256, "requests"),
    "kv_bits": Input(one_of(KV_BITS), UNCOMPRESSED),
    "ttft_slo": Input(read_decimal, unit="s"),
    "tpot_slo": Input(read_decimal, unit="s"),
    "gpu_hour": Input(read_decimal),
    "gb_month": Input(read_decimal),
}
SCENARIOS = {"decode": DECODE, "restore": RESTORE, "traffic": TRAFFIC}
