"""Errors of the predictions of all recordings, case by case.

A recording is a folder with `cases/<case>/`, each holding `measured.json.gz` (graph, machine and
measured timelines) and `case.json` (policy, tolerance). Predictions are not stored: every
assessment simulates the recorded graph with the engine of today, on the recorded machine or on
another description of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

from sim.engine.api import simulate
from sim.errors import BadFile, BadInput, KvOverlapError
from sim.files import STRICT_KEYS, parse, read_json, set_fields, write_json
from sim.machine.profile import HardwareProfile
from sim.model.spec import DTYPE_BYTES
from sim.results.compare import compare
from sim.results.recording import Recording
from sim.units import ms, percent

CASES = "cases"
CASE = "case.json"
MEASURED = "measured.json.gz"
PROFILE = "profile.json"

TOLERANCE_FRAC = {"cpu": 0.10, "cuda": 0.05}
"""Largest allowed error of a steady case by device kind; a noisy case may have twice its spread."""

DISTINCT_FRAC = 0.01
"""Measured makespans that differ by less are not put in an order."""


@dataclass(frozen=True, slots=True)
class RecordedCase:
    """The policy of a measured plan, and the allowed error of its prediction.

    Args:
        tolerance_frac: of makespan, overlap and exposed copy time.
        missed_overlap_frac: where overlap or exposed copy time are known to miss the tolerance: how
            far off they may be instead. The case is reported as missed, and does not fail a gate.
        missed_because: the reason, from the timeline.
    """

    __pydantic_config__ = STRICT_KEYS

    policy: str
    tolerance_frac: float
    missed_overlap_frac: float | None = None
    missed_because: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.tolerance_frac < float("inf"):
            raise BadInput(f"tolerance_frac(={self.tolerance_frac}) must be > 0.")
        missed = self.missed_overlap_frac
        if missed is not None and not (self.tolerance_frac < missed < 1 and self.missed_because):
            raise BadInput(
                f"missed_overlap_frac(={missed}) must be above tolerance_frac and below 1, with "
                "its reason in missed_because."
            )

    def save(self, folder: Path) -> None:
        write_json(folder / CASE, "case", set_fields(self))

    @classmethod
    def load(cls, folder: Path) -> RecordedCase:
        """Read `case.json` of a case's folder.

        Raises:
            BadFile: absent, unreadable, or with an unknown, absent or invalid key.
        """
        return parse(cls, read_json(folder / CASE, "case"), str(folder / CASE))


def loosest_tolerance_frac(measured: Recording) -> float:
    """The largest tolerance that a case may be given."""
    kind = measured.hardware.device_kind
    return max(TOLERANCE_FRAC.get(kind, TOLERANCE_FRAC["cuda"]), 2 * measured.spread_frac)


@dataclass(frozen=True, slots=True)
class CaseAccuracy:
    """One recorded case, predicted again; errors are predicted minus measured.

    Args:
        name: `<recording>/<case>`.
        naive_error_frac: makespan error of `max(copy time, compute time)`.
        passed: makespan, overlap and exposed copy time are all within the tolerance: the first
            relative to itself, the second in points of 100, the third relative to the makespan.
        reason: what is out of tolerance and which task is worst; empty for a passed case.
        missed: why overlap or exposed copy time are known to miss their target; empty if they do
            not.
    """

    name: str
    device: str
    model: str
    batch_size: int
    prompt_tokens: int
    gen_tokens: int
    policy: str
    predicted_makespan_s: float
    measured_makespan_s: float
    makespan_error_frac: float
    overlap_error_points: float
    exposed_copy_error_s: float
    tolerance_frac: float
    spread_frac: float
    teacher_forced_error_frac: float
    naive_error_frac: float
    passed: bool
    reason: str
    missed: str = ""


@dataclass(frozen=True)
class Accuracy:
    """All cases of one or more recordings.

    Args:
        unreadable: one sentence for each case that could not be assessed.
    """

    cases: tuple[CaseAccuracy, ...]
    unreadable: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether there are cases, all could be read, and each is within its own tolerance."""
        return bool(self.cases) and not self.unreadable and all(c.passed for c in self.cases)

    @property
    def errors_frac(self) -> list[float]:
        """Absolute makespan errors, smallest first."""
        return sorted(abs(case.makespan_error_frac) for case in self.cases)

    @property
    def median_abs_error_frac(self) -> float:
        return median(self.errors_frac)

    @property
    def p90_abs_error_frac(self) -> float:
        """The error that nine of ten cases do not exceed."""
        return nine_of_ten(self.errors_frac)

    @property
    def median_naive_error_frac(self) -> float:
        return median(abs(case.naive_error_frac) for case in self.cases)

    @property
    def rank_agreement_frac(self) -> float | None:
        """Of all pairs of policies measured on one shape, how many are predicted in their order.

        Left out are pairs measured no further apart than `DISTINCT_FRAC` and pairs of one graph,
        which have one prediction; None where no other is left.
        """
        pairs = [
            (one.measured_makespan_s - other.measured_makespan_s)
            * (one.predicted_makespan_s - other.predicted_makespan_s)
            for group in self._shapes()
            for one, other in combinations(group, 2)
            if abs(one.measured_makespan_s / other.measured_makespan_s - 1) > DISTINCT_FRAC
            and one.predicted_makespan_s != other.predicted_makespan_s
        ]
        return sum(pair > 0 for pair in pairs) / len(pairs) if pairs else None

    @property
    def ratio_errors_frac(self) -> list[float]:
        """Errors of the ratio of two policies' makespans on one shape, smallest first."""
        pairs = [pair for group in self._shapes() for pair in combinations(group, 2)]
        return sorted(
            abs(
                one.predicted_makespan_s
                / other.predicted_makespan_s
                / (one.measured_makespan_s / other.measured_makespan_s)
                - 1
            )
            for one, other in pairs
        )

    def _shapes(self) -> Iterable[Sequence[CaseAccuracy]]:
        shapes: dict[tuple[Any, ...], list[CaseAccuracy]] = {}
        for case in self.cases:
            recording = case.name.rpartition("/")[0]
            shape = (recording, case.model, case.batch_size, case.prompt_tokens, case.gen_tokens)
            shapes.setdefault(shape, []).append(case)
        return shapes.values()

    def to_dict(self) -> dict[str, Any]:
        return {
            "cases": [asdict(case) for case in self.cases],
            "unreadable": list(self.unreadable),
            "median_abs_error_frac": self.median_abs_error_frac if self.cases else None,
            "p90_abs_error_frac": self.p90_abs_error_frac if self.cases else None,
            "median_naive_error_frac": self.median_naive_error_frac if self.cases else None,
            "rank_agreement_frac": self.rank_agreement_frac,
            "passed": self.passed,
        }


