"""`kvoverlap record`: one call that leaves a recording of this machine behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from cli.accuracy import print_accuracy
from cli.devices import DEFAULT_DTYPE, measure_profile
from cli.grid import FIXED_PARTS, WARM_UPS, GridRun, plan_names, shape_name
from cli.output import Steps, note, print_json, progress, say
from cli.peers import measure_peers, print_peers
from cli.restore_recording import RestoreRecorder
from cli.rounds import EXTRA_ROUNDS
from planner import make_plan
from sim.accuracy import CASE, CASES, PROFILE, assess
from sim.catalog import find_model
from sim.errors import BadInput, DoesNotFit, Mismatch, UnknownName
from sim.files import read_json, write_json
from sim.hardware import HardwareProfile
from sim.model_spec import ModelSpec
from sim.workload import Workload

if TYPE_CHECKING:
    from hw.backends import Backend

SCENARIOS = ("decode", "restore")
RESTORED = {"cpu": ("opt-125m",), "cuda": ("opt-6.7b",)}
"""Models whose restores are recorded."""
RECORDING = "recording.json"
PEERS = "peers.json"
STEPS = 2
REPEATS = 5

GRID: dict[str, dict[str, tuple[tuple[int, int], ...]]] = {
    "cpu": {
        "opt-125m": ((7, 500), (4, 300)),
        "qwen2.5-0.5b": ((6, 400),),
    },
    "cuda": {
        "opt-6.7b": ((32, 1024), (12, 700)),
        "opt-13b": ((32, 1024), (10, 500)),
        "llama-3.1-8b": ((24, 1500),),
        "opt-1.3b": ((20, 900),),
    },
}
"""(batch, prompt) of each model, the most valuable first."""

PEER_SHAPES = {
    "cpu": {"opt-125m": (7, 500)},
    "cuda": {"opt-6.7b": (32, 1024), "opt-13b": (32, 1024)},
}
"""Where other runtimes decode the same."""

SETUP_S = {"cpu": 15.0, "cuda": 30.0}
"""About what weights, prompts and reference of one shape take."""


@dataclass(frozen=True)
class Budget:
    """Seconds that a recording may take, from the moment it started."""

    started_s: float
    seconds: float

    @property
    def left_s(self) -> float:
        return self.seconds - (monotonic() - self.started_s)


def record(
    *,
    output: Annotated[Path, Parameter(name=["--out", "-o"])],
    scenario: str = "decode",
    device: str = "auto",
    minutes: float = 8.0,
    repeats: int = REPEATS,
    link: str | None = None,
    seed: int = 0,
    peers: Annotated[bool, Parameter(negative="--no-peers")] = True,
    json: bool = False,
) -> int:
    """Record this machine: profile it, measure a held-out grid of plans, run others beside.

    The folder holds the profile and, for every case, its graph and measured timelines, which
    `kvoverlap accuracy` predicts anew. The most valuable cases come first; what does not fit the
    time is left out, and the same command goes on where it stopped.

    Examples:
      kvoverlap record --out data/recordings/my-machine
      kvoverlap record --device cuda --out data/recordings/h100-pcie5 --minutes 8
      kvoverlap record --scenario restore --out data/recordings/my-restores

    Parameters
    ----------
    output
        Folder of the recording; one that holds a broken-off recording is completed.
    scenario
        decode, or restore: of a cached prefix from host memory and from a file.
    device
        auto, cpu or cuda.
    minutes
        Time that the whole may take.
    repeats
        Measured repetitions of every case, in turn with the other cases of its shape.
    link
        Pace of the emulated link of the cpu device; by default one that makes the choice close.
    seed
        Seed of weights and prompts.
    peers
        Also let transformers decode the same, with its offloaded and its resident cache.
    json
        Print JSON instead of text.
    """
    from hw import open_backend, resolve_device

    if scenario not in SCENARIOS:
        raise UnknownName("scenario", scenario, SCENARIOS)
    if repeats < 1:
        raise BadInput(f"--repeats(={repeats}) must be at least 1.")
    if not 0 < minutes < float("inf"):
        raise BadInput(f"--minutes(={minutes}) must be above 0.")
    budget = Budget(monotonic(), 60 * minutes)
    kind = resolve_device(device)
    names = RESTORED[kind] if scenario == "restore" else GRID[kind]
    specs = [find_model(name, DEFAULT_DTYPE[kind]) for name in names]
    hardware = recorded_profile(output, kind, specs, link)
    with progress("record") as tell:
        if scenario == "restore":
            with open_backend(kind) as on:
                environment = on.environment()
            check_same_machine(output, hardware, environment)
            recorder = RestoreRecorder(
                output, hardware, kind, repeats, seed, lambda: budget.left_s, tell
            )
            left_out = [one for spec in specs for one in recorder.measure(spec)]
        else:
            environment, left_out = _record_decodes(
                output, hardware, kind, specs, repeats, seed, budget, peers, tell
            )
    write_json(
        output / RECORDING,
        "recording",
        {"environment": environment, "repeats": repeats, "seed": seed, "left_out": left_out},
    )
    found = assess(output)
    if json:
        print_json({**found.to_dict(), "left_out": left_out, "peers": recorded_peers(output)})
        return 0
    print_accuracy(found)
    for report in recorded_peers(output):
        say("")
        print_peers(report)
    for what in left_out:
        note(what)
    say(f"\nrecording in {output}; check it with: kvoverlap accuracy --recordings {output}")
    return 0


def _record_decodes(
    output: Path,
    hardware: HardwareProfile,
    kind: str,
    specs: Sequence[ModelSpec],
    repeats: int,
    seed: int,
    budget: Budget,
    peers: bool,
    tell: Steps,
) -> tuple[dict[str, Any], list[str]]:
    """Measure the grid of decodes; returns the environment and what was left out."""
    from hw import open_backend

    with open_backend(kind, hardware.links.h2d.paced_bytes_per_s) as on:
        check_same_machine(output, hardware, on.environment())
        recorder = Recorder(output, hardware, on, repeats, seed, budget, tell)
        for spec, shapes in zip(specs, GRID[kind].values(), strict=True):
            recorder.measure(spec, [Workload(batch, prompt, STEPS) for batch, prompt in shapes])
            shape = PEER_SHAPES[kind].get(spec.name)
            if peers and shape is not None:
                recorder.run_peers(spec, Workload(*shape, STEPS))
        return on.environment(), recorder.left_out


def recorded_profile(
    output: Path, kind: str, specs: list[ModelSpec], link: str | None
) -> HardwareProfile:
    """The profile that a broken-off recording left, or a new one.

    Raises:
        BadInput: the folder holds something else.
    """
    if (output / PROFILE).is_file():
        found = HardwareProfile.load(output / PROFILE)
        done = len(list(output.glob(f"{CASES}/*/{CASE}")))
        note(f"{output} holds {done} finished cases; going on with its profile.")
        if link is not None:
            raise BadInput(f"--link(={link}): {output} has a profile already; leave --link out.")
        return found
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BadInput(f"--out(={output}) holds something else; name a new folder.")
    made = measure_profile(kind, specs, output.name, link)
    made.save(output / PROFILE)
    return made


def check_same_machine(
    output: Path, hardware: HardwareProfile, environment: Mapping[str, Any]
) -> None:
    """Refuse to go on with a recording of another machine.

    Raises:
        Mismatch: device or torch version differ.
    """
    before = hardware.environment or {}
    for key in ("device", "torch"):
        if before.get(key) != environment.get(key):
            raise Mismatch(
                f"{output} was begun with {key} {before.get(key)!r}, here it is "
                f"{environment.get(key)!r}; name a new folder."
            )


@dataclass
class Recorder:
    """Fills the folder `output` until the budget is spent; `left_out` says what is not in it."""

    output: Path
    hardware: HardwareProfile
    backend: Backend
    repeats: int
    seed: int
    budget: Budget
    tell: Steps
    left_out: list[str] = field(default_factory=list)

    def measure(self, spec: ModelSpec, jobs: Sequence[Workload]) -> None:
        """Measure the shapes of one model that are not there yet and that the time allows."""
        affordable = [
            job
            for job in jobs
            if not recorded(self.output, spec, job) and self._affordable(spec, job, "")
        ]
        if not affordable:
            return
        try:
            grid = GridRun(
                spec, self.hardware, self.backend, affordable, self.repeats, self.seed, self.tell
            )
        except DoesNotFit as error:
            self.left_out.append(f"{spec.name} left out: {error}")
            return
        for number, job in enumerate(affordable):
            if number and not self._affordable(spec, job, ""):
                continue
            for case in grid.measure(job, number / len(affordable)).cases:
                case.save(self.output / CASES / f"{spec.name}-{case.name}")

    def run_peers(self, spec: ModelSpec, job: Workload) -> None:
        """Let other runtimes decode one shape, unless they have."""
        path = self.output / f"{spec.name}-{PEERS}"
        if not path.is_file() and self._affordable(spec, job, "peers of "):
            try:
                report = measure_peers(
                    spec, self.hardware, self.backend, job, self.repeats, self.seed, self.tell
                )
            except DoesNotFit as error:
                self.left_out.append(f"peers of {spec.name} left out: {error}")
                return
            write_json(path, "peers", report)

    def _affordable(self, spec: ModelSpec, job: Workload, what: str) -> bool:
        left_s, needed_s = self.budget.left_s, self._estimated_s(spec, job)
        if needed_s > left_s:
            self.left_out.append(
                f"{what}{spec.name}-{shape_name(job)} left out: {max(0.0, left_s):.0f} s of "
                f"--minutes were left, it takes about {needed_s:.0f} s; the same command goes on."
            )
        return needed_s <= left_s

    def _estimated_s(self, spec: ModelSpec, job: Workload) -> float:
        """About how long all cases of one shape take."""
        plan = make_plan(spec, self.hardware, job, "lp")
        once_s = sum(plan.baselines.values()) + plan.makespan_s * (1 + len(FIXED_PARTS))
        runs = WARM_UPS[self.backend.kind] + self.repeats + EXTRA_ROUNDS
        return SETUP_S[self.backend.kind] + 1.2 * once_s * runs


def recorded_peers(output: Path) -> list[dict[str, Any]]:
    return [read_json(path, "peers") for path in sorted(output.glob(f"*-{PEERS}"))]


def recorded(output: Path, spec: ModelSpec, job: Workload) -> bool:
    """Whether every case of a shape is there, each with the file that is written last."""
    return all(
        (output / CASES / f"{spec.name}-{name}" / CASE).is_file() for name in plan_names(job)
    )
