"""Reference kernels, sampled again and again to show how fast a machine is now.

Each part of the machine that bounds kernels has one. The profile of a CPU samples it just before
and after every kernel, and the speed probe just before and after every run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from statistics import mean, median

from hw.calibrate import attention, gemm
from hw.calibrate.bench import Bench
from hw.calibrate.tables import Sampler, Samplers
from sim.machine.provenance import Point
from sim.model.spec import ModelSpec

FLOPS, HBM, ATTENTION = "flops", "hbm", "attention"

RECOMPUTED_ROWS = 512
DECODED_ROWS = 4
"""Rows of the reference matmuls."""

ATTENDED = (2, 256)
"""Batch and context of the reference attention."""

FLOPS_BOUND_ROWS = 16
"""Rows from which on the FLOP rate bounds a matmul of a CPU."""


def references(bench: Bench, model: ModelSpec, max_rows: int) -> dict[str, Samplers]:
    """Points by the part that bounds them: a recomputation, a decode step's matmuls, its attention.

    A GPU's attention is taken to change as its matmuls of a decode step do.

    Args:
        max_rows: rows of the largest recomputation that the profile knows.
    """
    parts = {
        FLOPS: gemm.recomputations(bench, model, [min(RECOMPUTED_ROWS, max_rows)]),
        HBM: gemm.matmuls(bench, model, [DECODED_ROWS]),
    }
    if bench.backend.kind == "cpu":
        batch, context = ATTENDED
        contexts = [min(context, model.max_positions)]
        parts[ATTENTION] = attention.decodes(bench, model, [batch], contexts)
    return parts


def bounding_part(point: Point) -> str:
    """The part of a CPU whose reference kernel slows down as the kernel of `point` does."""
    kind = point[0]
    if kind == "attention":
        return ATTENTION
    if kind == "prefill" or (kind in ("gemm", "experts") and int(point[-1]) >= FLOPS_BOUND_ROWS):
        return FLOPS
    return HBM


class RelativeSamples:
    """Samples of kernels relative to reference kernels, on a machine whose speed changes.

    A CPU of a shared host becomes slower and faster again within some hundred milliseconds. A
    kernel and the reference kernel just before and after it slow down alike, so the ratio of their
    times is that of an undisturbed machine.

    Args:
        parts: points by part, from `references`. The first of each part is the reference.
    """

    def __init__(self, parts: Mapping[str, Samplers]) -> None:
        self._references = {part: next(iter(points.items())) for part, points in parts.items()}
        self._reference_s: dict[str, list[float]] = {part: [] for part in parts}
        self._ratios: dict[Point, list[float]] = defaultdict(list)
        self._latest: str | None = None

    def begin_pass(self) -> None:
        """Other things were sampled since the latest reference kernel."""
        self._latest = None

    def sample(self, point: Point, sampler: Sampler) -> None:
        """Sample a kernel, and its reference kernel just before and after it."""
        part = bounding_part(point)
        reference, _ = self._references[part]
        if part != self._latest:
            self._sample_reference(part)
        if point == reference:
            return
        before_s, seconds = self._reference_s[part][-1], median(sampler())
        after_s = self._sample_reference(part)
        self._ratios[point].append(seconds / mean((before_s, after_s)))

    def _sample_reference(self, part: str) -> float:
        _, sampler = self._references[part]
        self._reference_s[part].append(median(sampler()))
        self._latest = part
        return self._reference_s[part][-1]

    def samples(self) -> dict[Point, list[float]]:
        """Seconds of each kernel on a machine whose reference kernels take their least time."""
        least_s = {part: min(seconds) for part, seconds in self._reference_s.items() if seconds}
        found = {self._references[part][0]: [seconds] for part, seconds in least_s.items()}
        for point, ratios in self._ratios.items():
            found[point] = [ratio * least_s[bounding_part(point)] for ratio in ratios]
        return found