def nine_of_ten(errors_frac: Sequence[float]) -> float:
    """The error, of sorted ones, that nine of ten do not exceed."""
    return errors_frac[ceil(0.9 * len(errors_frac)) - 1]


def case_folders(root: Path) -> list[Path]:
    """Folders of all cases under `root`, which is a recording or holds several.

    Raises:
        BadFile: `root` holds no case.
    """
    folders = sorted(
        path
        for pattern in (f"{CASES}/*", f"*/{CASES}/*")
        for path in root.glob(pattern)
        if path.is_dir()
    )
    if not folders:
        raise BadFile(
            f"{root} holds no recording (no {CASES} folder in it or one level below); name a "
            "folder that `kvoverlap record` or `validate --out` wrote."
        )
    return folders


def assess(root: Path, machine: HardwareProfile | None = None) -> Accuracy:
    """Accuracy of today's predictions of every recorded case under `root`.

    Args:
        machine: predicts instead of the machine that was profiled with each recording.

    Raises:
        BadFile: `root` holds no case.
    """
    cases, unreadable = [], []
    for folder in case_folders(root):
        try:
            cases.append(assess_case(folder, machine))
        except KvOverlapError as error:
            unreadable.append(str(error))
    return Accuracy(tuple(cases), tuple(unreadable))


def assess_kind(root: Path, device_kind: str) -> Accuracy:
    """As `assess`, of the recordings in `root` from machines of one kind; maybe of none."""
    cases: list[CaseAccuracy] = []
    unreadable: list[str] = []
    for profile in sorted(root.glob(f"*/{PROFILE}")):
        try:
            if HardwareProfile.load(profile).device_kind != device_kind:
                continue
            found = assess(profile.parent)
        except KvOverlapError as error:
            unreadable.append(str(error))
            continue
        cases += found.cases
        unreadable += found.unreadable
    return Accuracy(tuple(cases), tuple(unreadable))


def assess_case(folder: Path, machine: HardwareProfile | None = None) -> CaseAccuracy:
    """Accuracy of today's prediction of one recorded case.

    Args:
        machine: as for `assess`.

    Raises:
        BadFile: a file of the case is absent, unreadable or inconsistent.
        BadInput: `machine` has rates for elements of another size than the case was recorded in.
    """
    case, measured = RecordedCase.load(folder), Recording.load(folder / MEASURED)
    graph = measured.graph
    if machine is None:
        machine = measured.hardware
    else:
        case = replace(case, missed_overlap_frac=None, missed_because="")
    if DTYPE_BYTES[machine.dtype] != DTYPE_BYTES[graph.model.dtype]:
        raise BadInput(
            f"{folder} was recorded in {graph.model.dtype}, and {machine.name} has rates for "
            f"{machine.dtype}; name a machine for elements of the same size."
        )
    guess = Recording("predicted", machine, (simulate(graph, machine),))
    result = compare(guess, measured)
    name = f"{folder.parent.parent.name}/{folder.name}"
    overlap_points = 100 * (result.overlap_predicted_frac - result.overlap_measured_frac)
    exposed_s = result.exposed_copy_predicted_s - result.exposed_copy_measured_s
    tolerance = case.tolerance_frac
    faults = []
    if abs(result.makespan_error_frac) > tolerance:
        faults.append(
            f"makespan {ms(result.predicted_makespan_s)} predicted, "
            f"{ms(result.measured_makespan_s)} measured, "
            f"{percent(result.makespan_error_frac, signed=True)}"
        )
    overlap_frac = case.missed_overlap_frac or tolerance
    if abs(overlap_points) > 100 * overlap_frac:
        faults.append(f"overlap off by {overlap_points:+.1f} points")
    if abs(exposed_s) > overlap_frac * result.measured_makespan_s:
        faults.append(f"exposed copy time off by {ms(exposed_s)}")
    if tolerance > loosest_tolerance_frac(measured) * (1 + 1e-9):
        faults.append(
            f"tolerance looser than the {percent(loosest_tolerance_frac(measured))} allowed"
        )
    worst = result.worst_tasks[0]
    reason = ""
    if faults:
        reason = (
            f"case {name}: {'; '.join(faults)}; tolerance {percent(tolerance)}; worst task "
            f"{worst.task_id} {percent(worst.error_frac, signed=True)}"
        )
    return CaseAccuracy(
        name=name,
        device=str(measured.environment.get("device", measured.hardware.device_kind)),
        model=graph.model.name,
        batch_size=graph.workload.batch_size,
        prompt_tokens=graph.workload.prompt_tokens,
        gen_tokens=graph.workload.gen_tokens,
        policy=case.policy,
        predicted_makespan_s=result.predicted_makespan_s,
        measured_makespan_s=result.measured_makespan_s,
        makespan_error_frac=result.makespan_error_frac,
        overlap_error_points=overlap_points,
        exposed_copy_error_s=exposed_s,
        tolerance_frac=tolerance,
        spread_frac=result.measured_spread_frac,
        teacher_forced_error_frac=result.teacher_forced_error_frac,
        naive_error_frac=result.naive_error_frac,
        passed=not faults,
        reason=reason,
        missed=case.missed_because,
    )
